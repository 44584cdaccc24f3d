"""Assumptions of a plan: start-up, interruptions and waits for capacity. Figures of runs replace them if available."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from w2v_lightning.perf_model.runs import Run


@dataclass(frozen=True)
class Assumption:
    """Value and, in words, its source."""

    value: float
    basis: str


@dataclass(frozen=True)
class Assumptions:
    """Assumptions about training jobs.

    Args:
        startup_s: seconds from getting instances to the first step; billed.
        wait_s: seconds of waiting for spot instances, at first and after each interruption; not billed.
        interruptions_per_instance_hour: rate of spot interruptions.
    """

    startup_s: Assumption
    wait_s: Assumption
    interruptions_per_instance_hour: Assumption

    def described(self, is_spot: bool) -> list[str]:
        """Return one line per assumption; on demand there are no waits and no interruptions."""
        lines = [getattr(self, field.name).basis for field in fields(self)]
        return lines if is_spot else lines[:1]


def assumptions(runs: Sequence[Run], defaults: Mapping[str, Any]) -> Assumptions:
    """Return figures of the runs, and those of defaults.yaml where the runs have none."""
    jobs = [run for run in runs if run.where == "sagemaker" and run.is_measured]
    wait_minutes = defaults["capacity_wait_minutes"]
    return Assumptions(
        startup_s=_startup(runs, jobs, defaults["startup_minutes"]),
        wait_s=Assumption(60 * wait_minutes, f"{wait_minutes:g} min of waiting for spot instances: assumed"),
        interruptions_per_instance_hour=_rate(jobs, defaults["interruptions_per_instance_hour"]),
    )


def _startup(runs: Sequence[Run], jobs: Sequence[Run], minutes: float) -> Assumption:
    """Billed time besides training and validation, per start of a job."""
    if jobs:
        seconds = statistics.median(_startup_s(run) for run in jobs)
        return Assumption(seconds, f"{seconds / 60:.1f} min of start-up: median of {len(jobs)} studied jobs")
    measured = [run.throughput["startup_s"] for run in runs if run.throughput.get("startup_s")]
    first_step_s = statistics.median(measured) if measured else 0.0
    rest = f", and {first_step_s:.0f} s until the first step: median of {len(measured)} runs" if measured else ""
    return Assumption(60 * minutes + first_step_s, f"{minutes:g} min of start-up until `fit` starts: assumed{rest}")


def _startup_s(run: Run) -> float:
    other_s = run.throughput["train_seconds"] + run.throughput.get("validation", {}).get("seconds", 0.0)
    return max(0.0, run.training_s - other_s) / max(1, len(run.segments))


def _rate(jobs: Sequence[Run], assumed: float) -> Assumption:
    """Rate of interruptions; the assumed rate counts like one observed interruption (a gamma prior of shape 1)."""
    spot = [run for run in jobs if run.cell["is_spot"]]
    if not spot:
        return Assumption(
            assumed, f"one interruption in {1 / assumed:g} instance-hours: assumed; AWS guarantees no rate"
        )
    hours = sum(run.training_s * run.cell["count"] / 3600 for run in spot)
    observed = sum(run.interruptions for run in spot)
    rate = (1 + observed) / (1 / assumed + hours)
    basis = f"{observed} observed in {hours:.1f}, and one in {1 / assumed:g} assumed beforehand"
    return Assumption(rate, f"one interruption in {1 / rate:.3g} instance-hours of spot: {basis}")
