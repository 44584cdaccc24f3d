"""What a plan has to assume: start-up, interruptions, waiting for capacity. What runs have shown takes its place."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from w2v_lightning.perf_model.runs import Run


@dataclass(frozen=True)
class Assumption:
    """A number and, in words, where it is from."""

    value: float
    basis: str


@dataclass(frozen=True)
class Assumptions:
    """Of training jobs.

    Args:
        startup_s: from having instances to the first step; paid for.
        wait_s: for spot instances, at first and after each interruption; not paid for.
        interruptions_per_instance_hour: on spot.
    """

    startup_s: Assumption
    wait_s: Assumption
    interruptions_per_instance_hour: Assumption

    def described(self, is_spot: bool) -> list[str]:
        """One line each; waiting and interruptions are spot's."""
        found = [getattr(self, field.name).basis for field in fields(self)]
        return found if is_spot else found[:1]


def assumptions(runs: Sequence[Run], defaults: Mapping[str, Any]) -> Assumptions:
    """From runs, and where they say nothing from defaults.yaml."""
    jobs = [run for run in runs if run.where == "sagemaker" and run.is_measured]
    wait_minutes = defaults["capacity_wait_minutes"]
    return Assumptions(
        startup_s=_startup(runs, jobs, defaults["startup_minutes"]),
        wait_s=Assumption(60 * wait_minutes, f"{wait_minutes:g} min until there are spot instances: assumed"),
        interruptions_per_instance_hour=_rate(jobs, defaults["interruptions_per_instance_hour"]),
    )


def _startup(runs: Sequence[Run], jobs: Sequence[Run], minutes: float) -> Assumption:
    """All that jobs were paid for besides training and validation, for each of their starts."""
    if jobs:
        seconds = statistics.median(_startup_s(run) for run in jobs)
        return Assumption(seconds, f"{seconds / 60:.1f} min to start: the median of {len(jobs)} studied jobs")
    measured = [run.throughput["startup_s"] for run in runs if run.throughput.get("startup_s")]
    own_s = statistics.median(measured) if measured else 0.0
    rest = f", and {own_s:.0f} s until the first step, the median of {len(measured)} runs" if measured else ""
    return Assumption(60 * minutes + own_s, f"{minutes:g} min until `fit` is started: assumed{rest}")


def _startup_s(run: Run) -> float:
    other_s = run.throughput["train_seconds"] + run.throughput.get("validation", {}).get("seconds", 0.0)
    return max(0.0, run.training_s - other_s) / max(1, len(run.segments))


def _rate(jobs: Sequence[Run], assumed: float) -> Assumption:
    """Where few were seen, what is assumed counts like one interruption that was seen (a gamma prior of shape 1)."""
    spot = [run for run in jobs if run.cell["is_spot"]]
    if not spot:
        return Assumption(assumed, f"one interruption in {1 / assumed:g} instance-hours: assumed, AWS promises no rate")
    hours = sum(run.training_s * run.cell["count"] / 3600 for run in spot)
    seen = sum(run.interruptions for run in spot)
    rate = (1 + seen) / (1 / assumed + hours)
    basis = f"{seen} seen in {hours:.1f}, and one in {1 / assumed:g} assumed beforehand"
    return Assumption(rate, f"one interruption in {1 / rate:.3g} instance-hours of spot: {basis}")
