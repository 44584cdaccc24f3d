"""Workload of the timed training steps: Batches of noise, made by the real plan, split and masks.

The duration of a step depends on the lengths of its utterances, not on their content, so no audio is read: durations
are like those of LibriSpeech's train-clean-100, or those of a manifest, whose audio files need not exist.

Shapes: N utterances, B of a micro-batch, T samples.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch

from w2v_lightning.data.batch import Batch, InputSpec
from w2v_lightning.data.checks import usable
from w2v_lightning.data.loader import UtteranceDataset
from w2v_lightning.data.manifest import Manifest
from w2v_lightning.data.samplers import Slot, TrainSampler
from w2v_lightning.data.trial import NoiseDataset
from w2v_lightning.errors import InputError

NUM_UTTERANCES = 28_539  # as in train-clean-100, because the density of durations determines the padding of a step
LETTERS_PER_SECOND = 14
SEED = 0


@dataclass(frozen=True)
class Workload:
    """Global steps as micro-batches that fit on a device. They are in host memory, pinned if a GPU will fetch them."""

    device_seconds: float
    steps: tuple[tuple[Batch, ...], ...]

    @property
    def num_micro_batches(self) -> int:
        return len(self.steps[0])

    @property
    def batches(self) -> list[Batch]:
        return [batch for step in self.steps for batch in step]

    @cached_property
    def audio_s(self) -> float:
        """Seconds of audio in one pass over all steps, without padding."""
        return sum(self.num_samples) / self.batches[0].sample_rate

    @cached_property
    def padding(self) -> float:
        """Share of the samples that a model computes on that is padding."""
        return 1 - sum(self.num_samples) / sum(batch.waveforms_BT.numel() for batch in self.batches)

    @cached_property
    def num_samples(self) -> list[int]:
        """Number of samples of each utterance of a pass."""
        return [n for batch in self.batches if not batch.is_filler for n in batch.num_samples_B.tolist()]


def librispeech_durations_s(rng: np.random.Generator, number: int = NUM_UTTERANCES) -> np.ndarray:
    """Draw durations (s) of N utterances, distributed as in train-clean-100: most 12 to 16.5 s, 12.7 s on average."""
    long_s, short_s = rng.normal(14.3, 1.4, number).clip(8.0, 17.0), rng.uniform(2.0, 11.5, number)
    return np.where(rng.random(number) < 0.79, long_s, short_s).round(3)


def like_librispeech(spec: InputSpec, number: int = NUM_UTTERANCES) -> Manifest:
    """Return a manifest with the durations of train-clean-100 and texts of random letters."""
    rng = np.random.default_rng(SEED)
    durations_s_N = librispeech_durations_s(rng, number)
    letters = _letters(spec)
    words = [spec.vocabulary.separator.join(rng.choice(letters, rng.integers(1, 9))) for _ in range(2000)]
    text = " ".join(words)
    starts = rng.integers(0, len(text) // 2, number)
    texts = [text[i : i + int(s * LETTERS_PER_SECOND)] for i, s in zip(starts, durations_s_N, strict=True)]
    names = [f"noise-{i:05}" for i in range(number)]
    return Manifest(names, names, durations_s_N, texts, names)


def workloads(
    manifest: Manifest,
    spec: InputSpec,
    *,
    batch_seconds: float,
    device_seconds: Iterable[float],
    num_steps: int,
    pin: bool,
    rank: int = 0,
    world_size: int = 1,
) -> dict[float, Workload]:
    """Return a rank's share of global steps, split into micro-batches for each of `device_seconds`.

    The steps are the same for all of `device_seconds`, and range from short to long utterances.

    Args:
        manifest: utterances; those unusable for training are skipped.
        spec: input of the model.
        batch_seconds: audio per global step (s).
        device_seconds: audio per micro-batch (s), padding included; one workload is returned for each.
        num_steps: number of steps.
        pin: pinned memory for the batches.
        rank: rank whose share is returned.
        world_size: number of ranks.

    Raises:
        InputError: an utterance is longer than `device_seconds`, or the manifest has fewer steps than `num_steps`.
    """
    manifest = usable(manifest, spec, split="--manifest", skip_unusable=True)
    dataset = NoiseDataset(manifest, spec)
    return {s: _workload(dataset, batch_seconds, s, num_steps, pin, rank, world_size) for s in device_seconds}


def _workload(
    dataset: UtteranceDataset,
    batch_seconds: float,
    device_seconds: float,
    num_steps: int,
    pin: bool,
    rank: int,
    world_size: int,
) -> Workload:
    durations_s_N = dataset.manifest.durations_s_N
    _check_fits(durations_s_N, batch_seconds, device_seconds)
    sampler = TrainSampler(
        durations_s_N,
        batch_seconds=batch_seconds,
        device_seconds=device_seconds,
        seed=SEED,
        rank=rank,
        world_size=world_size,
        is_share=True,
    )
    slots: dict[int, list[Slot]] = {}
    for slot in sampler:
        slots.setdefault(slot.global_step, []).append(slot)
    if len(slots) < num_steps:
        raise InputError(
            f"--steps is {num_steps}, but the data make {len(slots)} steps of {batch_seconds:g} s: lower --steps or"
            " --batch_seconds."
        )
    chosen = _evenly_by_duration(slots, durations_s_N, num_steps)
    steps = tuple(tuple(_batch(dataset, slot, pin) for slot in slots[step]) for step in chosen)
    return Workload(device_seconds, steps)


def _check_fits(durations_s_N: np.ndarray, batch_seconds: float, device_seconds: float) -> None:
    longest_s = float(durations_s_N.max())
    if longest_s > min(device_seconds, batch_seconds):
        raise InputError(
            f"The longest utterance lasts {longest_s:.2f} s, but --device_seconds is {device_seconds:g} and"
            f" --batch_seconds {batch_seconds:g}: raise the one below it."
        )


def _evenly_by_duration(slots: dict[int, list[Slot]], durations_s_N: np.ndarray, num_steps: int) -> list[int]:
    """Choose steps at even quantiles of their durations, to represent the whole epoch; return them in plan order."""
    by_duration = sorted(slots, key=lambda step: durations_s_N[slots[step][0].step_positions].mean())
    return sorted(by_duration[int((i + 0.5) * len(slots) / num_steps)] for i in range(num_steps))


def _batch(dataset: UtteranceDataset, slot: Slot, pin: bool) -> Batch:
    return dataset[slot].pin_memory() if pin else dataset[slot]


def _letters(spec: InputSpec) -> list[str]:
    vocabulary = spec.vocabulary
    return [t for t in vocabulary.tokens if len(t) == 1 and t not in (vocabulary.blank, vocabulary.word_delimiter)]


def without_padding(batch: Batch) -> Batch:
    """Return a step of its own from `batch`, with all utterances and masks cut to the length of the shortest."""
    num_samples, num_frames = int(batch.num_samples_B.min()), int(batch.num_frames_B.min())
    time_mask_BF = batch.time_mask_BF
    return replace(
        batch,
        waveforms_BT=batch.waveforms_BT[:, :num_samples].contiguous(),
        num_samples_B=torch.full_like(batch.num_samples_B, num_samples),
        num_frames_B=torch.full_like(batch.num_frames_B, num_frames),
        time_mask_BF=None if time_mask_BF is None else time_mask_BF[:, :num_frames].contiguous(),
        micro_batch=0,
        num_micro_batches=1,
        num_utterances_in_step=len(batch),
    )
