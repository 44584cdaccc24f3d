"""Least-squares problem of fitting the step-time model to observations and priors.

Shapes: P parameters (theta: their logarithms), N observations, K sets of parameters evaluated at once.
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

STEP = 1e-4  # step of finite differences of theta
# Degrees of freedom of Student's t for the parameters' deviations from their priors. A throttled loader is far from the
# expected 4,400 audio-s/s; with a normal distribution, the other parameters would be distorted to accommodate it.
FREEDOM = 3

# Function from theta_PK to residuals in standard deviations, (N + P) x K.
Residuals = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Problem:
    """Priors of the parameters, and the runs' setups and observations."""

    priors: dict[str, Prior]
    setups: list[Setup]
    observed: list[Observation]

    @classmethod
    def from_runs(cls, runs: Sequence[Run]) -> "Problem":
        """Build the problem of fitting the model to these runs."""
        observed = [observation for i, run in enumerate(runs) for observation in observations(i, run)]
        return cls(priors(runs), [run.setup for run in runs], observed)

    @cached_property
    def names(self) -> list[str]:
        """Names of the parameters, in the order of theta."""
        return list(self.priors)

    @cached_property
    def kinds(self) -> np.ndarray:
        """Kinds of the observations, N strings."""
        return np.array([observation.kind for observation in self.observed])

    @cached_property
    def _has_all_reduce(self) -> set[int]:
        """Indices of the runs that have measured an all-reduce."""
        return {observation.run for observation in self.observed if observation.kind == "latency"}

    def named(self, rows: Sequence[Any] | np.ndarray) -> dict[str, Any]:
        """Return one row per parameter, by name."""
        return dict(zip(self.names, rows, strict=True))

    def deviations(self, theta_PK: np.ndarray) -> np.ndarray:
        """Return the model's deviations from the measurements, N x K, each in its observation's unit."""
        parameters = self.named(np.exp(theta_PK))
        predictions = [predicted_s(setup, parameters, i in self._has_all_reduce) for i, setup in enumerate(self.setups)]
        deviations_NK = np.empty((len(self.observed), theta_PK.shape[1]))
        for row_K, observation in zip(deviations_NK, self.observed, strict=True):
            row_K[:] = observation.deviation(predictions[observation.run][observation.kind])
        return deviations_NK

    def surprises(self, theta_PK: np.ndarray) -> np.ndarray:
        """Return the parameters' deviations from their priors, P x K, in standard deviations."""
        rows = self.named(theta_PK)
        surprises_PK = np.empty_like(theta_PK)
        for surprise_K, (name, prior) in zip(surprises_PK, self.priors.items(), strict=True):
            centre = math.log(prior.centre) + (rows[prior.parent] if prior.parent else 0.0)
            surprise_K[:] = (rows[name] - centre) / prior.log_sd
        return surprises_PK

    def residuals(self, noise: Mapping[str, float]) -> Residuals:
        """Return the function to minimise, given the noise of each kind of observation."""
        noise_N1 = np.array([[noise[kind]] for kind in self.kinds])

        def residuals(theta_PK: np.ndarray) -> np.ndarray:
            deviations_NK = self.deviations(theta_PK) / noise_N1
            surprises_PK = self.surprises(theta_PK)
            tamed_PK = np.sqrt(FREEDOM * np.log1p(surprises_PK**2 / FREEDOM))
            return np.concatenate([deviations_NK, np.copysign(tamed_PK, surprises_PK)])

        return residuals


def jacobian(residuals: Residuals, theta_P: np.ndarray) -> np.ndarray:
    """Return the derivatives of the residuals, (N + P) x P, by finite differences."""
    columns = residuals(theta_P[:, None] + STEP * np.eye(len(theta_P), len(theta_P) + 1, k=1))
    return (columns[:, 1:] - columns[:, :1]) / STEP
