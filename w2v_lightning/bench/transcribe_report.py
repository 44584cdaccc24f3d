"""Figures of `bench transcribe`, as tables and as JSON."""

import json
import shlex
import statistics
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from w2v_lightning.bench.pipeline import Variant
from w2v_lightning.bench.transcript_parity import Agreement
from w2v_lightning.runtime.files import atomic_text_file
from w2v_lightning.runtime.hardware import device_name, versions

OURS = "w2v_lightning"
SHOWN_VARIANTS = 8


@dataclass(frozen=True)
class Pass:
    """Pass of one side over an excerpt."""

    side: str
    audio_s: float
    elapsed_s: float

    @property
    def audio_s_per_s(self) -> float:
        return self.audio_s / self.elapsed_s


@dataclass(frozen=True)
class Result:
    """Measurements of all variants and sides."""

    device: torch.device
    precision: str
    feeds: tuple[str, ...]  # feeds of the pipeline that were measured
    trials: dict[Variant, float | None]  # audio-s/s of each variant; None: not enough memory
    best: Variant
    passes: list[Pass]  # of ours and the best variant, in turn
    stages: dict[str, float]  # audio-s/s of each stage of ours alone
    agreements: list[Agreement]

    def speeds(self, side: str) -> tuple[float, float, float]:
        """Return median, minimum and maximum of the audio-s/s."""
        rates = [p.audio_s_per_s for p in self.passes if p.side == side]
        return statistics.median(rates), min(rates), max(rates)

    @property
    def ratio(self) -> float:
        return self.speeds(OURS)[0] / self.speeds(str(self.best))[0]


def show(console: Console, result: Result) -> None:
    """Print all tables; they fit into 100 columns."""
    console.width = max(console.width, 100)
    console.print(f"{device_name(result.device)}, ours in {result.precision}; " + _listed(versions()))
    tables = (_speeds(result), _trials(result), _stages(result), _agreements(result))
    for table in tables:
        console.print(table)


def write(path: Path, result: Result, settings: dict[str, Any]) -> None:
    """Write all figures to a JSON file, with settings, device and versions."""
    report = {
        "command": shlex.join(["python", "-m", "w2v_lightning", *sys.argv[1:]]),
        "settings": settings | {"feeds": ",".join(result.feeds), "precision": result.precision},
        "device": device_name(result.device),
        "versions": versions(),
        "audio_s_per_s": {side: _range(result, side) for side in _sides(result)},
        "ratio": result.ratio,
        "passes": [asdict(p) | {"audio_s_per_s": p.audio_s_per_s} for p in result.passes],
        "trials": [asdict(variant) | {"audio_s_per_s": rate} for variant, rate in result.trials.items()],
        "stages": result.stages,
        "agreements": [asdict(agreement) for agreement in result.agreements],
    }
    with atomic_text_file(path) as file:
        json.dump(report, file, indent=1)


def _speeds(result: Result) -> Table:
    table = _table("side", "audio-s/s", "range", "hours per second", title="Speed, medians")
    for side in _sides(result):
        rates = _range(result, side)
        span = f"{rates['min']:,.0f}-{rates['max']:,.0f}"
        table.add_row(side, f"{rates['median']:,.0f}", span, f"{rates['median'] / 3600:.3f}")
    table.caption = f"Speed-up: {result.ratio:.2f}"
    return table


def _trials(result: Result) -> Table:
    by_speed = sorted(result.trials.items(), key=lambda item: -(item[1] or 0.0))
    shown = by_speed[:SHOWN_VARIANTS]
    feeds = ", ".join(result.feeds)
    title = f"The pipeline on an excerpt, {len(shown)} fastest of {len(by_speed)} variants (feeds: {feeds})"
    table = _table("variant", "audio-s/s", title=title)
    for variant, rate in shown:
        table.add_row(str(variant), "out of memory" if rate is None else f"{rate:,.0f}")
    return table


def _stages(result: Result) -> Table:
    table = _table("stage of ours", "audio-s/s alone", title="Where the time goes: the slowest stage is the limit")
    for stage, rate in result.stages.items():
        table.add_row(stage, f"{rate:,.0f}")
    return table


def _agreements(result: Result) -> Table:
    title = "Texts compared with those of the pipeline for one utterance at a time in float32"
    table = _table("way", "equal", "CER", title=title)
    for agreement in result.agreements:
        table.add_row(agreement.way, f"{agreement.equal:.1%}", f"{agreement.cer:.2%}")
    return table


def _table(*columns: str, title: str) -> Table:
    table = Table(box=box.SIMPLE, title=title, title_justify="left", caption_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    return table


def _sides(result: Result) -> list[str]:
    return list(dict.fromkeys(p.side for p in result.passes))


def _range(result: Result, side: str) -> dict[str, float]:
    return dict(zip(("median", "min", "max"), result.speeds(side), strict=True))


def _listed(values: dict[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
