"""`bench step`: whole optimiser steps, ours beside stock transformers, in one process and in turn.

A step is forward, backward over its micro-batches, gradient clipping and AdamW, with a frozen feature encoder, masks
and layer drop as in fairseq's base_100h. All sides get the same batches of audio; what counts as work is the audio, not
its padding. Each side first runs over all shapes twice; then they take turns, one pass over all steps each.
"""

import argparse
import gc
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from rich.console import Console

from w2v_lightning.bench import in_fit, step_report
from w2v_lightning.bench.parity import agreement
from w2v_lightning.bench.settings import STOCK, Settings, add_options, settings_of, speed_without
from w2v_lightning.bench.side import Memory, Passes, Side
from w2v_lightning.bench.step_report import Result
from w2v_lightning.bench.stepper import Stepper, our_stepper
from w2v_lightning.bench.stock import stock_stepper
from w2v_lightning.bench.workload import Workload, like_librispeech, workloads
from w2v_lightning.data.manifest import Manifest
from w2v_lightning.module import Wav2Vec2CTC
from w2v_lightning.runtime.hardware import matrix_flops_per_s

AGREEMENT_SECONDS = 100.0  # of audio in the batch whose loss is compared: stock in float32 must hold it
MAIN = "main"
NO_NEWS = ("lightning.pytorch", "lightning.fabric", "w2v_lightning.callbacks.diagnosis")
TABLE_WIDTH = 110  # columns; a pipe would be given 80, which cuts figures off


def add_parser(benchmarks: argparse._SubParsersAction) -> None:
    parser = benchmarks.add_parser("step", help="optimiser steps per second, beside stock transformers")
    add_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Measure, print the table, write the JSON file."""
    settings = settings_of(options)
    with _quiet():
        result = measure(settings)
    figures = step_report.summary(settings, result)
    step_report.show(Console(width=max(Console().width, TABLE_WIDTH)), figures)
    if options.json:
        step_report.write(options.json, figures)


def measure(settings: Settings) -> Result:
    """Everything, one group of sides after the other; says on the way what is ready."""
    machine, module = settings.machine, settings.build()
    spec = module.input_spec
    manifest = Manifest.load(settings.manifest) if settings.manifest else like_librispeech(spec)
    load = partial(workloads, manifest, spec, pin=machine.device.type == "cuda")
    of = load(
        batch_seconds=settings.batch_seconds,
        device_seconds={*settings.device_seconds, *settings.hf_device_seconds},
        num_steps=settings.steps,
    )
    result = Result(module.model.config)
    ours = Side("ours", lambda: our_stepper(settings.build(), machine), machine)
    several = settings.in_fit or "hf-compiled" in settings.compare
    with _shared_code() if several else nullcontext():
        _measure_main(settings, module, ours, of, result)
    result.matrix_flops_per_s = matrix_flops_per_s(machine.device, machine.dtype)
    with _shared_code():
        if settings.ablate:
            _measure_ablations(settings, ours, of[settings.device_seconds[0]], result)
        del ours
        _free()
        if settings.compare:
            seconds = max(min(AGREEMENT_SECONDS, settings.device_seconds[0]), manifest.durations_s_N.max())
            small = load(batch_seconds=seconds, device_seconds=[seconds], num_steps=1)[seconds]
            with _reported("comparison of losses", result.failures):
                result.agreement = agreement(settings.build, small.batches[0], machine)
    return result


def _measure_main(
    settings: Settings, module: Wav2Vec2CTC, ours: Side, of: dict[float, Workload], result: Result
) -> None:
    """Ours, stock in all its variants from the weights of `module`, and ours in fit, in turn."""
    turns = [(ours, _ready(ours, MAIN, of[seconds])) for seconds in settings.device_seconds]
    for name in settings.compare:
        build = partial(stock_stepper, module, settings.machine, is_compiled=STOCK[name])
        turns += _stock_turns(settings, Side(name, build, settings.machine), of, result.failures)
    result.passes += [passes for _, passes in turns]
    if settings.in_fit:
        passes = Passes("ours in fit", MAIN, of[settings.device_seconds[0]], Memory(settings.machine))
        result.passes.insert(0, passes)
        in_fit.fit(settings.build(), passes, settings.repetitions, others=lambda: _take_turns(turns))
    else:
        for _ in range(settings.repetitions):
            _take_turns(turns)


def _stock_turns(
    settings: Settings, side: Side, of: dict[float, Workload], failures: dict[str, str]
) -> list[tuple[Side, Passes]]:
    """`side` with each of its device_seconds; what it cannot do, as running out of memory, is noted in `failures`."""
    turns = []
    for seconds in settings.hf_device_seconds:
        with _reported(f"{side.name} at {seconds:g} s", failures):
            turns.append((side, _ready(side, MAIN, of[seconds])))
        side.stepper.optimizer.zero_grad(set_to_none=True)
        _free()
    return turns


def _measure_ablations(settings: Settings, ours: Side, load: Workload, result: Result) -> None:
    """Ours with each of these optimisations alone switched off, each in turn with ours."""
    for name in settings.ablate:
        if speed_without([*settings.off, name]) == speed_without(settings.off):
            continue
        group = f"{'with' if '=' in name else 'without'} {name}"
        build = partial(_build_without, settings, name)
        with _reported(f"ours {group}", result.failures):
            side = Side(f"ours {group}", build, settings.machine)
            turns = [(ours, _ready(ours, group, load)), (side, _ready(side, group, load))]
            for _ in range(settings.repetitions):
                _take_turns(turns)
            result.passes += [passes for _, passes in turns]
        side = turns = None  # before the next one takes its memory
        _free()


def _build_without(settings: Settings, optimisation: str) -> Stepper:
    return our_stepper(settings.build(off=[optimisation]), settings.machine)


def _ready(side: Side, group: str, load: Workload) -> Passes:
    passes = side.passes(group, load)
    print(f"{side.name} at {load.device_seconds:g} s: warmed up in {passes.warm_up_s:.1f} s", flush=True)
    return passes


def _take_turns(turns: Sequence[tuple[Side, Passes]]) -> None:
    for side, passes in turns:
        side.time(passes)


@contextmanager
def _reported(what: str, failures: dict[str, str]) -> Iterator[None]:
    """Note what cannot be done, as running out of memory: what has been measured, and what is to come, is not lost."""
    try:
        yield
    except Exception as error:
        first_line = str(error).strip().partition("\n")[0]
        failures[what] = f"{type(error).__name__}: {first_line}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Noise is no speech: what Diagnosis says of it is no news, nor what Lightning says of a loader of its own kind."""
    loggers = [logging.getLogger(name) for name in NO_NEWS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning.*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _shared_code() -> AbstractContextManager:
    """For several models of one class, which share torch.compile's cache of code; its limit of 8 is meant for one."""
    return torch._dynamo.config.patch(recompile_limit=64)


def _free() -> None:
    """Give back what a side that is gone, or has failed, held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
