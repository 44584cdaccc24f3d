"""A step-time model that was fitted: what it predicts, how surely, and from what."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import numpy as np

from w2v_lightning.errors import InputError
from w2v_lightning.perf_model.priors import Prior, unseen
from w2v_lightning.perf_model.runs import Run
from w2v_lightning.perf_model.specs import short_name
from w2v_lightning.perf_model.step_time import Setup, Terms, bottleneck, names, terms
from w2v_lightning.runtime.files import atomic_text_file

FORMAT = 1
LOW, HIGH = 0.05, 0.95  # bounds of all intervals
LEAST_LEARNED = 0.5  # of a parameter's prior standard deviation: where runs have left less of it, they have measured it
LEAST_EFFECT = 0.01  # of the step's time; what matters less goes without saying
NUMBERS = ("audio_s", "computed_s", "flops_per_audio_s")
SAME = 0.1  # a step of as much audio, within so much, is the same configuration

Basis = Literal["measured", "predicted"]


@dataclass(frozen=True)
class Parameter:
    """One that was fitted.

    Args:
        value: the best.
        low, high: 90 % interval.
        basis: "measured": the runs say so; "predicted": they do not, it is as `source` has it.
        source: of what was known before the runs.
    """

    value: float
    low: float
    high: float
    basis: Basis
    source: str


@dataclass(frozen=True)
class Prediction:
    """Of a step's time, with a 90 % interval for a new run's.

    Args:
        terms: its parts.
        low_s, high_s: of `terms.step_s`.
        basis: "measured": this configuration was run; "predicted": it follows from others, from specifications.
        reasons: what it rests on that no run has shown.
        bottleneck: what it would pay most to speed up, as `step_time.bottleneck` has it.
    """

    terms: Terms
    low_s: float
    high_s: float
    basis: Basis
    reasons: tuple[str, ...]
    bottleneck: str


@dataclass(frozen=True)
class LeftOut:
    """A configuration predicted from all others. Without a prediction, `why` says what they do not tell."""

    measured_s: float
    predicted_s: float | None
    low_s: float | None
    high_s: float | None
    why: str = ""

    @property
    def error(self) -> float | None:
        """Relative: 0.1 is predicted 10 % too slow."""
        return None if self.predicted_s is None else self.predicted_s / self.measured_s - 1


@dataclass(frozen=True)
class Fitted:
    """What `fitting.fit` makes of runs.

    Args:
        values: of the parameters, by name.
        samples: of each, as many as the bootstrap has; the i-th ones belong together.
        priors: of each, before the runs.
        noise: standard deviation of the logarithm of a run's step time around the model's.
        freedom: degrees of freedom that this was estimated from.
        configurations: what was run, by name.
        leave_one_out: each configuration predicted from all others; empty where that was not asked for.
        notes: what can and cannot be concluded.
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
        """All, with their uncertainty, by name."""
        return {name: self._parameter(name) for name in self.values}

    def predict(self, setup: Setup) -> Prediction:
        """A step's time.

        Raises:
            InputError: nothing is known of the device, or of the link.
        """
        unknown = self._unknown(setup)
        values = self.values | {name: _centre(prior, self.values) for name, prior in unknown.items()}
        low_s, high_s = np.quantile(self.draws(setup, np.random.default_rng(0), 1000), [LOW, HIGH]).tolist()
        found = Terms(**{name: float(value) for name, value in vars(terms(setup, values)).items()})
        is_measured = any(is_same(setup, other) for other in self.configurations.values())
        basis = "measured" if is_measured else "predicted"
        reasons = self._reasons(setup, values, unknown)
        return Prediction(found, low_s, high_s, basis, reasons, bottleneck(setup, values))

    def draws(self, setup: Setup, rng: np.random.Generator, n: int) -> np.ndarray:
        """What `n` new runs might take for a step, in seconds: unsure parameters, and runs that are never the same.

        Raises:
            InputError: nothing is known of the device, or of the link.
        """
        chosen = rng.integers(len(next(iter(self.samples.values()))), size=n)
        samples = {name: sample[chosen] for name, sample in self.samples.items()}
        for name, prior in self._unknown(setup).items():
            samples[name] = _centre(prior, samples) * np.exp(prior.log_sd * rng.standard_normal(n))
        return terms(setup, samples).step_s * np.exp(self.noise * rng.standard_t(self.freedom, n))

    def save(self, path: Path) -> None:
        """As JSON, whole or not at all."""
        rounded = {name: [float(f"{value:.6g}") for value in sample] for name, sample in self.samples.items()}
        with atomic_text_file(path) as file:
            json.dump({"format": FORMAT} | asdict(replace(self, samples=rounded)), file, indent=1)

    @classmethod
    def load(cls, path: Path) -> "Fitted":
        """What `save` has written.

        Raises:
            InputError: it is not there, or it is something else.
        """
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError(
                f"{path}: there is no such file; `python -m w2v_lightning study report` writes it."
            ) from None
        except (ValueError, OSError) as error:
            raise InputError(f"{path} cannot be read ({error}): make the study's report again.") from None
        names = {f.name for f in fields(cls)}
        if not isinstance(found, dict) or found.pop("format", None) != FORMAT or set(found) != names:
            raise InputError(f"{path} is no fitted model of format {FORMAT}: make the study's report again.")
        return cls(
            values=found["values"],
            samples={name: np.array(sample) for name, sample in found["samples"].items()},
            priors={name: Prior(**prior) for name, prior in found["priors"].items()},
            noise=found["noise"],
            freedom=found["freedom"],
            configurations={name: Setup(**setup) for name, setup in found["configurations"].items()},
            leave_one_out={name: LeftOut(**left) for name, left in found["leave_one_out"].items()},
            notes=tuple(found["notes"]),
        )

    def _parameter(self, name: str) -> Parameter:
        low, high = np.quantile(self.samples[name], [LOW, HIGH]).tolist()
        basis = "measured" if self._is_learned(name) else "predicted"
        return Parameter(self.values[name], low, high, basis, self.priors[name].source)

    def _is_learned(self, name: str) -> bool:
        prior = self.priors[name]
        parent_sd = self.priors[prior.parent].log_sd if prior.parent else 0.0
        return float(np.log(self.samples[name]).std()) < LEAST_LEARNED * math.hypot(prior.log_sd, parent_sd)

    def _unknown(self, setup: Setup) -> dict[str, Prior]:
        """Parameters of the setup that were not fitted."""
        found = {
            name: unseen(what, setup, self.values) for what, name in names(setup).items() if name not in self.values
        }
        for name, prior in found.items():
            if prior is None:
                devices = sorted({setup.device for setup in self.configurations.values()})
                raise InputError(
                    f"{name}: nothing is known. It was measured on {', '.join(devices)} only, and one of the two is not"
                    " in w2v_lightning/perf_model/specs.py: run it once, one configuration is enough."
                )
        return found

    def _reasons(self, setup: Setup, values: Mapping[str, float], unknown: Mapping[str, Prior]) -> tuple[str, ...]:
        """What is not measured, if it matters here."""
        priors = {name: prior for name, prior in self.priors.items() if not self._is_learned(name)} | dict(unknown)
        mattering = [name for name in names(setup).values() if name in priors and _matters(setup, values, name, priors)]
        return tuple(f"{name} is predicted: {priors[name].source}" for name in mattering)


def by_configuration(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Repetitions together, by the name of their cell."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.cell["name"], []).append(run)
    return groups


def mean_setup(runs: Sequence[Run]) -> Setup:
    """Of one configuration; how much audio a step has differs a little with the steps that were warm-up."""
    setups = [run.setup for run in runs]
    return replace(setups[0], **{name: fmean(getattr(setup, name) for setup in setups) for name in NUMBERS})


def is_same(setup: Setup, other: Setup) -> bool:
    """But for the audio that a step happens to have, for which of its names a device is called by, and for how often it
    logs."""
    alike = all(abs(getattr(setup, name) / getattr(other, name) - 1) < SAME for name in NUMBERS)
    numbers = {name: getattr(setup, name) for name in NUMBERS}
    named = replace(other, device=setup.device, logged_every=setup.logged_every, **numbers)
    return alike and short_name(setup.device) == short_name(other.device) and named == setup


def _centre(prior: Prior, values: Mapping[str, Any]) -> Any:
    return prior.centre * values[prior.parent] if prior.parent else prior.centre


def _matters(setup: Setup, values: Mapping[str, float], name: str, priors: Mapping[str, Prior]) -> bool:
    factor = math.exp(priors[name].log_sd)
    low_s, high_s = (terms(setup, {**values, name: values[name] * f}).step_s for f in (1 / factor, factor))
    return abs(high_s - low_s) > LEAST_EFFECT * terms(setup, values).step_s
