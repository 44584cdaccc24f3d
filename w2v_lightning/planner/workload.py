"""What is to be trained, and what a step of it is on a machine: audio, padding, micro-batches, gradients.

With durations from a manifest the steps are those of the run itself (w2v_lightning/data/plan.py). With hours alone, a
step is filled and padded as in the studied runs of the same `batch_seconds` and the same plan; without any, as
LibriSpeech's would be.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from w2v_lightning.catalog.instances import Instance
from w2v_lightning.catalog.model_sizes import size_of
from w2v_lightning.errors import InputError
from w2v_lightning.perf_model.runs import Run
from w2v_lightning.perf_model.specs import short_name
from w2v_lightning.planner import memory
from w2v_lightning.reporting.units import percent

SAMPLE_RATE = 16_000
ALIKE = 0.1  # steps of about so much audio are filled and padded alike, models of about so many parameters take as much


@dataclass(frozen=True)
class Step:
    """The mean global step on one machine.

    Args:
        audio_s: real audio.
        computed_s: with padding; the device that has most of it, times the devices: the others wait for it.
        micro_batches: per device.
    """

    audio_s: float
    computed_s: float
    micro_batches: int


class Epoch(Protocol):
    """What is trained on in an epoch."""

    @property
    def steps(self) -> int: ...

    @property
    def utterance_s(self) -> float:
        """The mean."""

    @property
    def basis(self) -> str:
        """Where that is known from."""

    def step_on(self, world_size: int, device_seconds: float) -> Step:
        """
        Raises:
            InputError: it cannot be cut up for such devices.
        """


@dataclass(frozen=True)
class PlannedEpoch:
    """Of utterances whose durations are known: the plan of an epoch; those of others differ in nothing that counts."""

    durations_s_N: np.ndarray
    batch_seconds: float
    spread: float
    source: str

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
        count = micro_batches_per_rank(durations_s_N, self.batch_seconds, world_size, device_seconds, self.spread)
        most_s = [
            max(sum(_padded_s(durations_s_N[batch]) for batch in rank) for rank in ranks)
            for ranks in (split(durations_s_N, step, world_size, count) for step in self._plan)
        ]
        return Step(float(durations_s_N.sum()) / self.steps, world_size * statistics.fmean(most_s), count)


@dataclass(frozen=True)
class AssumedEpoch:
    """Of so many hours, in steps like those of other runs.

    Args:
        hours: of audio.
        batch_seconds: of a step, padding counted.
        fill: real audio over `batch_seconds`.
        padded: computed audio over real audio.
        utterance_s: mean duration.
        source: of all that, in words.
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
            f"{self.hours:g} h in steps as in {self.source}: {percent(self.fill, 1)} of batch_seconds are audio,"
            f" {percent(1 - 1 / self.padded, 1)} of what is computed is padding, utterances of {self.utterance_s:.1f} s"
        )

    def step_on(self, world_size: int, device_seconds: float) -> Step:
        """Devices have equal numbers of utterances, as the plan takes care of; but no less than one each."""
        audio_s = self.hours * 3600 / self.steps
        idle = max(1.0, world_size * self.utterance_s / audio_s)
        count = max(1, math.ceil(self.batch_seconds / (world_size * device_seconds)))
        return Step(audio_s, audio_s * self.padded * idle, count)


def planned_epoch(path: str, data: Mapping[str, Any]) -> PlannedEpoch:
    """Of a manifest, and the options of `data`.

    Raises:
        InputError: it cannot be read, or has nothing to train on.
    """
    from w2v_lightning.data.manifest import Manifest

    durations_s_N, most_s = Manifest.load(path).durations_s_N, data["max_seconds"]
    kept = durations_s_N if most_s is None else durations_s_N[durations_s_N <= most_s]
    if not len(kept):
        raise InputError(f"--manifest: {path} has no utterance to train on.")
    return PlannedEpoch(kept, data["batch_seconds"], data["duration_spread"], path)


def assumed_epoch(hours: float, batch_seconds: float, runs: Sequence[Run]) -> AssumedEpoch:
    """Of so many hours, in steps of so much audio."""
    from w2v_lightning.data import plan

    known = [run for run in runs if run.is_measured and _workload(run).get("plan_version") == plan.VERSION]
    alike = [run for run in known if abs(_workload(run)["batch_seconds"] / batch_seconds - 1) < ALIKE]
    if not alike:
        return _epoch_like_librispeech(hours, batch_seconds)

    def median(of: Any) -> float:
        return statistics.median(of(_workload(run)) for run in alike)

    return AssumedEpoch(
        hours=hours,
        batch_seconds=batch_seconds,
        fill=median(lambda work: work["audio_s_per_epoch"] / work["steps_per_epoch"] / work["batch_seconds"]),
        padded=statistics.median(run.setup.computed_s / run.setup.audio_s for run in alike),
        utterance_s=median(lambda work: work["audio_s_per_epoch"] / work["utterances_per_epoch"]),
        source=f"{len(alike)} studied run{'s' if len(alike) > 1 else ''} of {batch_seconds:g} s a step",
    )


def _epoch_like_librispeech(hours: float, batch_seconds: float) -> AssumedEpoch:
    """The padding is that of steps in one piece; in smaller micro-batches it is less."""
    from w2v_lightning.bench.workload import librispeech_durations_s
    from w2v_lightning.data.plan import SPREAD

    durations_s_N = librispeech_durations_s(np.random.default_rng(0))
    if batch_seconds < (longest_s := durations_s_N.max()):
        raise InputError(
            f"--hours: without a manifest utterances are taken to be as long as LibriSpeech's, up to {longest_s:.0f} s,"
            f" longer than a step of data.batch_seconds {batch_seconds:g}; give --manifest."
        )
    epoch = PlannedEpoch(durations_s_N, batch_seconds, SPREAD, source="")
    step = epoch.step_on(1, batch_seconds)
    return AssumedEpoch(
        hours=hours,
        batch_seconds=batch_seconds,
        fill=step.audio_s / batch_seconds,
        padded=step.computed_s / step.audio_s,
        utterance_s=epoch.utterance_s,
        source=f"a plan of utterances as long as LibriSpeech's, {batch_seconds:g} s a step",
    )


def _workload(run: Run) -> dict[str, Any]:
    return run.throughput["workload"]


def _padded_s(durations_s: np.ndarray) -> float:
    return len(durations_s) * float(durations_s.max()) if len(durations_s) else 0.0


# ---- the device and the model ----------------------------------------------------------------------------------------


def device_seconds(machine: Instance, world_size: int, config: Mapping[str, Any], runs: Sequence[Run]) -> float:
    """Audio that one GPU holds in a forward pass: as the config says, or as in runs of such a model on such a GPU; else
    what its memory has room for.

    It decides the number of micro-batches, and little of the time.

    Raises:
        InputError: the GPU cannot hold the model, or what the config says.
    """
    data, parameters = config["data"], size_of(config["model"]).parameters
    if data["device_seconds"] != "auto":
        memory.check_seconds(machine, world_size, config)
        return data["device_seconds"]
    same = [
        _workload(run)["device_seconds"]
        for run in runs
        if run.is_measured
        and short_name(run.throughput["device"]) == short_name(machine.gpu_name)
        and abs(_workload(run)["parameters"] / parameters - 1) < ALIKE
    ]
    return statistics.median(same) if same else memory.held_seconds(machine, world_size, config)


@dataclass(frozen=True)
class Model:
    """What a config trains.

    Args:
        flops_per_audio_s: of forward and backward.
        gradient_bytes: of what is trained.
        gradient_buckets: in so many messages of DDP.
    """

    flops_per_audio_s: float
    gradient_bytes: int
    gradient_buckets: int


BASE = Model(flops_per_audio_s=32.5e9, gradient_bytes=360_783_488, gradient_buckets=15)  # feature encoder frozen


def model_of(config: Mapping[str, Any], utterance_s: float) -> Model:
    """By its shape, without weights: of a pretrained one, that of its size.

    Raises:
        InputError: the config does not build.
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
        [round(utterance_s * SAMPLE_RATE)],
        trains_feature_encoder=any("feature_extractor" in name for name in trained),
    )
    buckets = bucket_bytes(module.parameters())
    return Model(flops / utterance_s, sum(buckets), len(buckets))
