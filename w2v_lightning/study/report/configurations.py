"""A study's runs, repetitions of a cell together, with what was measured of them and how it spread."""

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean, stdev
from typing import Any
from urllib.parse import quote

from w2v_lightning.errors import InputError
from w2v_lightning.perf_model import runs
from w2v_lightning.perf_model.fitted import Fitted
from w2v_lightning.perf_model.runs import Run
from w2v_lightning.perf_model.specs import short_name
from w2v_lightning.perf_model.step_time import LAUNCHING, Setup, Terms
from w2v_lightning.reporting.document import Link
from w2v_lightning.study.collect import FINISHED
from w2v_lightning.study.queue import STATE

NORMAL_90 = 1.645  # standard errors to both sides hold 90 %


@dataclass(frozen=True)
class Recorded:
    """A run, and where its run.json lies, seen from the report."""

    run: Run
    href: str


@dataclass(frozen=True)
class Spread:
    """A mean; from `low` to `high` is what was seen, None where it was seen once."""

    mean: float
    low: float | None = None
    high: float | None = None

    @property
    def half(self) -> float | None:
        return None if self.low is None or self.high is None else (self.high - self.low) / 2

    def times(self, factor: float) -> "Spread":
        return Spread(*(None if value is None else factor * value for value in (self.mean, self.low, self.high)))


@dataclass(frozen=True)
class Configuration:
    """The repetitions of a cell that were measured, at least one; `study` is the folder of the study that it is of."""

    name: str
    recorded: tuple[Recorded, ...]
    study: str = ""

    @property
    def runs(self) -> list[Run]:
        return [one.run for one in self.recorded]

    @property
    def cell(self) -> dict[str, Any]:
        return self.runs[0].cell

    @cached_property
    def setup(self) -> Setup:
        return self.runs[0].setup

    @property
    def world_size(self) -> int:
        return self.setup.world_size

    @property
    def is_gpu(self) -> bool:
        return self.runs[0].throughput["host"]["threads"] is None

    @property
    def href(self) -> str:
        return self.recorded[0].href

    @property
    def links(self) -> list[str | Link]:
        """One for each repetition."""
        links = [Link(str(i), one.href) for i, one in enumerate(self.recorded, 1)]
        return [part for link in links for part in (link, " ")][:-1]

    @cached_property
    def terms(self) -> Terms:
        """Means of the repetitions' parts."""
        measured = [run.measured for run in self.runs]
        return Terms(**{field.name: fmean(getattr(m, field.name) for m in measured) for field in fields(Terms)})

    def bottleneck(self, fitted: Fitted | str) -> str:
        """As measured; but whether what looks like computing is the host's launching, only the model says."""
        measured = self.terms.bottleneck
        if measured != "compute" or isinstance(fitted, str):
            return measured
        predicted = fitted.predict(self.setup).bottleneck
        return predicted if predicted == LAUNCHING else measured

    @cached_property
    def audio_s_per_s(self) -> Spread:
        """Over repetitions, the slowest to the fastest; of a single one, 90 % of the mean over its windows."""
        if len(self.runs) > 1:
            return _spread([run.audio_s_per_s for run in self.runs])
        rates = [window["audio_s"] / window["seconds"] for window in self.runs[0].steady_windows]
        mean = self.runs[0].audio_s_per_s
        if len(rates) < 2:
            return Spread(mean)
        error = NORMAL_90 * stdev(rates) / len(rates) ** 0.5
        return Spread(mean, mean - error, mean + error)

    @property
    def epoch_s(self) -> float:
        """At the measured pace, without start-up and validation."""
        return fmean(run.throughput["workload"]["audio_s_per_epoch"] / run.audio_s_per_s for run in self.runs)

    @property
    def utterances_per_s(self) -> float:
        """What the original study calls samples per second."""
        return fmean(run.steady("utterances") / run.steady("seconds") for run in self.runs)

    @property
    def gpu_utilisation(self) -> Spread | None:
        """Share of the time in which a kernel ran."""
        return self._use_of_gpus(lambda run: run.gpu_utilisation)

    @property
    def energy_wh_per_audio_hour(self) -> Spread | None:
        """Of all GPUs."""
        return self._use_of_gpus(lambda run: run.energy_wh_per_audio_hour)

    @property
    def gpu_use_has_warm_up(self) -> bool:
        """None of its runs recorded NVML's readings but over the whole run."""
        return all(run.gpu_use_has_warm_up for run in self.runs)

    def spread(self, of: Callable[[Run], float | None]) -> Spread | None:
        """Of a figure that not every run has; None where none has it."""
        return _spread_of(self.runs, of)

    def _use_of_gpus(self, of: Callable[[Run], float | None]) -> Spread | None:
        """Of the runs that have it behind the warm-up, as far as there are any."""
        behind = [run for run in self.runs if not run.gpu_use_has_warm_up]
        return _spread_of(behind or self.runs, of)


@dataclass(frozen=True)
class Study:
    """All runs below a folder: those that were measured, by cell, that did not get through, that still run."""

    name: str
    configurations: tuple[Configuration, ...]
    failed: tuple[Recorded, ...]
    running: tuple[str, ...]

    @cached_property
    def physical(self) -> list[Configuration]:
        """What matters for anything but money."""
        return pooled(self.configurations)

    @property
    def recorded(self) -> list[Recorded]:
        return [one for configuration in self.configurations for one in configuration.recorded]


def load(folder: Path, report: Path) -> Study:
    """Every run.json below `folder`, of one study or of several; links lead there from `report`'s folder.

    Raises:
        InputError: there is none, or one cannot be read.
    """
    paths = runs.find(folder)
    found = [Recorded(runs.read(path), _href(path, report)) for path in paths]
    measured: dict[tuple[str, str], list[Recorded]] = {}
    for path, one in zip(paths, found, strict=True):
        if one.run.is_measured:
            study = path.parent.parent.relative_to(folder).as_posix() if path.parent != folder else "."
            measured.setdefault((study, one.run.cell["name"]), []).append(one)
    are_several = len({study for study, _ in measured}) > 1  # who may all have a cell of the same name
    configurations = [
        Configuration(f"{study}/{name}" if are_several else name, tuple(its), study)
        for (study, name), its in measured.items()
    ]
    failed = [one for one in found if one.run.outcome != FINISHED or not one.run.is_measured]
    return Study(folder.resolve().name, tuple(sorted(configurations, key=_order)), tuple(failed), _running(folder))


def by_device(configurations: Iterable[Configuration]) -> dict[str, list[Configuration]]:
    """Those that compute on the same: their times and rates fit on one axis."""
    groups: dict[str, list[Configuration]] = {}
    for one in configurations:
        groups.setdefault(short_name(one.setup.device), []).append(one)
    return groups


def pooled(configurations: Iterable[Configuration]) -> list[Configuration]:
    """On demand and spot of the same as one: how it is paid for makes no step faster."""
    return [
        replace(min(its, key=lambda one: len(one.name)), recorded=tuple(r for one in its for r in one.recorded))
        for its in paid_in_two_ways(configurations)
    ]


def paid_in_two_ways(configurations: Iterable[Configuration]) -> list[list[Configuration]]:
    """On demand and spot of the same together, in that order, as far as there are both."""
    groups: dict[str, list[Configuration]] = {}
    for one in configurations:
        same = {name: value for name, value in one.cell.items() if name not in ("name", "is_spot", "repetition")}
        groups.setdefault(json.dumps([one.study, same], sort_keys=True), []).append(one)
    return [sorted(its, key=lambda one: one.cell["is_spot"]) for its in groups.values()]


def unit(configurations: Sequence[Configuration]) -> str:
    """What is counted where they are counted."""
    return "GPUs" if all(one.is_gpu for one in configurations) else "processes"


def _order(one: Configuration) -> tuple:
    hardware = one.cell["hardware"]
    return one.setup.device, len(hardware), hardware, one.setup.link, one.world_size, one.name  # 2xlarge, 12xlarge


def _running(folder: Path) -> tuple[str, ...]:
    """What was started and has no run.json yet."""
    found: list[str] = []
    for path in sorted(folder.rglob(STATE)):
        try:
            started = json.loads(path.read_text(encoding="utf-8"))["cells"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} cannot be read ({error}): `study run` says what to do.") from None
        found += [name for name in started if not (path.parent / name / runs.FILE).exists()]
    return tuple(found)


def _href(path: Path, report: Path) -> str:
    return quote(Path(os.path.relpath(path, report.parent)).as_posix())


def _spread_of(runs: Iterable[Run], of: Callable[[Run], float | None]) -> Spread | None:
    values = [value for run in runs if (value := of(run)) is not None]
    return _spread(values) if values else None


def _spread(values: list[float]) -> Spread:
    return Spread(fmean(values), min(values), max(values)) if len(values) > 1 else Spread(values[0])
