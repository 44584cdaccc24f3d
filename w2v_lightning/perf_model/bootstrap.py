"""How sure a fit is: it is repeated for observations that might as well have been made.

"Randomize, then optimize" (Bardsley, Solonen, Haario and Laine 2014): all observations and all priors are drawn anew,
and the best parameters found for each draw; where all is linear and normal, they are the posterior itself. Within a
run, windows are drawn with replacement. Between runs there are few repetitions or none, so what their windows do not
show is drawn from the distribution of the residuals: Student's t, for its width is an estimate.

Shapes: S samples, R runs, P parameters, N observations, M = N + P residuals.
"""

import math
from collections.abc import Sequence

import numpy as np

from w2v_lightning.perf_model.problem import STEP, Problem, Residuals
from w2v_lightning.perf_model.runs import Run

SAMPLES = 400
ROUNDS = 12
DAMPING, LESS, MORE = 1e-3, 0.2, 10.0  # of Levenberg and Marquardt: at first, after a better step, after a worse


def bootstrap(
    problem: Problem,
    runs: Sequence[Run],
    theta_P: np.ndarray,
    noise: dict[str, float],
    freedom: dict[str, float],
    rng: np.random.Generator,
) -> np.ndarray:
    """P x S: parameters (logarithms) that are the best for one draw each.

    Args:
        problem, runs: that were fitted.
        theta_P: the estimate.
        noise: of each kind of observation.
        freedom: degrees of freedom that each of these was estimated from.
        rng: of all draws.
    """
    noise_S = {kind: sd * np.sqrt(freedom[kind] / rng.chisquare(freedom[kind], SAMPLES)) for kind, sd in noise.items()}
    noise_NS = np.stack([noise_S[kind] for kind in problem.kinds])
    measured_NS = _measured(problem, runs, noise_NS, rng)
    shift_PS = rng.standard_normal((len(theta_P), SAMPLES))
    each = len(theta_P) + 1  # columns that a sample's derivatives take
    residuals = problem.residuals_of(*(np.repeat(a, each, axis=1) for a in (measured_NS, noise_NS, shift_PS)))
    return _refitted(residuals, np.tile(theta_P, (SAMPLES, 1))).T


def _measured(problem: Problem, runs: Sequence[Run], noise_NS: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """All observations, drawn anew."""
    windows_RS = [_redrawn(run, rng) for run in runs]
    drawn_NS = noise_NS * rng.standard_normal(noise_NS.shape)
    for row_S, o in zip(drawn_NS, problem.observed, strict=True):
        if o.kind == "step":  # what its windows show is not drawn twice
            row_S *= math.sqrt(max(1 - (windows_RS[o.run].std() / row_S.std()) ** 2, 0.0))
            row_S += windows_RS[o.run]
    return np.stack([o.shifted(row_S) for o, row_S in zip(problem.observed, drawn_NS, strict=True)])


def _redrawn(run: Run, rng: np.random.Generator) -> np.ndarray:
    """S logarithms of the run's step time with its windows drawn again, over what it was, for as much audio."""
    seconds_W, computed_W = (np.array([w[name] for w in run.steady_windows]) for name in ("seconds", "computed_s"))
    chosen_SW = rng.integers(len(seconds_W), size=(SAMPLES, len(seconds_W)))
    redrawn_S = seconds_W[chosen_SW].sum(axis=1) / computed_W[chosen_SW].sum(axis=1)
    return np.log(redrawn_S / (seconds_W.sum() / computed_W.sum()))


def _refitted(residuals: Residuals, theta_SP: np.ndarray) -> np.ndarray:
    """Levenberg and Marquardt, for all samples at once: scipy's, one after the other, takes a hundred times as long."""
    residuals_SM, jacobian_SMP = _linearised(residuals, theta_SP)
    damping_S = np.full(len(theta_SP), DAMPING)
    for _ in range(ROUNDS):
        transposed_SPM = jacobian_SMP.swapaxes(1, 2)
        hessian_SPP = transposed_SPM @ jacobian_SMP
        gradient_SP1 = transposed_SPM @ residuals_SM[..., None]
        diagonal_SP = np.einsum("spp->sp", hessian_SPP)  # a view: writing to it writes there
        diagonal_SP *= 1 + damping_S[:, None]
        trial_SP = theta_SP - np.linalg.solve(hessian_SPP, gradient_SP1)[..., 0]
        trial_SM, trial_SMP = _linearised(residuals, trial_SP)
        is_better_S = (trial_SM**2).sum(axis=1) < (residuals_SM**2).sum(axis=1)
        theta_SP = np.where(is_better_S[:, None], trial_SP, theta_SP)
        residuals_SM = np.where(is_better_S[:, None], trial_SM, residuals_SM)
        jacobian_SMP = np.where(is_better_S[:, None, None], trial_SMP, jacobian_SMP)
        damping_S = damping_S * np.where(is_better_S, LESS, MORE)
    return theta_SP


def _linearised(residuals: Residuals, theta_SP: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Residuals (S x M) and their derivatives (S x M x P), by differences."""
    num_samples, num_parameters = theta_SP.shape
    steps = STEP * np.eye(num_parameters + 1, num_parameters, k=-1)
    columns = (theta_SP[:, None] + steps).reshape(-1, num_parameters).T
    found_MSK = residuals(columns).reshape(-1, num_samples, num_parameters + 1)
    residuals_SM = found_MSK[..., 0].T
    return residuals_SM, (found_MSK[..., 1:] - found_MSK[..., :1]).swapaxes(0, 1) / STEP
