"""Benchmark `bench step`: whole optimiser steps, ours and stock transformers', alternating in one process.

A step is forward, backward over its micro-batches, gradient clipping and AdamW, with a frozen feature encoder, masks
and layer drop as in fairseq's base_100h. All sides get the same batches of audio; speed counts the audio, without
padding. Each side first runs over all shapes twice; then they take turns, one pass over all steps each.
"""

import gc
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from rich.console import Console

from w2v_lightning.bench import in_fit, step_report
from w2v_lightning.bench.parity import agreement
from w2v_lightning.bench.settings import STOCK, Settings, StepOptions, settings_of, speed_without
from w2v_lightning.bench.side import Memory, Passes, Side
from w2v_lightning.bench.step_report import Result
from w2v_lightning.bench.stepper import Stepper, our_stepper
from w2v_lightning.bench.stock import stock_stepper
from w2v_lightning.bench.workload import Workload, like_librispeech, workloads
from w2v_lightning.command_line import Parser, parse, parser_of
from w2v_lightning.compat.torch import recompile_limit
from w2v_lightning.data.manifest import Manifest
from w2v_lightning.module import Wav2Vec2CTC
from w2v_lightning.runtime.hardware import matrix_flops_per_s

AGREEMENT_SECONDS = 100.0  # audio in the batch whose losses are compared; stock in float32 must have memory for it
MAIN = "main"
QUIET_LOGGERS = ("lightning.pytorch", "lightning.fabric", "w2v_lightning.callbacks.diagnosis")
TABLE_WIDTH = 110  # columns; in a pipe, rich assumes 80, which would truncate figures


def parser() -> Parser:
    """Return the parser of this command."""
    return parser_of(StepOptions, "bench step")


def main(args: Sequence[str]) -> int:
    """Measure, print the table, and write the JSON file; return the exit status."""
    options = parse(StepOptions, "bench step", args)
    settings = settings_of(options)
    with _without_expected_warnings():
        result = measure(settings)
    figures = step_report.summary(settings, result)
    step_report.show(Console(width=max(Console().width, TABLE_WIDTH)), figures)
    if options.json:
        step_report.write(options.json, figures)
    return 0


def measure(settings: Settings) -> Result:
    """Measure one group of sides after another, and print the progress."""
    machine, module = settings.machine, settings.build()
    spec = module.input_spec
    manifest = Manifest.load(settings.manifest) if settings.manifest else like_librispeech(spec)
    load = partial(workloads, manifest, spec, pin=machine.device.type == "cuda")
    workload_of = load(
        batch_seconds=settings.batch_seconds,
        device_seconds={*settings.device_seconds, *settings.hf_device_seconds},
        num_steps=settings.steps,
    )
    result = Result(module.model.config)
    ours = Side("ours", lambda: our_stepper(settings.build(), machine), machine)
    has_several_compiled_models = settings.in_fit or "hf-compiled" in settings.compare
    with _shared_code() if has_several_compiled_models else nullcontext():
        _measure_main(settings, module, ours, workload_of, result)
    result.matrix_flops_per_s = matrix_flops_per_s(machine.device, machine.dtype)
    with _shared_code():
        if settings.ablate:
            _measure_ablations(settings, ours, workload_of[settings.device_seconds[0]], result)
        del ours
        _free_memory()
        if settings.compare:
            seconds = max(min(AGREEMENT_SECONDS, settings.device_seconds[0]), manifest.durations_s_N.max())
            small = load(batch_seconds=seconds, device_seconds=[seconds], num_steps=1)[seconds]
            with _recorded("comparison of losses", result.failures):
                result.agreement = agreement(settings.build, small.batches[0], machine)
    return result


def _measure_main(
    settings: Settings, module: Wav2Vec2CTC, ours: Side, workload_of: Mapping[float, Workload], result: Result
) -> None:
    """Measure, in turn: ours, all stock variants with the weights of `module`, and ours in fit."""
    turns = [(ours, _warmed_up(ours, MAIN, workload_of[seconds])) for seconds in settings.device_seconds]
    for name in settings.compare:
        build = partial(stock_stepper, module, settings.machine, is_compiled=STOCK[name])
        turns += _stock_turns(settings, Side(name, build, settings.machine), workload_of, result.failures)
    result.passes += [passes for _, passes in turns]
    if settings.in_fit:
        passes = Passes("ours in fit", MAIN, workload_of[settings.device_seconds[0]], Memory(settings.machine))
        result.passes.insert(0, passes)
        in_fit.fit(settings.build(), passes, settings.repetitions, after_pass=lambda: _take_turns(turns))
    else:
        for _ in range(settings.repetitions):
            _take_turns(turns)


def _stock_turns(
    settings: Settings, side: Side, workload_of: Mapping[float, Workload], failures: dict[str, str]
) -> list[tuple[Side, Passes]]:
    """Warm up `side` with each of its device_seconds, and add those that fail, such as out of memory, to `failures`."""
    turns = []
    for seconds in settings.hf_device_seconds:
        with _recorded(f"{side.name} at {seconds:g} s", failures):
            turns.append((side, _warmed_up(side, MAIN, workload_of[seconds])))
        side.stepper.optimizer.zero_grad(set_to_none=True)
        _free_memory()
    return turns


def _measure_ablations(settings: Settings, ours: Side, workload: Workload, result: Result) -> None:
    """Measure ours with each of the optimisations switched off alone, each in turn with ours."""
    for name in settings.ablate:
        if speed_without([*settings.off, name]) == speed_without(settings.off):
            continue
        group = f"{'with' if '=' in name else 'without'} {name}"
        with _recorded(f"ours {group}", result.failures):
            result.passes += _ablation(settings, ours, name, group, workload)
        _free_memory()  # before the next side is built


def _ablation(settings: Settings, ours: Side, name: str, group: str, workload: Workload) -> list[Passes]:
    side = Side(f"ours {group}", partial(_build_without, settings, name), settings.machine)
    turns = [(ours, _warmed_up(ours, group, workload)), (side, _warmed_up(side, group, workload))]
    for _ in range(settings.repetitions):
        _take_turns(turns)
    return [passes for _, passes in turns]


def _build_without(settings: Settings, optimisation: str) -> Stepper:
    return our_stepper(settings.build(off=[optimisation]), settings.machine)


def _warmed_up(side: Side, group: str, workload: Workload) -> Passes:
    passes = side.passes(group, workload)
    print(f"{side.name} at {workload.device_seconds:g} s: warmed up in {passes.warm_up_s:.1f} s", flush=True)
    return passes


def _take_turns(turns: Sequence[tuple[Side, Passes]]) -> None:
    for side, passes in turns:
        side.time(passes)


@contextmanager
def _recorded(name: str, failures: dict[str, str]) -> Iterator[None]:
    """Add an exception, such as out of memory, to `failures`, so that all other measurements are kept."""
    try:
        yield
    except Exception as error:
        first_line = str(error).strip().partition("\n")[0]
        failures[name] = f"{type(error).__name__}: {first_line}"


@contextmanager
def _without_expected_warnings() -> Iterator[None]:
    """Silence warnings that are expected on random audio (Diagnosis, Lightning's loader checks)."""
    loggers = [logging.getLogger(name) for name in QUIET_LOGGERS]
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
    """Raise torch.compile's limit of 8 compilations, which is meant for one model: models of a class share it."""
    return recompile_limit(64)


def _free_memory() -> None:
    """Free what a deleted or failed side has allocated."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
