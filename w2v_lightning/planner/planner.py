"""Which instances, how many, on demand or spot: every candidate's time and money, and the best of them.

A candidate's time is drawn many times: a step's time from the fitted model with all its uncertainty, on spot the
interruptions as well. Means are over these draws, and the 90 % bound is what nine of ten stay below.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from w2v_lightning.catalog.cost import SPOT_SAVING_RANGE, training_usd
from w2v_lightning.catalog.defaults import MAX_HOURS
from w2v_lightning.catalog.prices import Price, SpotPrice, on_demand, spot_prices
from w2v_lightning.errors import InputError
from w2v_lightning.perf_model.step_time import Setup, Terms
from w2v_lightning.planner import checkpoint_interval, interruptions
from w2v_lightning.planner.assumptions import Assumptions
from w2v_lightning.planner.candidates import Candidate, Task, setup_of
from w2v_lightning.planner.interruptions import Drawn, Interruptions
from w2v_lightning.reporting.units import percent

DRAWS = 2000
BOUND = 0.9


class StepTime(Protocol):
    """What a fitted model (fitted.py) is asked."""

    def predict(self, setup: Setup) -> Any: ...

    def draws(self, setup: Setup, rng: np.random.Generator, n: int) -> np.ndarray: ...


@dataclass(frozen=True)
class Estimate:
    """Of one candidate.

    Args:
        hours: until the model is trained, waiting for capacity included; the mean.
        hours_p90: nine of ten stay below.
        usd, usd_p90: the same of money.
        billed_hours_p90: of each instance, before a spot job's discount.
        risk: of missing the deadline; None where there is none.
        interruptions: the mean.
        terms: parts of a step.
        basis: "measured": these instances were studied; "predicted": they follow from others.
        reasons: what that rests on.
        price: on demand.
        saving: of spot, in words; empty on demand.
    """

    candidate: Candidate
    hours: float
    hours_p90: float
    usd: float
    usd_p90: float
    billed_hours_p90: float
    risk: float | None
    interruptions: float
    terms: Terms
    basis: str
    reasons: tuple[str, ...]
    price: Price
    saving: str


def estimates(
    of: Iterable[Candidate],
    task: Task,
    fitted: StepTime,
    assumed: Assumptions,
    region: str,
    deadline_h: float | None = None,
) -> tuple[list[Estimate], dict[str, str]]:
    """Of each candidate that can train the task; of the others, why not."""
    found, left_out = [], {}
    for candidate in of:
        try:
            found.append(estimate(candidate, task, fitted, assumed, region, deadline_h))
        except InputError as error:
            left_out[str(candidate)] = str(error)
    return found, left_out


def estimate(
    candidate: Candidate,
    task: Task,
    fitted: StepTime,
    assumed: Assumptions,
    region: str,
    deadline_h: float | None = None,
) -> Estimate:
    """Time and money of one candidate.

    Raises:
        InputError: it cannot train the task, or nothing is known of its speed.
    """
    rng = np.random.default_rng(0)
    prediction, drawn = draw(candidate, task, fitted, assumed, rng)
    hours, billed_s = drawn.wall_s_N / 3600, drawn.billed_s_N
    if bound(billed_s) > MAX_HOURS * 3600:
        raise InputError("takes longer than the 28 days that SageMaker lets a training job run")
    price = on_demand(candidate.instance_type, region)
    (low, high), saving = saving_of(candidate, region)
    usd = training_usd(billed_s * (1 - rng.uniform(low, high, DRAWS)), candidate.count, price.usd_per_hour)
    return Estimate(
        candidate=candidate,
        hours=mean(hours),
        hours_p90=bound(hours),
        usd=mean(usd),
        usd_p90=bound(usd),
        billed_hours_p90=bound(billed_s) / 3600,
        risk=None if deadline_h is None else float((hours > deadline_h).mean()),
        interruptions=float(drawn.interruptions_N.mean()),
        terms=prediction.terms,
        basis=prediction.basis,
        reasons=prediction.reasons,
        price=price,
        saving=saving,
    )


def draw(
    candidate: Candidate, task: Task, fitted: StepTime, assumed: Assumptions, rng: np.random.Generator
) -> tuple[Any, Drawn]:
    """The prediction of a step, and DRAWS runs.

    Raises:
        InputError: as `estimate`.
    """
    setup = setup_of(candidate, task)
    prediction = fitted.predict(setup)
    work_s = task.steps * fitted.draws(setup, rng, DRAWS)
    by = interruptions_of(candidate, task, assumed, prediction.terms.step_s)
    drawn = interruptions.draw(work_s, by, rng)
    if np.isfinite(drawn.wall_s_N).mean() < BOUND:
        raise InputError("interrupted so often that it would hardly end")
    return prediction, drawn


def bound(values: np.ndarray) -> float:
    """The least that nine of ten do not exceed; those that never end are infinite."""
    return float(np.quantile(values, BOUND, method="inverted_cdf"))


def mean(values: np.ndarray) -> float:
    """Of those that end."""
    return float(values[np.isfinite(values)].mean())


def interruptions_of(candidate: Candidate, task: Task, assumed: Assumptions, step_s: float) -> Interruptions:
    """How the candidate would be interrupted; on demand not at all, and it has its instances at once.

    On demand a checkpoint is written beside training and costs nothing.
    """
    from w2v_lightning.checkpoints.recent import Interval  # slow to import
    from w2v_lightning.config import DEFAULT_CHECKPOINT_EVERY

    startup_s, rate = assumed.startup_s.value, assumed.interruptions_per_instance_hour.value
    every = task.config["checkpoint_every"]
    if every == DEFAULT_CHECKPOINT_EVERY:  # then `submit` chooses
        every = checkpoint_interval.checkpoint_every(task.config, candidate.count, rate)
    interval = Interval.parse(every)
    interval_s = interval.seconds or (interval.steps or task.steps) * step_s
    if not candidate.is_spot:
        return Interruptions(0.0, interval_s, 0.0, startup_s, 0.0)
    return Interruptions(
        rate * candidate.count, interval_s, checkpoint_interval.save_s(task.config), startup_s, assumed.wait_s.value
    )


def saving_of(candidate: Candidate, region: str) -> tuple[tuple[float, float], str]:
    """From which range spot's saving is drawn, and in words where that is from."""
    if not candidate.is_spot:
        return (0.0, 0.0), ""
    low, high = SPOT_SAVING_RANGE
    found = spot_prices().get((candidate.instance_type, region))
    if found is None:
        return (low, high), f"{100 * low:.0f} to {percent(high)}: assumed, as job logs of other accounts had it"
    return _around(found, high - low), f"around {found.described()}"


def _around(found: SpotPrice, width: float) -> tuple[float, float]:
    low, high = found.saving - width / 2, found.saving + width / 2
    return max(0.0, low), min(1.0, high)


# ---- the best of them -----------------------------------------------------------------------------------------------


def pareto(of: Iterable[Estimate]) -> list[Estimate]:
    """Those that no other one beats in expected time and money, the cheapest first."""
    front: list[Estimate] = []
    for one in sorted(of, key=lambda one: (one.usd, one.hours)):
        if not front or one.hours < front[-1].hours:
            front.append(one)
    return front


@dataclass(frozen=True)
class Recommendation:
    """What to do. Without a `best`, `why` says what is in the way and what would be nearest."""

    best: Estimate | None
    why: str


def recommend(of: Sequence[Estimate], deadline_h: float | None, budget_usd: float | None) -> Recommendation:
    """The cheapest whose 90 % bounds are within deadline and budget; of several, the fastest."""
    in_time = [one for one in of if deadline_h is None or one.hours_p90 <= deadline_h]
    affordable = [one for one in of if budget_usd is None or one.usd_p90 <= budget_usd]
    both = [one for one in in_time if one in affordable]
    if both:
        return Recommendation(min(both, key=lambda one: (one.usd, one.hours)), "")
    if not of:
        return Recommendation(None, "no candidate can train this.")
    if in_time:
        nearest = min(in_time, key=lambda one: one.usd_p90)
        cheapest = "the cheapest" if deadline_h is None else "what ends in time"
        return Recommendation(
            None, f"{cheapest} costs ${nearest.usd_p90:.2f} (90 % bound) at least: {nearest.candidate}."
        )
    nearest = min(affordable or of, key=lambda one: one.hours_p90)
    within = " for that money" if affordable and budget_usd is not None else ""
    return Recommendation(
        None, f"the fastest{within} takes {nearest.hours_p90:.1f} h (90 % bound): {nearest.candidate}."
    )
