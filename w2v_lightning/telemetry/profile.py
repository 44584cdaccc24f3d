"""Profiler of `fit --profile`: where the time of a few training steps goes, as a table and as a trace."""

import functools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich import box, get_console
from rich.console import Console
from rich.table import Table
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from w2v_lightning.data.batch import Batch
from w2v_lightning.errors import InputError
from w2v_lightning.telemetry.attribution import BACKWARD, FORWARD, Work, group_of, time_by_group
from w2v_lightning.telemetry.idle import Idle, idle_time, is_on_device, is_on_host, kernels_of, ranges_of
from w2v_lightning.training.run_folder import output_folder

WAIT_STEPS = 20  # if the run is long enough: until then code is compiled and the allocator meets new lengths
WARMUP_STEPS = 1  # of the profiler
NUM_STEPS = 3
NUM_GROUPS = 10


class Profile(Callback):
    """Callback that profiles a few steps on rank 0, prints the costliest groups and writes trace.json.gz.

    The trace opens in ui.perfetto.dev and chrome://tracing. On a GPU the times are those of kernels, except the data
    wait, which is the host's; on the CPU they are those of operators. Backward counts towards the part of the model
    that it belongs to.

    Args:
        console: console for the table; default: standard output.
        folder: folder of the trace; default: the run's log folder.
    """

    def __init__(self, console: Console | None = None, folder: Path | None = None) -> None:
        self.console = console or get_console()
        self.folder = folder
        self._profiler: profile | None = None
        self._backward: record_function | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._folder = self.folder or output_folder(trainer)  # collective: all ranks
        steps_left = int(trainer.estimated_stepping_batches) - trainer.global_step
        wait = min(WAIT_STEPS, steps_left - WARMUP_STEPS - NUM_STEPS)
        if wait < 0:
            needed = WARMUP_STEPS + NUM_STEPS
            limit = "max_steps" if trainer.max_steps == trainer.estimated_stepping_batches else "max_epochs"
            raise InputError(
                f"--profile needs {needed} optimiser steps, the run has {steps_left}: raise trainer.{limit}."
            )
        if trainer.is_global_zero:
            self._is_cuda = pl_module.device.type == "cuda"
            self._steps, self._first, self._end = 0, wait + WARMUP_STEPS, wait + WARMUP_STEPS + NUM_STEPS
            self._audio_s = 0.0
            # Set on the instance, shadowing the class's method until `_stop`.
            pl_module.training_step = _in_range(pl_module.training_step)  # type: ignore[method-assign]
            self._profiler = self._new_profiler(wait)
            self._profiler.start()

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: torch.Tensor) -> None:
        self._backward = record_function(BACKWARD)
        self._backward.__enter__()

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._backward is not None
        self._backward.__exit__(None, None, None)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if self._profiler is None:
            return
        if self._steps >= self._first:
            self._audio_s += batch.audio_seconds
        if not batch.is_last_of_step:
            return
        self._steps += 1
        if self._steps == self._first and self._is_cuda:
            torch.cuda.synchronize()  # so that work of earlier steps does not count towards these
        self._profiler.step()
        if self._steps == self._end:
            self._stop(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop(pl_module)

    def _stop(self, pl_module: LightningModule) -> None:
        if self._profiler is not None:
            profiler, self._profiler = self._profiler, None
            profiler.stop()
            del pl_module.training_step  # restores the class's method

    def _new_profiler(self, wait: int) -> profile:
        return profile(
            activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._is_cuda else [])],
            schedule=schedule(wait=wait, warmup=WARMUP_STEPS, active=NUM_STEPS, repeat=1),
            on_trace_ready=self._report,
            acc_events=True,  # avoids a warning that events are cleared
        )

    def _report(self, profiler: profile) -> None:
        if self._steps < self._end:  # interrupted: the profile is incomplete
            return
        path = self._folder / "trace.json.gz"
        write_trace(profiler, path)
        events = profiler.events()
        wall_s = sum(_seconds(event) for event in events if event.name.startswith("ProfilerStep") and is_on_host(event))
        seconds = time_by_group(gpu_works(events) if self._is_cuda else cpu_works(events))
        self.console.print(_table(seconds, wall_s, self._audio_s, "device" if self._is_cuda else "CPU"))
        if self._is_cuda:
            self.console.print(_idle_text(idle_time(kernels_of(events), ranges_of(events)), wall_s), highlight=False)
        self.console.print(f"Trace: {path} (open it in ui.perfetto.dev)\n", highlight=False, soft_wrap=True)


def write_trace(profiler: profile, path: Path) -> None:
    """Write a gzipped Chrome trace; the file appears complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        profiler.export_chrome_trace(str(partial))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def cpu_works(events: Iterable[FunctionEvent]) -> Iterator[Work]:
    """Yield the work of the CPU, operator by operator."""
    events = [event for event in events if is_on_host(event)]
    forward = _forward_of(events)
    for event in events:
        yield Work(event.name, _ancestors(event, forward), event.self_cpu_time_total / 1e6)


def gpu_works(events: Iterable[FunctionEvent]) -> Iterator[Work]:
    """Yield the work of the GPU, kernel by kernel, and the time that the host waited for data."""
    events = list(events)
    cpu_events = [event for event in events if is_on_host(event)]
    forward = _forward_of(cpu_events)
    launched: Counter[tuple[str, float]] = Counter()
    for event in cpu_events:
        for kernel in event.kernels:
            if not (event.is_user_annotation and kernel.name == event.name):  # a range on the GPU's timeline, not work
                launched[kernel.name, round(kernel.duration, 3)] += 1
                yield Work(kernel.name, (event.name, *_ancestors(event, forward)), kernel.duration / 1e6)
        if group_of(event.name, ()) == "data wait":
            yield Work(event.name, (), _seconds(event))
    # Kernels without a known launching operator, such as those of a CUDA graph, can only be attributed by name.
    on_device = Counter((e.name, round(e.time_range.elapsed_us(), 3)) for e in events if is_on_device(e))
    for (name, duration_us), number in (on_device - launched).items():
        yield Work(name, (), number * duration_us / 1e6)


def _in_range(training_step: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap the forward pass in a range: Lightning runs it inside the optimiser's step."""

    @functools.wraps(training_step)
    def in_range(*args: Any, **kwargs: Any) -> Any:
        with record_function(FORWARD):
            return training_step(*args, **kwargs)

    return in_range


def _forward_of(events: Iterable[FunctionEvent]) -> dict[tuple[int, int], FunctionEvent]:
    """Map (thread, autograd's sequence number) to the forward operator, which backward functions refer to.

    Operators without a backward show the number of the next operator that has one: the last one of each number counts.
    """
    in_order = sorted(events, key=lambda event: event.time_range.start)
    return {(e.thread, e.sequence_nr): e for e in in_order if e.sequence_nr >= 0 and not e.fwd_thread}


def _ancestors(event: FunctionEvent, forward: dict[tuple[int, int], FunctionEvent]) -> tuple[str, ...]:
    """Names around an event, the innermost first; a backward function continues with its forward operator's."""
    names: list[str] = []
    current: FunctionEvent | None = event
    while current is not None:
        if current.fwd_thread and (forward_event := forward.get((current.fwd_thread, current.sequence_nr))):
            return (*names, forward_event.name, *_ancestors(forward_event, forward))
        current = current.cpu_parent
        if current is not None:
            names.append(current.name)
    return tuple(names)


def _seconds(event: FunctionEvent) -> float:
    return event.time_range.elapsed_us() / 1e6


def _table(seconds: dict[str, float], wall_s: float, audio_s: float, device: str) -> Table:
    title = f"{NUM_STEPS} steps of {1000 * wall_s / NUM_STEPS:.1f} ms, {audio_s / NUM_STEPS:,.1f} s of audio each"
    table = Table("", f"ms a step ({device})", "share of the time", box=box.SIMPLE, title=title, title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for group, group_s in list(seconds.items())[:NUM_GROUPS]:
        table.add_row(group, f"{1000 * group_s / NUM_STEPS:.2f}", f"{group_s / wall_s:.1%}")
    return table


def _idle_text(idle: Idle, wall_s: float) -> str:
    def ms(time_s: float) -> str:
        return f"{1000 * time_s / NUM_STEPS:.2f}"

    waits = ", ".join(f"{ms(wait_s)} {name}" for name, wait_s in idle.waits_s.items())
    lines = [f"The device was idle for {ms(idle.total_s)} ms a step, {idle.total_s / wall_s:.0%} of the time."]
    lines += [f"Idle time by activity of the host (ms): {waits}."] if waits else []
    if idle.communication_alone_s:
        lines.append(f"For {ms(idle.communication_alone_s)} ms a step it only exchanged gradients.")
    return "\n".join(lines)
