"""What spot interruptions do to a run's time and billed time: in expectation by a formula, and drawn at random.

A run is stretches of `interval_s` of training, a checkpoint of `save_s` behind each of them, the last one included.
Interruptions come at random, at a constant rate (a Poisson process): whatever was not saved is done again. After each,
as at the beginning, `wait_s` pass until there are instances, on average, which nobody pays for, and `startup_s` until
training goes on, which are paid for and may be interrupted themselves.

A checkpoint is written beside training here and does not stop it, but it counts once it is complete. As if training
waited for it is close to that, errs on the long side by `save_s` in `interval_s`, and has a formula: Daly, FGCS 22(3),
2006, equation 13, with a wait. The interval is that of checkpoint_interval.py.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

# Of one run. Beyond that it hardly gets on: it is said not to end.
MOST_INTERRUPTIONS = 200


@dataclass(frozen=True)
class Interruptions:
    """How a run is interrupted, and what each interruption takes.

    Args:
        per_hour: of the run: any of its instances that is taken back ends all. 0: on demand.
        interval_s: training between two checkpoints.
        save_s: of a checkpoint.
        startup_s: from having instances to the first step.
        wait_s: for instances, on average.
    """

    per_hour: float
    interval_s: float
    save_s: float
    startup_s: float
    wait_s: float

    @property
    def per_s(self) -> float:
        return self.per_hour / 3600


@dataclass(frozen=True)
class Expected:
    """Mean values of one run. `wall_s` and `billed_s` are infinite where it hardly gets on."""

    wall_s: float
    billed_s: float
    interruptions: float


@dataclass(frozen=True)
class Drawn:
    """N runs. Infinite for those that hardly got on."""

    wall_s_N: np.ndarray
    billed_s_N: np.ndarray
    interruptions_N: np.ndarray


def expected(work_s: float, by: Interruptions) -> Expected:
    """Of a run that trains for `work_s` seconds when nothing interrupts it.

    With n interruptions at a rate of r per second, n / r seconds are paid for: each second has the same chance of one.
    """
    full, last_s = _stretches(work_s, by)
    full_s, last_s = by.interval_s + by.save_s, last_s + by.save_s
    if by.per_hour == 0:
        billed_s = by.startup_s + full * full_s + last_s
        return Expected(by.wait_s + billed_s, billed_s, 0.0)
    again = 1 + _repeats(by.startup_s, by)  # starts per interruption: a start may be interrupted as well
    count = again * (full * _repeats(full_s, by) + _repeats(last_s, by)) + _repeats(by.startup_s, by)
    if count > MOST_INTERRUPTIONS:
        return Expected(math.inf, math.inf, math.inf)
    billed_s = count / by.per_s
    return Expected(billed_s + (count + 1) * by.wait_s, billed_s, count)


def draw(work_s_N: np.ndarray, by: Interruptions, rng: np.random.Generator) -> Drawn:
    """Of runs that train for `work_s_N` seconds when nothing interrupts them, each with its own chance.

    Waits are drawn from an exponential distribution too.
    """
    full_N, last_s_N = _stretches(work_s_N, by)
    full_s = by.interval_s + by.save_s
    left_s_N = full_N * full_s + last_s_N + by.save_s
    waited_s_N, billed_s_N = np.zeros_like(left_s_N), np.zeros_like(left_s_N)
    count_N, runs_N = np.zeros_like(left_s_N), left_s_N > 0
    for _ in range(MOST_INTERRUPTIONS + 1):
        waited_s_N += runs_N * rng.exponential(by.wait_s, len(left_s_N))
        until_s_N = rng.exponential(1 / by.per_s, len(left_s_N)) if by.per_s else np.full(len(left_s_N), np.inf)
        needed_s_N = by.startup_s + left_s_N
        billed_s_N += runs_N * np.minimum(needed_s_N, until_s_N)
        saved_s_N = np.floor(np.maximum(until_s_N - by.startup_s, 0) / full_s) * full_s
        runs_N = runs_N & (until_s_N < needed_s_N)
        if not runs_N.any():
            break
        count_N += runs_N
        left_s_N = np.where(runs_N, left_s_N - saved_s_N, left_s_N)
    billed_s_N[runs_N] = np.inf
    return Drawn(waited_s_N + billed_s_N, billed_s_N, count_N)


def _stretches(work_s: float | np.ndarray, by: Interruptions) -> tuple[Any, Any]:
    """How many full ones before the last, and training in the last one."""
    full = np.maximum(np.ceil(work_s / by.interval_s) - 1, 0)
    return full, work_s - full * by.interval_s


def _repeats(length_s: float, by: Interruptions) -> float:
    """How often something is interrupted until it gets through in one piece."""
    return math.expm1(min(by.per_s * length_s, 700.0))  # beyond, a float overflows
