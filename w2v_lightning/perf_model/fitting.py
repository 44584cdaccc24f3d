"""Fits the step-time model to runs: the parameters, how sure they are, and how well it predicts what it has not seen.

The estimate is the most probable one: least squares of all observations (observations.py) and all priors (priors.py),
in logarithms of the parameters. How noisy each kind of observation is, the residuals say. bootstrap.py has how sure.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np

from w2v_lightning.errors import InputError
from w2v_lightning.perf_model.bootstrap import SAMPLES, bootstrap
from w2v_lightning.perf_model.conclusions import notes
from w2v_lightning.perf_model.fitted import Fitted, LeftOut, by_configuration, is_same, mean_setup
from w2v_lightning.perf_model.observations import NOISE, PARTS
from w2v_lightning.perf_model.problem import Problem, Residuals, jacobian
from w2v_lightning.perf_model.runs import Run
from w2v_lightning.perf_model.step_time import names

PRIOR_FREEDOM = 3  # NOISE counts as much as so many observations of each kind
ROUNDS = 3  # of fit and noise in turn


@dataclass(frozen=True)
class Estimate:
    """The most probable parameters.

    Args:
        problem: that they solve.
        theta_P: their logarithms.
        noise: of each kind of observation.
        freedom: degrees of freedom of each of these.
    """

    problem: Problem
    theta_P: np.ndarray
    noise: dict[str, float]
    freedom: dict[str, float]

    def fitted(self, theta_PS: np.ndarray, runs: Sequence[Run]) -> Fitted:
        """With samples that say how sure it is."""
        return Fitted(
            values=self.problem.named(np.exp(self.theta_P).tolist()),
            samples=self.problem.named(np.exp(theta_PS)),
            priors=self.problem.priors,
            noise=self.noise["step"],
            freedom=self.freedom["step"],
            configurations={name: mean_setup(group) for name, group in by_configuration(runs).items()},
        )


def fit(runs: Sequence[Run], seed: int = 0, leaves_one_out: bool = False) -> Fitted:
    """Fit the model to all runs that have trained for long enough.

    Args:
        runs: of one study or of several.
        seed: of the bootstrap.
        leaves_one_out: each configuration is also predicted from all others, which takes several times as long.

    Raises:
        InputError: there is no such run, or scipy is missing.
    """
    runs = [run for run in runs if run.is_measured]
    if not runs:
        raise InputError("No run has trained for long enough to say how fast a step is; each needs two logged windows.")
    found, rng = _estimated(runs), np.random.default_rng(seed)
    samples_PS = bootstrap(found.problem, runs, found.theta_P, found.noise, found.freedom, rng)
    fitted = found.fitted(samples_PS, runs)
    left_out = _leave_one_out(runs, rng) if leaves_one_out else {}
    return replace(fitted, leave_one_out=left_out, notes=notes(runs, fitted))


def _estimated(runs: Sequence[Run]) -> Estimate:
    problem = Problem.of(runs)
    starts, noise, freedom = _starts(problem, runs), dict(NOISE), {}
    for _ in range(ROUNDS):
        residuals = problem.residuals(noise)
        solved = [_solved(residuals, theta_P) for theta_P in starts]
        theta_P = min(solved, key=lambda theta_P: float((residuals(theta_P[:, None]) ** 2).sum()))
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
    """Where the priors are. And with each loader that was waited for as slow as it was seen to be, and then each host
    of GPUs, too: as long as computing is the slower of the two, the model has no slope that leads there."""
    loaders: dict[str, float] = {}
    hosts: dict[str, float] = {}
    for run in runs:  # each can do what it did in any of them
        for name, rate in _slow_loader(run).items():
            loaders[name] = max(rate, loaders.get(name, 0.0))
        if name := names(run.setup).get("launch_s"):
            hosts[name] = min(run.measured.compute_s / run.setup.micro_batches, hosts.get(name, math.inf))
    starts = [{}] + [loaders] * bool(loaders) + [loaders | hosts] * bool(hosts)
    return [_start(problem, seen) for seen in starts]


def _start(problem: Problem, seen: Mapping[str, float]) -> np.ndarray:
    found: dict[str, float] = {}
    for name, prior in problem.priors.items():  # parents come first
        found[name] = seen.get(name, prior.centre * (found[prior.parent] if prior.parent else 1.0))
    return np.log(list(found.values()))


def _slow_loader(run: Run) -> dict[str, float]:
    setup, parts = run.setup, run.measured
    if not parts.wait_s:
        return {}
    data_s = parts.data_s + parts.loading_behind_s
    of = names(setup)
    if "storage_audio_s_per_s" in of:
        return {of["storage_audio_s_per_s"]: setup.computed_s / (setup.hosts * data_s)}
    decoders = setup.world_size * max(setup.loader_workers, 1)
    return {of["decode_audio_s_per_s"]: setup.computed_s / (decoders * data_s)}


def _noise(problem: Problem, theta_P: np.ndarray, residuals: Residuals) -> tuple[dict[str, float], dict[str, float]]:
    """Of each kind, from what the parameters leave unexplained; and its degrees of freedom."""
    slopes = jacobian(residuals, theta_P)
    leverage_N = np.einsum("mp,pm->m", slopes, np.linalg.pinv(slopes))[: len(problem.observed)]
    deviations_N = problem.deviations(theta_P[:, None], problem.measured)[:, 0]
    noise, freedom = {}, {}
    for kind, expected in NOISE.items():
        of = problem.kinds == kind
        freedom[kind] = PRIOR_FREEDOM + float((1 - leverage_N[of]).sum())
        squares = PRIOR_FREEDOM * expected**2 + float((deviations_N[of] ** 2).sum())
        noise[kind] = max(math.sqrt(squares / freedom[kind]), expected if kind in PARTS else 0.0)
    return noise, freedom


# ---- leave one out --------------------------------------------------------------------------------------------------


def _leave_one_out(runs: Sequence[Run], rng: np.random.Generator) -> dict[str, LeftOut]:
    """Each configuration predicted from all others, if there are others."""
    found = {}
    for name, group in by_configuration(runs).items():
        # On spot the steps are the same as on demand: whoever has seen these has seen those.
        others = [r for r in runs if r.cell["name"] != name and not is_same(r.setup, mean_setup(group))]
        if others:
            found[name] = _left_out(group, others, rng)
    return found


def _left_out(left: Sequence[Run], others: Sequence[Run], rng: np.random.Generator) -> LeftOut:
    measured_s, found = fmean(run.step_s for run in left), _estimated(others)
    try:
        predicted = found.fitted(_normal(found, rng), others).predict(mean_setup(left))
    except InputError as error:
        return LeftOut(measured_s, None, None, None, str(error))
    return LeftOut(measured_s, float(predicted.terms.step_s), predicted.low_s, predicted.high_s)


def _normal(found: Estimate, rng: np.random.Generator) -> np.ndarray:
    """P x S as if all were linear, which is enough for one configuration of many."""
    inverse = np.linalg.pinv(jacobian(found.problem.residuals(found.noise), found.theta_P))
    return found.theta_P[:, None] + inverse @ rng.standard_normal((inverse.shape[1], SAMPLES))
