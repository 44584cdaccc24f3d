"""Time and billed time of a run with spot interruptions: expectation by a formula, and random draws.

A run consists of stretches of `interval_s` of training, each followed by a checkpoint of `save_s`, also the last one.
Interruptions arrive at a constant rate (a Poisson process), and everything since the last checkpoint is repeated. After
each interruption, as at the beginning, it takes `wait_s` on average to get instances, which is not billed, and
`startup_s` until training resumes, which is billed and may be interrupted itself.

In reality a checkpoint is written while training continues, and counts once it is complete. The model lets training
wait for it instead. That is a close approximation, too long by `save_s` per `interval_s`, and has a closed form: Daly,
FGCS 22(3), 2006, equation 13, plus the wait. The interval is that of checkpoint_interval.py.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

# Largest number of interruptions of one run; a run with more hardly progresses and counts as endless.
MAX_INTERRUPTIONS = 200


@dataclass(frozen=True)
class Interruptions:
    """Rate of a run's interruptions, and the durations that determine their cost.

    Args:
        per_hour: interruptions of the run per hour; losing any of its instances interrupts it. 0 on demand.
        interval_s: seconds of training between two checkpoints.
        save_s: seconds to save a checkpoint.
        startup_s: seconds from getting instances to the first step.
        wait_s: mean seconds of waiting for instances.
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
    """Expectations for one run. `wall_s` and `billed_s` are infinite if it hardly progresses."""

    wall_s: float
    billed_s: float
    interruptions: float


@dataclass(frozen=True)
class Drawn:
    """Draws of N runs; times are infinite for runs that hardly progress."""

    wall_s_N: np.ndarray
    billed_s_N: np.ndarray
    interruptions_N: np.ndarray


def expected(work_s: float, interruptions: Interruptions) -> Expected:
    """Return the expectations for a run that takes `work_s` seconds of training without interruptions.

    n interruptions at a rate of r per second mean n / r billed seconds, because every billed second has the same
    probability of an interruption.
    """
    full, last_s = _stretches(work_s, interruptions)
    full_s, last_s = interruptions.interval_s + interruptions.save_s, last_s + interruptions.save_s
    if interruptions.per_hour == 0:
        billed_s = interruptions.startup_s + full * full_s + last_s
        return Expected(interruptions.wait_s + billed_s, billed_s, 0.0)
    # A start may be interrupted as well, so an interruption of training leads to more than one start.
    start_repeats = _repeats(interruptions.startup_s, interruptions)
    training_repeats = full * _repeats(full_s, interruptions) + _repeats(last_s, interruptions)
    count = (1 + start_repeats) * training_repeats + start_repeats
    if count > MAX_INTERRUPTIONS:
        return Expected(math.inf, math.inf, math.inf)
    billed_s = count / interruptions.per_s
    return Expected(billed_s + (count + 1) * interruptions.wait_s, billed_s, count)


def draw(work_s_N: np.ndarray, interruptions: Interruptions, rng: np.random.Generator) -> Drawn:
    """Draw runs that take `work_s_N` seconds of training without interruptions, independently of each other.

    Times to an interruption and waits for instances are exponentially distributed.
    """
    full_N, last_s_N = _stretches(work_s_N, interruptions)
    full_s = interruptions.interval_s + interruptions.save_s
    remaining_s_N = full_N * full_s + last_s_N + interruptions.save_s
    waited_s_N, billed_s_N = np.zeros_like(remaining_s_N), np.zeros_like(remaining_s_N)
    count_N, is_running_N = np.zeros_like(remaining_s_N), remaining_s_N > 0
    for _ in range(MAX_INTERRUPTIONS + 1):
        n = len(remaining_s_N)
        waited_s_N += is_running_N * rng.exponential(interruptions.wait_s, n)
        until_s_N = rng.exponential(1 / interruptions.per_s, n) if interruptions.per_s else np.full(n, np.inf)
        needed_s_N = interruptions.startup_s + remaining_s_N
        billed_s_N += is_running_N * np.minimum(needed_s_N, until_s_N)
        saved_s_N = np.floor(np.maximum(until_s_N - interruptions.startup_s, 0) / full_s) * full_s
        is_running_N = is_running_N & (until_s_N < needed_s_N)
        if not is_running_N.any():
            break
        count_N += is_running_N
        remaining_s_N = np.where(is_running_N, remaining_s_N - saved_s_N, remaining_s_N)
    billed_s_N[is_running_N] = np.inf
    return Drawn(waited_s_N + billed_s_N, billed_s_N, count_N)


def _stretches(work_s: float | np.ndarray, interruptions: Interruptions) -> tuple[Any, Any]:
    """Number of full stretches before the last one, and seconds of training in the last one."""
    full = np.maximum(np.ceil(work_s / interruptions.interval_s) - 1, 0)
    return full, work_s - full * interruptions.interval_s


def _repeats(length_s: float, interruptions: Interruptions) -> float:
    """Expected number of interruptions until a piece of `length_s` completes without one."""
    return math.expm1(min(interruptions.per_s * length_s, 700.0))  # larger exponents overflow a float
