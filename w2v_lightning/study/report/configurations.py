"""Runs of a study, grouped by configuration, with their measurements and how these spread."""

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean, stdev
from typing import Any
from urllib.parse import quote

from w2v_lightning.perf_model import runs
from w2v_lightning.perf_model.fitted import Fitted
from w2v_lightning.perf_model.runs import Run
from w2v_lightning.perf_model.specs import short_name
from w2v_lightning.perf_model.step_time import LAUNCHING, Setup, Terms
from w2v_lightning.reporting.document import Link
from w2v_lightning.runtime.schema import check_content, read_json
from w2v_lightning.study.collect import FINISHED
from w2v_lightning.study.queue import STATE, State

NORMAL_90 = 1.645  # standard errors to both sides that contain 90 %


@dataclass(frozen=True)
class Recorded:
    """Run, and the link from the report to its run.json."""

    run: Run
    href: str


@dataclass(frozen=True)
class Spread:
    """Mean, and the range from `low` to `high`; None after a single measurement."""

    mean: float
    low: float | None = None
    high: float | None = None

    @property
    def half(self) -> float | None:
        """Half of the range."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2

    def times(self, factor: float) -> "Spread":
        """Return the spread in another unit."""
        low, high = (None if bound is None else factor * bound for bound in (self.low, self.high))
        return Spread(factor * self.mean, low, high)


@dataclass(frozen=True)
class Configuration:
    """Measured repetitions of a cell, at least one; `study` is the folder of the study that has the cell."""

    name: str
    recorded: tuple[Recorded, ...]
    study: str = ""

    @property
    def runs(self) -> list[Run]:
        return [recorded.run for recorded in self.recorded]

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
    def link(self) -> Link:
        """Name of the configuration, which leads to its first run."""
        return Link(self.name, self.href)

    @property
    def href(self) -> str:
        return self.recorded[0].href

    @property
    def links(self) -> list[str | Link]:
        """Link to each repetition."""
        links = [Link(str(i), recorded.href) for i, recorded in enumerate(self.recorded, 1)]
        return [part for link in links for part in (link, " ")][:-1]

    @cached_property
    def terms(self) -> Terms:
        """Parts of a step, means over the repetitions."""
        measured = [run.measured for run in self.runs]
        return Terms(**{field.name: fmean(getattr(m, field.name) for m in measured) for field in fields(Terms)})

    def bottleneck(self, fitted: Fitted | str) -> str:
        """Return the measured bottleneck. Only the model can tell kernel launching from computing."""
        measured = self.terms.bottleneck
        if measured != "compute" or isinstance(fitted, str):
            return measured
        predicted = fitted.predict(self.setup).bottleneck
        return predicted if predicted == LAUNCHING else measured

    @cached_property
    def audio_s_per_s(self) -> Spread:
        """Throughput: slowest to fastest repetition; for a single run the 90 % interval of the mean of its windows."""
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
        """Time of an epoch at the measured throughput, without start-up and validation."""
        return fmean(run.throughput["workload"]["audio_s_per_epoch"] / run.audio_s_per_s for run in self.runs)

    @property
    def utterances_per_s(self) -> float:
        """Utterances per second; the original study calls them samples."""
        return fmean(run.steady("utterances") / run.steady("seconds") for run in self.runs)

    @property
    def gpu_utilisation(self) -> Spread | None:
        """Share of the time in which a kernel ran."""
        return self._gpu_use(lambda run: run.gpu_utilisation)

    @property
    def energy_wh_per_audio_hour(self) -> Spread | None:
        """Energy of all GPUs per hour of audio."""
        return self._gpu_use(lambda run: run.energy_wh_per_audio_hour)

    @property
    def gpu_use_has_warm_up(self) -> bool:
        """True if all runs recorded GPU use over the whole run only, warm-up included."""
        return all(run.gpu_use_has_warm_up for run in self.runs)

    def spread(self, value_of: Callable[[Run], float | None]) -> Spread | None:
        """Return the spread of a figure over the runs that have it; None if no run has it."""
        return _spread_over(self.runs, value_of)

    def _gpu_use(self, value_of: Callable[[Run], float | None]) -> Spread | None:
        """Return a figure after the warm-up if any run recorded it, otherwise over the whole runs."""
        after_warm_up = [run for run in self.runs if not run.gpu_use_has_warm_up]
        return _spread_over(after_warm_up or self.runs, value_of)


@dataclass(frozen=True)
class Study:
    """Runs below a folder: measured ones by cell, failed ones, and the names of those that still run."""

    name: str
    configurations: tuple[Configuration, ...]
    failed: tuple[Recorded, ...]
    running: tuple[str, ...]

    @cached_property
    def physical(self) -> list[Configuration]:
        """Configurations with on demand and spot pooled, for everything but money."""
        return pooled(self.configurations)

    @property
    def recorded(self) -> list[Recorded]:
        return [recorded for configuration in self.configurations for recorded in configuration.recorded]


def load(folder: Path, report: Path) -> Study:
    """Read every run.json below `folder`, of one study or of several; links are relative to `report`'s folder.

    Raises:
        InputError: there is no run.json, or one cannot be read.
    """
    paths = runs.find(folder)
    recorded = [Recorded(runs.read(path), _href(path, report)) for path in paths]
    measured: dict[tuple[str, str], list[Recorded]] = {}
    for path, each in zip(paths, recorded, strict=True):
        if each.run.is_measured:
            study = path.parent.parent.relative_to(folder).as_posix() if path.parent != folder else "."
            measured.setdefault((study, each.run.cell["name"]), []).append(each)
    has_studies = len({study for study, _ in measured}) > 1  # each may have a cell of the same name
    configurations = [
        Configuration(f"{study}/{name}" if has_studies else name, tuple(repetitions), study)
        for (study, name), repetitions in measured.items()
    ]
    failed = [each for each in recorded if each.run.outcome != FINISHED or not each.run.is_measured]
    return Study(folder.resolve().name, tuple(sorted(configurations, key=_order)), tuple(failed), _running(folder))


def by_device(configurations: Iterable[Configuration]) -> dict[str, list[Configuration]]:
    """Group configurations by the model of their devices: their times and rates fit on one axis."""
    groups: dict[str, list[Configuration]] = {}
    for configuration in configurations:
        groups.setdefault(short_name(configuration.setup.device), []).append(configuration)
    return groups


def pooled(configurations: Iterable[Configuration]) -> list[Configuration]:
    """Pool on demand and spot runs of the same cell: how a machine is paid for does not change its speed."""
    return [
        replace(
            min(group, key=lambda configuration: len(configuration.name)),
            recorded=tuple(recorded for configuration in group for recorded in configuration.recorded),
        )
        for group in by_cluster(configurations)
    ]


def by_cluster(configurations: Iterable[Configuration]) -> list[list[Configuration]]:
    """Group configurations that differ only in how they are paid for: on demand first, then spot."""
    groups: dict[str, list[Configuration]] = {}
    for configuration in configurations:
        cell = configuration.cell
        same = {name: value for name, value in cell.items() if name not in ("name", "is_spot", "repetition")}
        groups.setdefault(json.dumps([configuration.study, same], sort_keys=True), []).append(configuration)
    return [sorted(group, key=lambda configuration: configuration.cell["is_spot"]) for group in groups.values()]


def device_unit(configurations: Sequence[Configuration]) -> str:
    """Return the axis label for the number of devices: "GPUs" or "processes"."""
    return "GPUs" if all(configuration.is_gpu for configuration in configurations) else "processes"


def _order(configuration: Configuration) -> tuple[str, int, str, str, int, str]:
    hardware, setup = configuration.cell["hardware"], configuration.setup
    # The length sorts ml.g4dn.2xlarge before ml.g4dn.12xlarge.
    return setup.device, len(hardware), hardware, setup.link, setup.world_size, configuration.name


def _running(folder: Path) -> tuple[str, ...]:
    """Return the names of runs that were started and have no run.json yet."""
    running: list[str] = []
    for path in sorted(folder.rglob(STATE)):
        remedy = "`study run` says what to do."
        state = read_json(path, remedy)
        check_content(state, State, path, remedy)
        started = state["cells"]
        running += [name for name in started if not (path.parent / name / runs.FILE).exists()]
    return tuple(running)


def _href(path: Path, report: Path) -> str:
    return quote(Path(os.path.relpath(path, report.parent)).as_posix())


def _spread_over(runs: Iterable[Run], value_of: Callable[[Run], float | None]) -> Spread | None:
    values = [value for run in runs if (value := value_of(run)) is not None]
    return _spread(values) if values else None


def _spread(values: list[float]) -> Spread:
    return Spread(fmean(values), min(values), max(values)) if len(values) > 1 else Spread(values[0])
