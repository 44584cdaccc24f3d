"""Figures of `bench step`, as tables and as JSON."""

import json
import shlex
import statistics
import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from transformers import Wav2Vec2Config

from w2v_lightning.bench.parity import Agreement
from w2v_lightning.bench.settings import Settings
from w2v_lightning.bench.side import Passes
from w2v_lightning.model.flops import training_flops
from w2v_lightning.runtime.files import atomic_text_file
from w2v_lightning.runtime.hardware import device_name, versions

MFU = (
    "MFU = FLOPs of forward and backward of the audio (model/flops.py: multiply-add = 2, feature encoder forward only,"
    " layers kept by layer drop, no padding) / seconds / FLOP/s of a matrix product in this run"
)


@dataclass
class Result:
    """Measurements of all sides."""

    config: Wav2Vec2Config
    passes: list[Passes] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)  # error by side
    matrix_flops_per_s: float = 0.0
    agreement: Agreement | None = None


def summary(settings: Settings, result: Result) -> dict[str, Any]:
    """Return all figures, ready for JSON."""
    main = result.passes[0].workload
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", "w2v_lightning", *sys.argv[1:]]),
        "device": device_name(settings.machine.device),
        "cpu_threads": torch.get_num_threads(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "versions": versions(),
        "settings": _settings(settings),
        "matrix_tflops_per_s": result.matrix_flops_per_s / 1e12,
        "mfu_formula": MFU,
        "audio_s_per_pass": main.audio_s,
        "steps_per_pass": len(main.steps),
        "sides": [_side(passes, result) for passes in result.passes],
        "failures": result.failures,
        "agreement": result.agreement and result.agreement.as_dict(),
    }


def _settings(settings: Settings) -> dict[str, Any]:
    named = {key: value for key, value in vars(settings).items() if key != "machine"}
    return named | {"device": settings.machine.device.type, "precision": settings.machine.precision}


def _side(passes: Passes, result: Result) -> dict[str, Any]:
    workload, median_s = passes.workload, statistics.median(passes.seconds)
    flops = training_flops(result.config, workload.num_samples, trains_feature_encoder=False)
    return {
        "side": passes.side,
        "group": passes.group,
        "device_seconds": workload.device_seconds,
        "micro_batches_per_step": workload.num_micro_batches,
        "audio_s": workload.audio_s,
        "audio_s_per_s": {
            "median": workload.audio_s / median_s,
            "min": workload.audio_s / max(passes.seconds),
            "max": workload.audio_s / min(passes.seconds),
        },
        "step_ms": 1000 * median_s / len(workload.steps),
        "peak_gib": passes.memory.peak_gib,
        "mfu": flops / median_s / result.matrix_flops_per_s,
        "padding": workload.padding,
        "warm_up_s": passes.warm_up_s,
        "pass_s": passes.seconds,
    }


def write(path: Path, figures: dict[str, Any]) -> None:
    """Write the figures to a JSON file."""
    with atomic_text_file(path) as file:
        json.dump(figures, file, indent=1)


def show(console: Console, figures: dict[str, Any]) -> None:
    """Print a table for each group, and explanations of the figures below."""
    settings = figures["settings"]
    print_line = partial(console.print, highlight=False, soft_wrap=True)
    heading = f"{settings['model']}, {settings['precision']}, {settings['batch_seconds']:g} s a step"
    print_line(f"\n{heading}, on {figures['device']}")
    for group in dict.fromkeys(side["group"] for side in figures["sides"]):
        console.print(_table([side for side in figures["sides"] if side["group"] == group]))
    for side, failure in figures["failures"].items():
        print_line(f"{side}: [red]failed[/red], {failure}")
    print_line(f"Matrix product: {figures['matrix_tflops_per_s']:.3g} TFLOP/s. {MFU}.")
    for line in (_ratio(figures["sides"]), _agreement(figures["agreement"])):
        if line:
            print_line(line)


def _table(sides: list[dict[str, Any]]) -> Table:
    columns = ("side", "device s", "audio-s/s", "range", "step ms", "GiB", "MFU", "padding", "warm-up s")
    table = Table(*columns, box=box.SIMPLE)
    table.columns[0].no_wrap = True
    for side in sides:
        speed, gib = side["audio_s_per_s"], side["peak_gib"]
        table.add_row(
            side["side"],
            f"{side['device_seconds']:g} x {side['micro_batches_per_step']}",
            _rate(speed["median"]),
            f"{_rate(speed['min'])}-{_rate(speed['max'])}",
            f"{side['step_ms']:,.1f}",
            "" if gib is None else f"{gib:.1f}",
            f"{side['mfu']:.1%}",
            f"{side['padding']:.1%}",
            f"{side['warm_up_s']:.1f}",
        )
    return table


def _rate(audio_s_per_s: float) -> str:
    return f"{audio_s_per_s:,.0f}" if audio_s_per_s >= 100 else f"{audio_s_per_s:.3g}"


def _ratio(sides: list[dict[str, Any]]) -> str:
    """Compare each side of ours with the best stock side that was timed in turn with it."""
    stock = [side for side in sides if not side["side"].startswith("ours")]
    if not stock:
        return ""
    best = max(stock, key=lambda side: side["audio_s_per_s"]["median"])
    ours = [side for side in sides if side["group"] == best["group"] and side not in stock]
    ratios = [
        f"{side['side']} at {side['device_seconds']:g} s"
        f" {side['audio_s_per_s']['median'] / best['audio_s_per_s']['median']:.2f}"
        for side in ours
    ]
    return f"Speed-up over the best stock side ({best['side']} at {best['device_seconds']:g} s): {', '.join(ratios)}."


def _agreement(agreement: dict[str, Any] | None) -> str:
    if not agreement:
        return ""
    verdict = "agree" if agreement["holds"] else "[red]do NOT agree[/red]"
    difference, tolerance = agreement["loss_difference"], agreement["tolerance"]
    return (
        f"Loss with the same weights and masks, nothing random: ours {agreement['ours']:.4f}, stock"
        f" {agreement['stock']:.4f}, stock in float32 {agreement['stock_float32']:.4f}: they {verdict} (relative"
        f" difference {difference:.1e}, tolerance {tolerance:g}). Gradient, relative difference to stock's in float32:"
        f" ours {agreement['gradient_difference']:.1e}, stock {agreement['stock_gradient_difference']:.1e}."
    )
