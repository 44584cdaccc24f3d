"""Observations that a run contributes to the fit of the step-time model, and their noise."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from w2v_lightning.perf_model.runs import Run
from w2v_lightning.perf_model.step_time import LATENCY_BYTES, Parameters, Setup, all_reduce_s, terms

# Noise of each kind of observation before it is estimated from the residuals. For times it is the standard deviation of
# the logarithm; for parts of the step it is in units of `_scale_s`.
TIMES = {"step": 0.03, "latency": 0.3, "gradients": 0.1}
PARTS = {"exposed": 1.0, "waiting": 1.0, "wait": 1.0}
NOISE = TIMES | PARTS


@dataclass(frozen=True)
class Observation:
    """Measured time of a run.

    Args:
        run: index of the run.
        kind: key of NOISE.
        seconds: measured value.
        scale_s: unit of deviations, in seconds; None: deviations are logarithms of ratios.
    """

    run: int
    kind: str
    seconds: float
    scale_s: float | None

    def deviation(self, predicted_s: np.ndarray) -> np.ndarray:
        """Return the deviation of predictions from the measurement, in the unit of NOISE."""
        if self.scale_s is None:
            return np.log(predicted_s / self.seconds)
        return (predicted_s - self.seconds) / self.scale_s


def observations(i: int, run: Run) -> list[Observation]:
    """Return the observations of the i-th run. The step time weighs most; its parts tell what it consists of."""
    parts, step_s = run.measured, run.step_s
    seconds = {"step": step_s, "wait": float(parts.wait_s)}
    if run.throughput.get("communication"):
        seconds["exposed"] = parts.exposed_s
    # In a run that waits for data, ranks also wait for other ranks' data, which is not imbalance.
    if run.throughput.get("communication") and not parts.wait_s:
        seconds["waiting"] = parts.imbalance_s
    if all_reduce := run.throughput.get("all_reduce"):
        seconds |= {"latency": all_reduce["latency_ms"] / 1000, "gradients": all_reduce["gradients_ms"] / 1000}
    return [Observation(i, kind, value, _scale_s(kind, value, step_s)) for kind, value in seconds.items()]


def predicted_s(setup: Setup, parameters: Parameters, has_all_reduce: bool) -> dict[str, Any]:
    """Return the model's predictions of the same times, by kind: numbers or arrays, as the parameters are."""
    parts = terms(setup, parameters)
    seconds = {"step": parts.step_s, "wait": parts.wait_s, "exposed": parts.exposed_s, "waiting": parts.imbalance_s}
    if has_all_reduce:
        seconds["latency"] = sum(all_reduce_s(setup, parameters, LATENCY_BYTES, 1))
        seconds["gradients"] = sum(all_reduce_s(setup, parameters, setup.gradient_bytes, setup.gradient_buckets))
    return seconds


def _scale_s(kind: str, seconds: float, step_s: float) -> float | None:
    """Unit of deviations. Parts are contained in the step and must not count twice, so their unit is wide."""
    return None if kind in TIMES else 0.3 * seconds + 0.01 * step_s
