"""Fitted step-time model: predictions, their uncertainty and their basis."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, Literal, TypedDict

import numpy as np

from w2v_lightning.errors import InputError
from w2v_lightning.perf_model.priors import Prior, unseen
from w2v_lightning.perf_model.runs import Run
from w2v_lightning.perf_model.specs import short_name
from w2v_lightning.perf_model.step_time import Setup, Terms, bottleneck, names, terms
from w2v_lightning.runtime.files import atomic_text_file
from w2v_lightning.runtime.schema import Rule, check_content, read_json

FORMAT = 1
LOW, HIGH = 0.05, 0.95  # bounds of all intervals
# A parameter counts as measured if the runs reduced its standard deviation to less than this share of the prior's.
MAX_SD_SHARE = 0.5
LEAST_EFFECT = 0.01  # least share of the step's time at which a predicted parameter is reported
AVERAGED = ("audio_s", "computed_s", "flops_per_audio_s")  # fields of Setup that vary a little between repetitions
SAME = 0.1  # largest relative difference of these within one configuration

Positive = Annotated[float, Rule("a number above 0", lambda value: value > 0)]
Basis = Literal["measured", "predicted"]


@dataclass(frozen=True)
class Parameter:
    """Fitted parameter with its uncertainty.

    Args:
        value: most probable value.
        low, high: bounds of the 90 % interval.
        basis: "measured" by the runs, or "predicted" from `source` alone.
        source: source of the prior.
    """

    value: float
    low: float
    high: float
    basis: Basis
    source: str


@dataclass(frozen=True)
class Prediction:
    """Predicted step time.

    Args:
        terms: parts of the step.
        low_s, high_s: bounds of the 90 % interval for `terms.step_s` of a new run.
        basis: "measured" if this configuration was run; "predicted" if it follows from others and from specifications.
        reasons: parameters that matter here and that no run has measured, with their sources.
        bottleneck: part whose speed-up would pay most, as returned by `step_time.bottleneck`.
    """

    terms: Terms
    low_s: float
    high_s: float
    basis: Basis
    reasons: tuple[str, ...]
    bottleneck: str


@dataclass(frozen=True)
class LeftOut:
    """Configuration predicted from all others; without a prediction, `why` gives the reason."""

    measured_s: float
    predicted_s: float | None
    low_s: float | None
    high_s: float | None
    why: str = ""

    @property
    def error(self) -> float | None:
        """Relative error: 0.1 means predicted 10 % too slow."""
        return None if self.predicted_s is None else self.predicted_s / self.measured_s - 1


class _File(TypedDict):
    """Content of the JSON file."""

    values: dict[str, Positive]
    samples: dict[str, list[Positive]]
    priors: dict[str, Prior]
    noise: float
    freedom: Positive
    configurations: dict[str, Setup]
    leave_one_out: dict[str, LeftOut]
    notes: list[str]


@dataclass(frozen=True)
class Fitted:
    """Result of `fitting.fit`.

    Args:
        values: most probable value of each parameter, by name.
        samples: draws of each parameter for its uncertainty; the i-th draws of all parameters belong together.
        priors: prior of each parameter.
        noise: standard deviation of the logarithm of a run's step time around the model's.
        freedom: degrees of freedom of the estimate of `noise`.
        configurations: configurations that were run, by name.
        leave_one_out: each configuration predicted from all others; empty unless requested.
        notes: conclusions that the runs allow or do not allow.
    """

    values: dict[str, float]
    samples: dict[str, np.ndarray]
    priors: dict[str, Prior]
    noise: float
    freedom: float
    configurations: dict[str, Setup]
    leave_one_out: dict[str, LeftOut] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def parameters(self) -> dict[str, Parameter]:
        """Parameters with their uncertainty, by name."""
        return {name: self._parameter(name) for name in self.values}

    def predict(self, setup: Setup) -> Prediction:
        """Predict the step time of a configuration.

        Raises:
            InputError: the speed of the device, or the rate of the link, is unknown.
        """
        unknown = self._unknown(setup)
        values = self.values | {name: _centre(prior, self.values) for name, prior in unknown.items()}
        low_s, high_s = np.quantile(self.draws(setup, np.random.default_rng(0), 1000), [LOW, HIGH]).tolist()
        parts = Terms(**{name: float(value) for name, value in vars(terms(setup, values)).items()})
        is_measured = any(is_same(setup, other) for other in self.configurations.values())
        basis: Basis = "measured" if is_measured else "predicted"
        reasons = self._reasons(setup, values, unknown)
        return Prediction(parts, low_s, high_s, basis, reasons, bottleneck(setup, values))

    def draws(self, setup: Setup, rng: np.random.Generator, n: int) -> np.ndarray:
        """Draw the step times of `n` new runs, in seconds.

        The draws contain the uncertainty of the parameters and the variation between runs.

        Raises:
            InputError: the speed of the device, or the rate of the link, is unknown.
        """
        chosen = rng.integers(len(next(iter(self.samples.values()))), size=n)
        samples = {name: sample[chosen] for name, sample in self.samples.items()}
        for name, prior in self._unknown(setup).items():
            samples[name] = _centre(prior, samples) * np.exp(prior.log_sd * rng.standard_normal(n))
        return terms(setup, samples).step_s * np.exp(self.noise * rng.standard_t(self.freedom, n))

    def save(self, path: Path) -> None:
        """Write the model to a JSON file atomically."""
        rounded = {name: [float(f"{value:.6g}") for value in sample] for name, sample in self.samples.items()}
        with atomic_text_file(path) as file:
            json.dump({"format": FORMAT} | asdict(self) | {"samples": rounded}, file, indent=1)

    @classmethod
    def load(cls, path: Path) -> "Fitted":
        """Read a model written by `save`.

        Raises:
            InputError: the file is missing, cannot be read, or is not a fitted model of this format.
        """
        remedy = "run `python -m w2v_lightning study report` again."
        try:
            content = read_json(path, remedy)
        except FileNotFoundError:
            raise InputError(f"{path} not found; `python -m w2v_lightning study report` writes it.") from None
        names = {f.name for f in fields(cls)}
        if not isinstance(content, dict) or content.pop("format", None) != FORMAT or set(content) != names:
            raise InputError(f"{path} is not a fitted model of format {FORMAT}; {remedy}")
        check_content(content, _File, path, remedy)
        return cls(
            values=content["values"],
            samples={name: np.array(sample) for name, sample in content["samples"].items()},
            priors={name: Prior(**prior) for name, prior in content["priors"].items()},
            noise=content["noise"],
            freedom=content["freedom"],
            configurations={name: Setup(**setup) for name, setup in content["configurations"].items()},
            leave_one_out={name: LeftOut(**left_out) for name, left_out in content["leave_one_out"].items()},
            notes=tuple(content["notes"]),
        )

    def _parameter(self, name: str) -> Parameter:
        low, high = np.quantile(self.samples[name], [LOW, HIGH]).tolist()
        basis: Basis = "measured" if self._is_learned(name) else "predicted"
        return Parameter(self.values[name], low, high, basis, self.priors[name].source)

    def _is_learned(self, name: str) -> bool:
        return name in self._learned

    @cached_property
    def _learned(self) -> frozenset[str]:
        """Names of the parameters that the runs have measured."""
        return frozenset(filter(self._has_learned, self.values))

    def _has_learned(self, name: str) -> bool:
        prior = self.priors[name]
        parent_sd = self.priors[prior.parent].log_sd if prior.parent else 0.0
        return float(np.log(self.samples[name]).std()) < MAX_SD_SHARE * math.hypot(prior.log_sd, parent_sd)

    def _unknown(self, setup: Setup) -> dict[str, Prior]:
        """Priors of the setup's parameters that were not fitted."""
        by_name: dict[str, Prior] = {}
        for kind, name in names(setup).items():
            if name in self.values:
                continue
            prior = unseen(kind, setup, self.values)
            if prior is None:
                devices = sorted({setup.device for setup in self.configurations.values()})
                raise InputError(
                    f"{name} is unknown and cannot be predicted from the measured devices ({', '.join(devices)}). Add a"
                    " run on this device to the study; one configuration is enough."
                )
            by_name[name] = prior
        return by_name

    def _reasons(self, setup: Setup, values: Mapping[str, float], unknown: Mapping[str, Prior]) -> tuple[str, ...]:
        """Parameters that matter here and were not measured, with their sources."""
        priors = {name: prior for name, prior in self.priors.items() if not self._is_learned(name)} | dict(unknown)
        relevant = [name for name in names(setup).values() if name in priors and _matters(setup, values, name, priors)]
        return tuple(f"{name} is predicted: {priors[name].source}" for name in relevant)


def by_configuration(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Group repetitions by the name of their cell."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.cell["name"], []).append(run)
    return groups


def mean_setup(runs: Sequence[Run]) -> Setup:
    """Return the setup of one configuration, averaged over its repetitions.

    The mean audio of a step differs a little between repetitions, because their warm-ups differ in length.
    """
    setups = [run.setup for run in runs]
    means: dict[str, Any] = {name: fmean(getattr(setup, name) for setup in setups) for name in AVERAGED}
    return replace(setups[0], **means)


def is_same(setup: Setup, other: Setup) -> bool:
    """Return whether two setups are one configuration.

    They may differ in the device's name (long or short), the logging interval and, by less than SAME, in the mean audio
    of a step.
    """
    is_close = all(abs(getattr(setup, name) / getattr(other, name) - 1) < SAME for name in AVERAGED)
    averaged = {name: getattr(setup, name) for name in AVERAGED}
    aligned = replace(other, device=setup.device, logged_every=setup.logged_every, **averaged)
    return is_close and short_name(setup.device) == short_name(other.device) and aligned == setup


def _centre(prior: Prior, values: Mapping[str, Any]) -> Any:
    return prior.centre * values[prior.parent] if prior.parent else prior.centre


def _matters(setup: Setup, values: Mapping[str, float], name: str, priors: Mapping[str, Prior]) -> bool:
    factor = math.exp(priors[name].log_sd)
    low_s, high_s = (terms(setup, {**values, name: values[name] * f}).step_s for f in (1 / factor, factor))
    return abs(high_s - low_s) > LEAST_EFFECT * terms(setup, values).step_s
