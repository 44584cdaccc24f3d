"""Two laws of scaling as a yardstick beside the step-time model, and the knee: where more devices stop to pay, and why.

Throughput of n devices, by Gunther's universal scalability law (Guerrilla Capacity Planning, 2007):

    rate(n) = rate(1) x n / (1 + serial x (n - 1) + crosstalk x n x (n - 1))

Amdahl's law (1967) is the same without crosstalk.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from w2v_lightning.errors import InputError
from w2v_lightning.perf_model.step_time import Terms
from w2v_lightning.reporting.units import percent

LEAST_WORTH = 0.5  # of the first device's speed: what a further one must add

Points = Sequence[tuple[int, float]]  # devices, and audio-seconds per second


@dataclass(frozen=True)
class Law:
    """One that was fitted.

    Args:
        name: "Amdahl" or "USL".
        rate_1: audio-seconds per second of one device.
        serial: share of the work that does not spread, 0 to 1.
        crosstalk: what each pair of devices costs; 0 by Amdahl.
        error: standard deviation of the logarithm of what it was fitted to, 0.05 is 5 %.
    """

    name: str
    rate_1: float
    serial: float
    crosstalk: float
    error: float

    def rate(self, devices: float) -> float:
        return self.rate_1 * devices / _cost(devices, self.serial, self.crosstalk)

    @property
    def peak(self) -> float | None:
        """Devices beyond which throughput falls; None: it does not."""
        return math.sqrt((1 - self.serial) / self.crosstalk) if self.crosstalk > 1e-9 else None


@dataclass(frozen=True)
class Knee:
    """Where more devices stop to pay.

    Args:
        devices: the last number at which they did.
        next_devices: the next number in the study.
        worth: what each device between the two adds, in shares of the speed of one at the beginning.
        term: the part of the step that has grown most: "communication" or another key of `Terms.gains_s`.
        reason: all of it in a sentence.
    """

    devices: int
    next_devices: int
    worth: float
    term: str
    reason: str


def amdahl(points: Points) -> Law:
    """Fit Amdahl's law.

    Raises:
        InputError: there are fewer than two numbers of devices, or scipy is missing.
    """
    return _fitted("Amdahl", points, 2)


def usl(points: Points) -> Law:
    """Fit the universal scalability law.

    Raises:
        InputError: there are fewer than three numbers of devices, or scipy is missing.
    """
    return _fitted("USL", points, 3)


def knee(by_devices: Mapping[int, Terms]) -> Knee | None:
    """The first number of devices behind which each further one adds less than half of what the first ones brought.

    Args:
        by_devices: parts of a step by the number of devices, all of the same work.

    Returns:
        None where it is not among them.
    """
    numbers = sorted(by_devices)
    for devices, more in pairwise(numbers):
        worth = _worth(by_devices, numbers[0], devices, more)
        if worth < LEAST_WORTH:
            return _knee(by_devices, numbers[0], devices, more, worth)
    return None


def device_seconds(devices: int, terms: Terms) -> dict[str, float]:
    """What all devices together spend of a step on each part. With perfect scaling none of it grows."""
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
            f"{name}'s law has {least} unknowns and needs as many different numbers of devices; found {len(numbers)}"
            f" ({', '.join(map(str, numbers))})."
        )
    try:
        from scipy.optimize import least_squares
    except ImportError as error:
        raise InputError("Fitting a law needs scipy: pip install 'w2v-lightning[study]'.") from error
    devices_N, rates_N = np.array(points, dtype=float).T
    log_speed_N = np.log(rates_N / devices_N)

    def deviations(unknown: np.ndarray) -> np.ndarray:
        log_rate_1, serial, crosstalk = (*unknown, 0.0)[:3]
        return log_rate_1 - np.log(_cost(devices_N, serial, crosstalk)) - log_speed_N

    upper = [np.inf, 1.0, np.inf][:least]
    start = [float(log_speed_N.max()), 0.01, 1e-4][:least]
    found = least_squares(deviations, start, bounds=([-np.inf, 0.0, 0.0][:least], upper), x_scale="jac")
    rate_1, serial, crosstalk = math.exp(found.x[0]), *(*found.x[1:].tolist(), 0.0)[:2]
    return Law(name, rate_1, serial, crosstalk, float(np.sqrt(np.mean(found.fun**2))))


def _cost(devices: float | np.ndarray, serial: float, crosstalk: float) -> float | np.ndarray:
    return 1 + serial * (devices - 1) + crosstalk * devices * (devices - 1)


def _worth(by_devices: Mapping[int, Terms], first: int, devices: int, more: int) -> float:
    added = 1 / by_devices[more].step_s - 1 / by_devices[devices].step_s
    return float(added / (more - devices) * first * by_devices[first].step_s)


def _knee(by_devices: Mapping[int, Terms], first: int, devices: int, more: int, worth: float) -> Knee:
    before, after = (device_seconds(n, by_devices[n]) for n in (first, more))
    term = max(after, key=lambda name: after[name] - before[name])
    adds = f"adds {percent(worth)} of what one added at {first}" if worth > 0 else "makes it slower"
    reason = (
        f"From {devices} to {more} devices each further one {adds}. What grows is {term}: from {before[term]:.3g} to"
        f" {after[term]:.3g} device-seconds a step between {first} and {more}."
    )
    return Knee(devices, more, worth, term, reason)
