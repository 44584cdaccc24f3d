"""Time and cost of each candidate (instances, count, on demand or spot), and the best candidate.

A candidate's time is drawn many times: the step time from the fitted model with its uncertainty and, on spot, the
interruptions. Means are over these draws; nine of ten draws do not exceed the 90 % bound.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np

from w2v_lightning.catalog.cost import SPOT_SAVING_RANGE, training_usd
from w2v_lightning.catalog.dated import Price, SpotPrice
from w2v_lightning.catalog.defaults import MAX_HOURS
from w2v_lightning.catalog.prices import on_demand, spot_prices
from w2v_lightning.errors import InputError
from w2v_lightning.perf_model.fitted import Prediction
from w2v_lightning.perf_model.step_time import Setup, Terms
from w2v_lightning.planner import checkpoint_interval, interruptions
from w2v_lightning.planner.assumptions import Assumptions
from w2v_lightning.planner.candidates import Candidate, Task, setup_of
from w2v_lightning.planner.interruptions import Drawn, Interruptions
from w2v_lightning.reporting.units import percent

DRAWS = 2000
BOUND = 0.9


class StepTime(Protocol):
    """Interface of a fitted step-time model (`perf_model.fitted.Fitted`)."""

    def predict(self, setup: Setup) -> Prediction: ...

    def draws(self, setup: Setup, rng: np.random.Generator, n: int) -> np.ndarray: ...


@dataclass(frozen=True)
class Estimate:
    """Time and cost of one candidate.

    Args:
        candidate: instances to train on.
        hours: mean hours until the model is trained, waits for capacity included.
        hours_p90: 90 % bound of `hours`.
        usd, usd_p90: mean and 90 % bound of the cost, in dollars.
        billed_hours_p90: 90 % bound of the billed hours of each instance, before a spot job's discount.
        risk: probability of missing the deadline; None without a deadline.
        interruptions: mean number of interruptions.
        terms: parts of a step's time.
        basis: "measured" if these instances were studied, "predicted" if the time follows from others.
        reasons: parameters behind a prediction that no run has measured, with their sources.
        price: on-demand price of a machine; outside SageMaker, the spot price if it is rented on spot.
        saving: source of spot's saving, in words; empty on demand, and where the price is that of spot.
        is_old: whether the price, or the price behind the saving, may be older than `dated.OLD_DAYS`.
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
    is_old: bool = False


def estimates(
    candidates: Iterable[Candidate],
    task: Task,
    fitted: StepTime,
    assumed: Assumptions,
    region: str,
    deadline_h: float | None = None,
) -> tuple[list[Estimate], dict[str, str]]:
    """Return the estimates of all candidates that can train the task, and the reasons why others cannot."""
    possible, left_out = [], {}
    remembered = _Remembered(fitted)
    for candidate in candidates:
        try:
            possible.append(estimate(candidate, task, remembered, assumed, region, deadline_h))
        except InputError as error:
            left_out[str(candidate)] = str(error)
    return possible, left_out


class _Remembered:
    """Step-time model that predicts each setup once: machines on demand, on spot and at several places are the same."""

    def __init__(self, fitted: StepTime) -> None:
        self.draws = fitted.draws
        self.predict = cache(fitted.predict)


def estimate(
    candidate: Candidate,
    task: Task,
    fitted: StepTime,
    assumed: Assumptions,
    region: str,
    deadline_h: float | None = None,
) -> Estimate:
    """Estimate the time and cost of one candidate.

    Raises:
        InputError: the candidate cannot train the task, has no price, or its speed is unknown.
    """
    rng = np.random.default_rng(0)
    prediction, drawn = draw(candidate, task, fitted, assumed, rng)
    hours, billed_s = drawn.wall_s_N / 3600, drawn.billed_s_N
    if candidate.offer is None and bound(billed_s) > MAX_HOURS * 3600:
        raise InputError("takes longer than 28 days, the limit of a SageMaker training job")
    price = price_of(candidate, region)
    (low, high), saving, is_old = saving_of(candidate, region)
    usd = training_usd(billed_s * (1 - rng.uniform(low, high, DRAWS)), candidate.count, price.usd_per_hour)
    if price.log_sd:
        usd = usd * np.exp(price.log_sd * rng.standard_normal(DRAWS))
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
        is_old=is_old or price.is_old(),
    )


def draw(
    candidate: Candidate, task: Task, fitted: StepTime, assumed: Assumptions, rng: np.random.Generator
) -> tuple[Prediction, Drawn]:
    """Predict a candidate's step and draw DRAWS runs.

    Raises:
        InputError: the candidate cannot train the task, its speed is unknown, or it would hardly progress.
    """
    setup = setup_of(candidate, task)
    prediction = fitted.predict(setup)
    work_s = task.steps * fitted.draws(setup, rng, DRAWS)
    drawn = interruptions.draw(work_s, interruptions_of(candidate, task, assumed, prediction.terms.step_s), rng)
    if np.isfinite(drawn.wall_s_N).mean() < BOUND:
        raise InputError("interrupted too often to finish")
    return prediction, drawn


def bound(values: np.ndarray) -> float:
    """Return the 90 % bound of draws; draws of runs that never end are infinite."""
    return float(np.quantile(values, BOUND, method="inverted_cdf"))


def mean(values: np.ndarray) -> float:
    """Return the mean over the runs that end."""
    return float(values[np.isfinite(values)].mean())


def interruptions_of(candidate: Candidate, task: Task, assumed: Assumptions, step_s: float) -> Interruptions:
    """Return a candidate's interruptions.

    On demand there are none, instances are available at once, and checkpoints, written while training continues, cost
    nothing.
    """
    from w2v_lightning.checkpoints.recent import Interval  # slow to import
    from w2v_lightning.config import DEFAULT_CHECKPOINT_EVERY

    startup_s, rate = assumed.startup_s.value, assumed.interruptions_per_instance_hour.value
    every = task.config["checkpoint_every"]
    if every == DEFAULT_CHECKPOINT_EVERY:  # `submit` replaces the default in the same way
        every = checkpoint_interval.checkpoint_every(task.config, candidate.count, rate)
    interval = Interval.parse(every)
    interval_s = interval.seconds or (interval.steps or task.steps) * step_s
    if not candidate.is_spot:
        return Interruptions(0.0, interval_s, 0.0, startup_s, 0.0)
    return Interruptions(
        rate * candidate.count, interval_s, checkpoint_interval.save_s(task.config), startup_s, assumed.wait_s.value
    )


def price_of(candidate: Candidate, region: str) -> Price:
    """Return the price from which the cost is computed, listed or estimated.

    Raises:
        InputError: it is not known.
    """
    if candidate.offer is None:
        return on_demand(candidate.instance_type, region)
    price = candidate.offer.spot if candidate.is_spot else candidate.offer.price
    if price is None:
        raise InputError(f"{candidate.offer} has no price {'on spot' if candidate.is_spot else 'on demand'}.")
    return price


def saving_of(candidate: Candidate, region: str) -> tuple[tuple[float, float], str, bool]:
    """Return the range from which the saving of SageMaker's spot is drawn, its source in words, and if that is old."""
    if not candidate.is_spot or candidate.offer:
        return (0.0, 0.0), "", False
    low, high = SPOT_SAVING_RANGE
    price = spot_prices().get((candidate.instance_type, region))
    if price is None:
        return (low, high), f"{100 * low:.0f} to {percent(high)}: assumed, from job logs of other accounts", False
    return _around(price, high - low), f"around {price.described()}", price.is_old()


def _around(price: SpotPrice, width: float) -> tuple[float, float]:
    low, high = price.saving - width / 2, price.saving + width / 2
    return max(0.0, low), min(1.0, high)


# ---- the best candidate ---------------------------------------------------------------------------------------------


def pareto(estimates: Iterable[Estimate]) -> list[Estimate]:
    """Return the Pareto-optimal estimates by expected time and cost, the cheapest first."""
    front: list[Estimate] = []
    for estimate in sorted(estimates, key=_by_cost):
        if not front or estimate.hours < front[-1].hours:
            front.append(estimate)
    return front


@dataclass(frozen=True)
class Recommendation:
    """Recommended candidate; without one, `why` gives the reason and the nearest candidate."""

    best: Estimate | None
    why: str


def recommend(estimates: Sequence[Estimate], deadline_h: float | None, budget_usd: float | None) -> Recommendation:
    """Recommend the cheapest candidate whose 90 % bounds are within deadline and budget; at equal cost the fastest."""
    in_time = [estimate for estimate in estimates if deadline_h is None or estimate.hours_p90 <= deadline_h]
    affordable = [estimate for estimate in estimates if budget_usd is None or estimate.usd_p90 <= budget_usd]
    within_both = [estimate for estimate in in_time if estimate in affordable]
    if within_both:
        return Recommendation(min(within_both, key=_by_cost), "")
    if not estimates:
        return Recommendation(None, "no candidate can train this.")
    if in_time:
        nearest = min(in_time, key=lambda estimate: estimate.usd_p90)
        cheapest = "the cheapest" if deadline_h is None else "the cheapest within the deadline"
        return Recommendation(None, f"{cheapest} costs ${nearest.usd_p90:.2f} (90 % bound): {nearest.candidate}.")
    nearest = min(affordable or estimates, key=lambda estimate: estimate.hours_p90)
    within = " within the budget" if affordable and budget_usd is not None else ""
    return Recommendation(
        None, f"the fastest{within} takes {nearest.hours_p90:.1f} h (90 % bound): {nearest.candidate}."
    )


def _by_cost(estimate: Estimate) -> tuple[float, float]:
    """Sort key: the cheapest first, at equal cost the fastest."""
    return estimate.usd, estimate.hours
