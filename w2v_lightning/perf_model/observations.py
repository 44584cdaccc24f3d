"""What a run says of the step-time model, and how exactly."""

from dataclasses import dataclass

import numpy as np

from w2v_lightning.perf_model.runs import Run
from w2v_lightning.perf_model.step_time import LATENCY_BYTES, Parameters, Setup, all_reduce_s, terms

# How noisy each kind is, until the residuals say: of times, the standard deviation of the logarithm; of parts of the
# step, in their own scale (`_scale_s`).
TIMES = {"step": 0.03, "latency": 0.3, "gradients": 0.1}
PARTS = {"exposed": 1.0, "waiting": 1.0, "wait": 1.0}
NOISE = TIMES | PARTS


@dataclass(frozen=True)
class Observation:
    """One number of one run.

    Args:
        run: its index.
        kind: of NOISE.
        seconds: measured.
        scale_s: what a deviation is divided by; None: its logarithm is looked at.
    """

    run: int
    kind: str
    seconds: float
    scale_s: float | None

    def deviation(self, predicted_s: np.ndarray, measured_s: float | np.ndarray) -> np.ndarray:
        """In units of NOISE."""
        if self.scale_s is None:
            return np.log(predicted_s / measured_s)
        return (predicted_s - measured_s) / self.scale_s

    def shifted(self, deviation: np.ndarray) -> np.ndarray:
        """What would have been measured, had it deviated by so much."""
        return self.seconds * np.exp(deviation) if self.scale_s is None else self.seconds + self.scale_s * deviation


def observations(i: int, run: Run) -> list[Observation]:
    """Of the i-th run. The step counts most; its parts say what it consists of."""
    parts, step_s = run.measured, run.step_s
    seconds = {"step": step_s, "wait": float(parts.wait_s)}
    if run.throughput.get("communication"):
        seconds["exposed"] = parts.exposed_s
    if run.throughput.get("communication") and not parts.wait_s:  # else ranks wait for others that wait for data
        seconds["waiting"] = parts.imbalance_s
    if found := run.throughput.get("all_reduce"):
        seconds |= {"latency": found["latency_ms"] / 1000, "gradients": found["gradients_ms"] / 1000}
    return [Observation(i, kind, value, _scale_s(kind, value, step_s)) for kind, value in seconds.items()]


def predicted_s(setup: Setup, parameters: Parameters, has_all_reduce: bool) -> dict[str, np.ndarray]:
    """The same numbers by the model."""
    parts = terms(setup, parameters)
    found = {"step": parts.step_s, "wait": parts.wait_s, "exposed": parts.exposed_s, "waiting": parts.imbalance_s}
    if has_all_reduce:
        found["latency"] = sum(all_reduce_s(setup, parameters, LATENCY_BYTES, 1))
        found["gradients"] = sum(all_reduce_s(setup, parameters, setup.gradient_bytes, setup.gradient_buckets))
    return found


def _scale_s(kind: str, seconds: float, step_s: float) -> float | None:
    """Parts are summed up in the step and must not count twice: wide, they say no more than which of them it is."""
    return None if kind in TIMES else 0.3 * seconds + 0.01 * step_s
