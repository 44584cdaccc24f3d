"""Two scaling laws to compare with the step-time model, and the knee: where more devices stop paying off, and why.

Throughput of n devices, by Gunther's universal scalability law (Guerrilla Capacity Planning, 2007):

    rate(n) = rate(1) x n / (1 + serial x (n - 1) + crosstalk x n x (n - 1))

Amdahl's law (1967) is the special case without crosstalk.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import numpy as np

from w2v_lightning.errors import InputError
from w2v_lightning.perf_model.step_time import Terms
from w2v_lightning.reporting.units import percent

LEAST_WORTH = 0.5  # share of the first device's speed that a further device must add to pay off

Points = Sequence[tuple[int, float]]  # number of devices and audio-seconds per second
Number = TypeVar("Number", float, np.ndarray)


@dataclass(frozen=True)
class Law:
    """Fitted scaling law.

    Args:
        name: "Amdahl" or "USL".
        rate_1: throughput of one device, in audio-seconds per second.
        serial: share of the work that is not distributed, 0 to 1.
        crosstalk: cost of each pair of devices; 0 in Amdahl's law.
        error: standard deviation of the residuals, in logarithms: 0.05 is 5 %.
    """

    name: str
    rate_1: float
    serial: float
    crosstalk: float
    error: float

    def rate(self, devices: float) -> float:
        """Return the throughput of `devices` devices, in audio-seconds per second."""
        return self.rate_1 * devices / _cost(devices, self.serial, self.crosstalk)

    @property
    def peak(self) -> float | None:
        """Number of devices beyond which throughput falls; None if it never does."""
        return math.sqrt((1 - self.serial) / self.crosstalk) if self.crosstalk > 1e-9 else None


@dataclass(frozen=True)
class Knee:
    """Number of devices beyond which more devices stop paying off.

    Args:
        devices: last number that pays off.
        next_devices: next number in the study.
        worth: speed that each device between the two adds, as a share of the speed per device at the smallest number.
        term: part of the step that grows most: "communication" or another key of `Terms.gains_s`.
        reason: explanation in words.
    """

    devices: int
    next_devices: int
    worth: float
    term: str
    reason: str


def amdahl(points: Points) -> Law:
    """Fit Amdahl's law.

    Raises:
        InputError: the points have fewer than two different numbers of devices, or scipy is missing.
    """
    return _fitted("Amdahl", points, 2)


def usl(points: Points) -> Law:
    """Fit the universal scalability law.

    Raises:
        InputError: the points have fewer than three different numbers of devices, or scipy is missing.
    """
    return _fitted("USL", points, 3)


def knee(by_devices: Mapping[int, Terms]) -> Knee | None:
    """Return the first number of devices after which each further device adds less than half of the first one's speed.

    Args:
        by_devices: parts of a step by number of devices, all for the same work.

    Returns:
        None if every number of devices pays off.
    """
    numbers = sorted(by_devices)
    for devices, more in pairwise(numbers):
        worth = _worth(by_devices, numbers[0], devices, more)
        if worth < LEAST_WORTH:
            return _knee(by_devices, numbers[0], devices, more, worth)
    return None


def device_seconds(devices: int, terms: Terms) -> dict[str, float]:
    """Return the time that all devices together spend on each part of a step. With perfect scaling, no part grows."""
    parts_s = {
        "compute": terms.compute_s,
        "data": terms.wait_s,
        "communication": terms.exposed_s,
        "imbalance": terms.imbalance_s,
        "overhead": terms.overhead_s,
    }
    return {name: devices * float(part_s) for name, part_s in parts_s.items()}


def _fitted(name: str, points: Points, least: int) -> Law:
    numbers = sorted({devices for devices, _ in points})
    if len(numbers) < least:
        raise InputError(
            f"{name}'s law has {least} unknowns and needs as many different numbers of devices; the runs have"
            f" {len(numbers)} ({', '.join(map(str, numbers))})."
        )
    try:
        from scipy.optimize import least_squares
    except ImportError as error:
        raise InputError("Fitting a law needs scipy: pip install 'w2v-lightning[study]'.") from error
    devices_N, rates_N = np.array(points, dtype=float).T
    log_speed_N = np.log(rates_N / devices_N)

    def deviations(unknowns: np.ndarray) -> np.ndarray:
        log_rate_1, serial, crosstalk = (*unknowns, 0.0)[:3]
        return log_rate_1 - np.log(_cost(devices_N, serial, crosstalk)) - log_speed_N

    upper = [np.inf, 1.0, np.inf][:least]
    start = [float(log_speed_N.max()), 0.01, 1e-4][:least]
    solution = least_squares(deviations, start, bounds=([-np.inf, 0.0, 0.0][:least], upper), x_scale="jac")
    rate_1, serial, crosstalk = math.exp(solution.x[0]), *(*solution.x[1:].tolist(), 0.0)[:2]
    return Law(name, rate_1, serial, crosstalk, float(np.sqrt(np.mean(solution.fun**2))))


def _cost(devices: Number, serial: float, crosstalk: float) -> Number:
    return 1 + serial * (devices - 1) + crosstalk * devices * (devices - 1)


def _worth(by_devices: Mapping[int, Terms], first: int, devices: int, more: int) -> float:
    added = 1 / by_devices[more].step_s - 1 / by_devices[devices].step_s
    return float(added / (more - devices) * first * by_devices[first].step_s)


def _knee(by_devices: Mapping[int, Terms], first: int, devices: int, more: int, worth: float) -> Knee:
    before, after = (device_seconds(n, by_devices[n]) for n in (first, more))
    term = max(after, key=lambda name: after[name] - before[name])
    effect = f"adds {percent(worth)} of the speed per device at {first}" if worth > 0 else "makes training slower"
    reason = (
        f"From {devices} to {more} devices, each further device {effect}. The part that grows most is {term}: from"
        f" {before[term]:.3g} device-seconds per step on {first} to {after[term]:.3g} on {more}."
    )
    return Knee(devices, more, worth, term, reason)
