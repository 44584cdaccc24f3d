"""Fit of the step-time model to runs: parameters, their uncertainty and the accuracy of predictions.

The estimate is the most probable one: least squares of all observations (observations.py) and all priors (priors.py) in
logarithms of the parameters. The noise of each kind of observation is estimated from the residuals. The uncertainty is
that of the model linearised at the estimate.

Shapes: P parameters, N observations, M = N + P residuals, S samples.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np

from w2v_lightning.errors import InputError
from w2v_lightning.perf_model.conclusions import notes
from w2v_lightning.perf_model.fitted import Fitted, LeftOut, by_configuration, is_same, mean_setup
from w2v_lightning.perf_model.observations import NOISE, PARTS
from w2v_lightning.perf_model.problem import Problem, Residuals, jacobian
from w2v_lightning.perf_model.runs import Run
from w2v_lightning.perf_model.step_time import names

PRIOR_FREEDOM = 3  # weight of NOISE, in observations of each kind
ROUNDS = 3  # alternations of fitting the parameters and estimating the noise
SAMPLES = 400


@dataclass(frozen=True)
class Estimate:
    """Most probable parameters.

    Args:
        problem: least-squares problem that they solve.
        theta_P: logarithms of the parameters.
        noise: noise of each kind of observation.
        freedom: degrees of freedom of each of these estimates.
    """

    problem: Problem
    theta_P: np.ndarray
    noise: dict[str, float]
    freedom: dict[str, float]

    def fitted(self, runs: Sequence[Run], rng: np.random.Generator) -> Fitted:
        """Return the fitted model with samples of its parameters."""
        return Fitted(
            values=self.problem.named(np.exp(self.theta_P).tolist()),
            samples=self.problem.named(np.exp(self._samples(rng))),
            priors=self.problem.priors,
            noise=self.noise["step"],
            freedom=self.freedom["step"],
            configurations={name: mean_setup(group) for name, group in by_configuration(runs).items()},
        )

    def _samples(self, rng: np.random.Generator) -> np.ndarray:
        """Draws of theta, P x S: solutions of the linearised problem for randomly shifted observations and priors.

        The shifts of observations are drawn from Student's t, because the width of their noise is itself an estimate.
        """
        inverse_PM = np.linalg.pinv(jacobian(self.problem.residuals(self.noise), self.theta_P))
        shifts_MS = rng.standard_normal((inverse_PM.shape[1], SAMPLES))
        widths_S = {kind: np.sqrt(n / rng.chisquare(n, SAMPLES)) for kind, n in self.freedom.items()}
        shifts_MS[: len(self.problem.observed)] *= np.stack([widths_S[kind] for kind in self.problem.kinds])
        return self.theta_P[:, None] + inverse_PM @ shifts_MS


def fit(runs: Sequence[Run], seed: int = 0, leaves_one_out: bool = False) -> Fitted:
    """Fit the model to all runs that trained for long enough.

    Args:
        runs: runs of one or several studies.
        seed: seed of the random samples.
        leaves_one_out: also predict each configuration from all others, which takes several times as long.

    Raises:
        InputError: no run trained for long enough, or scipy is missing.
    """
    runs = [run for run in runs if run.is_measured]
    if not runs:
        raise InputError("No run has trained for long enough to measure a step: each needs two logged windows.")
    rng = np.random.default_rng(seed)
    fitted = _estimated(runs).fitted(runs, rng)
    left_out = _leave_one_out(runs, rng) if leaves_one_out else {}
    return replace(fitted, leave_one_out=left_out, notes=notes(runs, fitted))


def _estimated(runs: Sequence[Run]) -> Estimate:
    problem = Problem.from_runs(runs)
    starts = _starts(problem, runs)
    noise: dict[str, float] = dict(NOISE)
    freedom: dict[str, float] = {}
    for _ in range(ROUNDS):
        residuals = problem.residuals(noise)
        solutions = [_solved(residuals, theta_P) for theta_P in starts]
        theta_P = min(solutions, key=lambda theta_P: float((residuals(theta_P[:, None]) ** 2).sum()))
        noise, freedom = _noise(problem, theta_P, residuals)
        starts = [theta_P]
    return Estimate(problem, theta_P, noise, freedom)


def _solved(residuals: Residuals, start_P: np.ndarray) -> np.ndarray:
    try:
        from scipy.optimize import least_squares
    except ImportError as error:
        raise InputError("Fitting a study needs scipy: pip install 'w2v-lightning[study]'.") from error
    return least_squares(
        lambda theta_P: residuals(theta_P[:, None])[:, 0], start_P, jac=lambda theta_P: jacobian(residuals, theta_P)
    ).x


def _starts(problem: Problem, runs: Sequence[Run]) -> list[np.ndarray]:
    """Starting points of the optimisation: the priors, then also slow loaders, then also slow GPU hosts.

    Loaders and hosts start at the slowest rate that explains the runs. From the priors alone the optimisation would
    not reach them: while computing is the slower of the two, the model has no slope in their direction.
    """
    loaders: dict[str, float] = {}
    hosts: dict[str, float] = {}
    for run in runs:  # a rate reached in any run is possible in all of them
        for name, rate in _slow_loader(run).items():
            loaders[name] = max(rate, loaders.get(name, 0.0))
        if launch := names(run.setup).get("launch_s"):
            hosts[launch] = min(run.measured.compute_s / run.setup.micro_batches, hosts.get(launch, math.inf))
    observed: list[dict[str, float]] = [{}]
    if loaders:
        observed.append(loaders)
    if hosts:
        observed.append(loaders | hosts)
    return [_start(problem, values) for values in observed]


def _start(problem: Problem, observed: Mapping[str, float]) -> np.ndarray:
    values: dict[str, float] = {}
    for name, prior in problem.priors.items():  # parents precede their children
        values[name] = observed.get(name, prior.centre * (values[prior.parent] if prior.parent else 1.0))
    return np.log(list(values.values()))


def _slow_loader(run: Run) -> dict[str, float]:
    """Rate of the loader for which a run waited; empty if it did not wait."""
    setup, parts = run.setup, run.measured
    if not parts.wait_s:
        return {}
    data_s = parts.data_s + parts.serial_loading_s
    own_names = names(setup)
    if "storage_audio_s_per_s" in own_names:
        return {own_names["storage_audio_s_per_s"]: setup.computed_s / (setup.hosts * data_s)}
    decoders = setup.world_size * max(setup.loader_workers, 1)
    return {own_names["decode_audio_s_per_s"]: setup.computed_s / (decoders * data_s)}


def _noise(problem: Problem, theta_P: np.ndarray, residuals: Residuals) -> tuple[dict[str, float], dict[str, float]]:
    """Noise of each kind of observation that the parameters leave unexplained, and its degrees of freedom."""
    slopes = jacobian(residuals, theta_P)
    leverage_N = np.einsum("mp,pm->m", slopes, np.linalg.pinv(slopes))[: len(problem.observed)]
    deviations_N = problem.deviations(theta_P[:, None])[:, 0]
    noise, freedom = {}, {}
    for kind, expected in NOISE.items():
        is_kind_N = problem.kinds == kind
        freedom[kind] = PRIOR_FREEDOM + float((1 - leverage_N[is_kind_N]).sum())
        squares = PRIOR_FREEDOM * expected**2 + float((deviations_N[is_kind_N] ** 2).sum())
        noise[kind] = max(math.sqrt(squares / freedom[kind]), expected if kind in PARTS else 0.0)
    return noise, freedom


# ---- leave one out --------------------------------------------------------------------------------------------------


def _leave_one_out(runs: Sequence[Run], rng: np.random.Generator) -> dict[str, LeftOut]:
    """Predictions of each configuration from all others, if there are others."""
    left_out = {}
    for name, group in by_configuration(runs).items():
        # Steps on spot are the same as on demand, so a configuration's twin must be left out with it.
        others = [run for run in runs if run.cell["name"] != name and not is_same(run.setup, mean_setup(group))]
        if others:
            left_out[name] = _left_out(group, others, rng)
    return left_out


def _left_out(group: Sequence[Run], others: Sequence[Run], rng: np.random.Generator) -> LeftOut:
    measured_s = fmean(run.step_s for run in group)
    try:
        predicted = _estimated(others).fitted(others, rng).predict(mean_setup(group))
    except InputError as error:
        return LeftOut(measured_s, None, None, None, str(error))
    return LeftOut(measured_s, float(predicted.terms.step_s), predicted.low_s, predicted.high_s)
