"""Work of a step on a machine: audio, padding, micro-batches and gradients.

With the durations of a manifest, the steps are those of the run itself (w2v_lightning/data/plan.py). With only the
hours of audio, steps have the fill and padding of studied runs with the same `batch_seconds` and plan version, or else
those of a plan of LibriSpeech.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from w2v_lightning.catalog.instances import Instance
from w2v_lightning.catalog.model_sizes import size_of
from w2v_lightning.errors import InputError
from w2v_lightning.perf_model.runs import Run
from w2v_lightning.perf_model.specs import short_name
from w2v_lightning.planner import memory
from w2v_lightning.reporting.units import percent

# Largest relative difference of steps that have the same fill and padding, and of models that need the same memory.
ALIKE = 0.1


@dataclass(frozen=True)
class Step:
    """Mean global step on one machine.

    Args:
        audio_s: seconds of real audio.
        computed_s: seconds of audio including padding: that of the fullest device times the number of devices, because
            the others wait for it.
        micro_batches: number of micro-batches per device.
    """

    audio_s: float
    computed_s: float
    micro_batches: int


class Epoch(Protocol):
    """Training data of one epoch."""

    @property
    def steps(self) -> int:
        """Number of steps."""

    @property
    def utterance_s(self) -> float:
        """Mean duration of an utterance, in seconds."""

    @property
    def basis(self) -> str:
        """Source of these figures, in words."""

    def step_on(self, world_size: int, device_seconds: float) -> Step:
        """Return the mean step on `world_size` devices with micro-batches of at most `device_seconds`.

        Raises:
            InputError: an utterance is longer than `device_seconds`.
        """


@dataclass(frozen=True)
class PlannedEpoch:
    """Epoch of utterances with known durations. It is that of the run's first epoch, which represents all others."""

    durations_s_N: np.ndarray
    batch_seconds: float
    spread: float
    source: str
    is_share: bool = False  # see data.plan.micro_batches_per_rank

    @property
    def utterance_s(self) -> float:
        return float(self.durations_s_N.mean())

    @property
    def basis(self) -> str:
        hours = self.durations_s_N.sum() / 3600
        return f"planned from {self.source}: {len(self.durations_s_N)} utterances, {hours:.4g} h"

    @cached_property
    def _plan(self) -> list[np.ndarray]:
        from w2v_lightning.data.plan import plan

        return plan(self.durations_s_N, self.batch_seconds, seed=0, epoch=0, spread=self.spread)

    @property
    def steps(self) -> int:
        return len(self._plan)

    @cached_property
    def _steps_on(self) -> dict[tuple[int, float], Step]:
        return {}

    def step_on(self, world_size: int, device_seconds: float) -> Step:
        if (world_size, device_seconds) not in self._steps_on:
            self._steps_on[world_size, device_seconds] = self._step_on(world_size, device_seconds)
        return self._steps_on[world_size, device_seconds]

    def _step_on(self, world_size: int, device_seconds: float) -> Step:
        from w2v_lightning.data.plan import micro_batches_per_rank, split

        durations_s_N = self.durations_s_N
        count = micro_batches_per_rank(
            durations_s_N, self.batch_seconds, world_size, device_seconds, self.spread, self.is_share
        )
        fullest_s = [
            max(sum(_padded_s(durations_s_N[batch]) for batch in rank) for rank in ranks)
            for ranks in (split(durations_s_N, step, world_size, count) for step in self._plan)
        ]
        return Step(float(durations_s_N.sum()) / self.steps, world_size * statistics.fmean(fullest_s), count)


@dataclass(frozen=True)
class AssumedEpoch:
    """Epoch of a given number of hours, in steps like those of other runs.

    Args:
        hours: hours of audio.
        batch_seconds: largest audio of a step including padding, in seconds.
        fill: ratio of real audio to `batch_seconds`.
        padded: ratio of computed audio to real audio.
        utterance_s: mean duration of an utterance, in seconds.
        source: source of these ratios and durations, in words.
    """

    hours: float
    batch_seconds: float
    fill: float
    padded: float
    utterance_s: float
    source: str

    @property
    def steps(self) -> int:
        return math.ceil(self.hours * 3600 / (self.batch_seconds * self.fill))

    @property
    def basis(self) -> str:
        return (
            f"{self.hours:g} h in steps like those of {self.source}: {percent(self.fill, 1)} of batch_seconds are"
            f" audio, {percent(1 - 1 / self.padded, 1)} of the computed audio is padding, mean utterance"
            f" {self.utterance_s:.1f} s"
        )

    def step_on(self, world_size: int, device_seconds: float) -> Step:
        """Return the mean step. The plan gives devices equal numbers of utterances, but at least one each."""
        audio_s = self.hours * 3600 / self.steps
        idle = max(1.0, world_size * self.utterance_s / audio_s)
        count = max(1, math.ceil(self.batch_seconds / (world_size * device_seconds)))
        return Step(audio_s, audio_s * self.padded * idle, count)


def planned_epoch(path: str, data: Mapping[str, Any]) -> PlannedEpoch:
    """Return the epoch of a manifest.

    Args:
        path: manifest of the training data.
        data: `data` options of `fit`.

    Raises:
        InputError: the manifest cannot be read, or has no utterance of at most data.max_seconds.
    """
    from w2v_lightning.data.manifest import Manifest

    durations_s_N, max_s = Manifest.load(path).durations_s_N, data["max_seconds"]
    kept_s_N = durations_s_N if max_s is None else durations_s_N[durations_s_N <= max_s]
    if not len(kept_s_N):
        limit = "" if max_s is None else f" of at most data.max_seconds {max_s:g}"
        raise InputError(f"--manifest: {path} has no utterance{limit} to train on.")
    is_share = data["device_seconds"] != "auto"
    return PlannedEpoch(kept_s_N, data["batch_seconds"], data["duration_spread"], path, is_share)


def assumed_epoch(hours: float, batch_seconds: float, runs: Sequence[Run]) -> AssumedEpoch:
    """Return an epoch of `hours` of audio in steps of `batch_seconds`, like those of the runs.

    Raises:
        InputError: no run has such steps, and they are shorter than LibriSpeech's longest utterance.
    """
    from w2v_lightning.data import plan

    known = [run for run in runs if run.is_measured and _workload(run).get("plan_version") == plan.VERSION]
    alike = [run for run in known if abs(_workload(run)["batch_seconds"] / batch_seconds - 1) < ALIKE]
    if not alike:
        return _epoch_like_librispeech(hours, batch_seconds)

    def median(figure: Callable[[dict[str, Any]], float]) -> float:
        return statistics.median(figure(_workload(run)) for run in alike)

    return AssumedEpoch(
        hours=hours,
        batch_seconds=batch_seconds,
        fill=median(lambda work: work["audio_s_per_epoch"] / work["steps_per_epoch"] / work["batch_seconds"]),
        padded=statistics.median(run.setup.computed_s / run.setup.audio_s for run in alike),
        utterance_s=median(lambda work: work["audio_s_per_epoch"] / work["utterances_per_epoch"]),
        source=f"{len(alike)} studied run{'s' if len(alike) > 1 else ''} with {batch_seconds:g} s per step",
    )


def _epoch_like_librispeech(hours: float, batch_seconds: float) -> AssumedEpoch:
    """Epoch with LibriSpeech's durations. Its padding is that of one micro-batch per step; smaller ones have less."""
    from w2v_lightning.bench.workload import librispeech_durations_s
    from w2v_lightning.data.plan import SPREAD

    durations_s_N = librispeech_durations_s(np.random.default_rng(0))
    if batch_seconds < (longest_s := durations_s_N.max()):
        raise InputError(
            f"--hours: without a manifest, utterances are assumed to be as long as LibriSpeech's, up to"
            f" {longest_s:.0f} s. That is longer than data.batch_seconds {batch_seconds:g}; give --manifest."
        )
    epoch = PlannedEpoch(durations_s_N, batch_seconds, SPREAD, source="")
    step = epoch.step_on(1, batch_seconds)
    return AssumedEpoch(
        hours=hours,
        batch_seconds=batch_seconds,
        fill=step.audio_s / batch_seconds,
        padded=step.computed_s / step.audio_s,
        utterance_s=epoch.utterance_s,
        source=f"a plan of LibriSpeech's utterances, {batch_seconds:g} s per step",
    )


def _workload(run: Run) -> dict[str, Any]:
    return run.throughput["workload"]


def _padded_s(durations_s: np.ndarray) -> float:
    return len(durations_s) * float(durations_s.max()) if len(durations_s) else 0.0


# ---- the device and the model ----------------------------------------------------------------------------------------


def device_seconds(machine: Instance, world_size: int, config: Mapping[str, Any], runs: Sequence[Run]) -> float:
    """Return the seconds of audio that one GPU holds in a forward pass.

    It is the config's value; for auto, that of runs of such a model on such a GPU, or else an estimate by memory. It
    decides the number of micro-batches, and affects the time little.

    Raises:
        InputError: the GPU cannot hold the model, or not the configured audio.
    """
    data, parameters = config["data"], size_of(config["model"]).parameters
    if data["device_seconds"] != "auto":
        memory.check_seconds(machine, world_size, config)
        return data["device_seconds"]
    same = [
        _workload(run)["device_seconds"]
        for run in runs
        if run.is_measured
        and short_name(run.throughput["device"]) == short_name(machine.gpu)
        and abs(_workload(run)["parameters"] / parameters - 1) < ALIKE
    ]
    return statistics.median(same) if same else memory.held_seconds(machine, world_size, config)


@dataclass(frozen=True)
class Model:
    """Figures of a model that determine its step time.

    Args:
        flops_per_audio_s: FLOP of forward and backward pass per second of audio.
        gradient_bytes: bytes of the trained parameters' gradients.
        gradient_buckets: number of DDP messages for them.
    """

    flops_per_audio_s: float
    gradient_bytes: int
    gradient_buckets: int


def _sample_rate(pretrained: str | None) -> int:
    """Return the sample rate (Hz) of a model in a folder; models on the Hub, which are not fetched, have 16 kHz."""
    from w2v_lightning.model.stored import WaveformFormat, waveform_format

    is_folder = pretrained is not None and Path(pretrained).is_dir()
    return (waveform_format(str(pretrained)) if is_folder else WaveformFormat()).sample_rate


BASE = Model(flops_per_audio_s=32.5e9, gradient_bytes=360_783_488, gradient_buckets=15)  # with a frozen feature encoder


def model_of(config: Mapping[str, Any], utterance_s: float) -> Model:
    """Return the figures of a config's model.

    The model is built without its weights; a pretrained one is assumed to have the shape of its size.

    Args:
        config: options of `fit`.
        utterance_s: mean duration of an utterance, in seconds.

    Raises:
        InputError: the config is invalid.
    """
    from w2v_lightning.model.flops import training_flops
    from w2v_lightning.telemetry.all_reduce import bucket_bytes

    model = dict(config["model"])
    if model.get("pretrained"):
        model["config"] = size_of(model).config | (model.get("config") or {})
    from w2v_lightning.config import build

    module, _ = build({**config, "model": model})
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    flops = training_flops(
        module.model.config,
        [round(utterance_s * _sample_rate(model.get("pretrained")))],
        trains_feature_encoder=any("feature_extractor" in name for name in trained),
    )
    buckets = bucket_bytes(module.parameters())
    return Model(flops / utterance_s, sum(buckets), len(buckets))
