"""The step-time model as a problem of least squares: all that was measured, all that was known before.

Shapes: P parameters (theta: their logarithms), N observations, K sets of parameters that are looked at side by side.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from w2v_lightning.perf_model.observations import Observation, observations, predicted_s
from w2v_lightning.perf_model.priors import Prior, priors
from w2v_lightning.perf_model.runs import Run
from w2v_lightning.perf_model.step_time import Setup

STEP = 1e-4  # of finite differences, in logarithms
# Of Student's t, by which parameters deviate from what was expected: a loader that somebody throttled is no 4,400
# audio-s/s with a little noise, and what was expected of it must not be paid for by everything else.
FREEDOM = 3

# Of theta_PK: residuals in standard deviations, (N + P) x K.
Residuals = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Problem:
    """What is fitted to what."""

    priors: dict[str, Prior]
    setups: list[Setup]
    observed: list[Observation]

    @classmethod
    def of(cls, runs: Sequence[Run]) -> "Problem":
        observed = [observation for i, run in enumerate(runs) for observation in observations(i, run)]
        return cls(priors(runs), [run.setup for run in runs], observed)

    @cached_property
    def names(self) -> list[str]:
        """Of the parameters, in the order of theta."""
        return list(self.priors)

    @cached_property
    def kinds(self) -> np.ndarray:
        return np.array([observation.kind for observation in self.observed])

    @cached_property
    def measured(self) -> np.ndarray:
        return np.array([[observation.seconds] for observation in self.observed])

    @cached_property
    def _has_all_reduce(self) -> set[int]:
        """Runs that have measured it."""
        return {observation.run for observation in self.observed if observation.kind == "latency"}

    def named(self, rows: Sequence[Any]) -> dict[str, Any]:
        """One row of each parameter."""
        return dict(zip(self.names, rows, strict=True))

    def deviations(self, theta_PK: np.ndarray, measured_NK: np.ndarray) -> np.ndarray:
        """N x K: of the model from what was measured, each observation in its own unit."""
        parameters = self.named(np.exp(theta_PK))
        found = [predicted_s(setup, parameters, i in self._has_all_reduce) for i, setup in enumerate(self.setups)]
        deviations_NK = np.empty((len(self.observed), theta_PK.shape[1]))
        for row_K, o, measured_K in zip(deviations_NK, self.observed, measured_NK, strict=True):
            row_K[:] = o.deviation(found[o.run][o.kind], measured_K)
        return deviations_NK

    def surprises(self, theta_PK: np.ndarray) -> np.ndarray:
        """P x K: of the parameters from where they were expected, in standard deviations."""
        rows = self.named(theta_PK)
        surprises_PK = np.empty_like(theta_PK)
        for surprise_K, (name, prior) in zip(surprises_PK, self.priors.items(), strict=True):
            centre = math.log(prior.centre) + (rows[prior.parent] if prior.parent else 0.0)
            surprise_K[:] = (rows[name] - centre) / prior.log_sd
        return surprises_PK

    def residuals(self, noise: Mapping[str, float]) -> Residuals:
        """Of what was measured."""
        noise_N1 = np.array([[noise[kind]] for kind in self.kinds])
        return self.residuals_of(self.measured, noise_N1, np.zeros((len(self.names), 1)))

    def residuals_of(self, measured_NK: np.ndarray, noise_NK: np.ndarray, shift_PK: np.ndarray) -> Residuals:
        """Of what might have been measured, had the priors been shifted (in standard deviations)."""

        def residuals(theta_PK: np.ndarray) -> np.ndarray:
            deviations_NK = self.deviations(theta_PK, measured_NK) / noise_NK
            surprises_PK = self.surprises(theta_PK) - shift_PK
            tamed_PK = np.sqrt(FREEDOM * np.log1p(surprises_PK**2 / FREEDOM))
            return np.concatenate([deviations_NK, np.copysign(tamed_PK, surprises_PK)])

        return residuals


def jacobian(residuals: Residuals, theta_P: np.ndarray) -> np.ndarray:
    """(N + P) x P, by differences, all at once."""
    found = residuals(theta_P[:, None] + STEP * np.eye(len(theta_P), len(theta_P) + 1, k=1))
    return (found[:, 1:] - found[:, :1]) / STEP
