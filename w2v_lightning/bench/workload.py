"""What the training steps that are timed work on: real Batches through plan, split and masks, their audio noise.

How long a step takes hangs on lengths, not on what is said, so nothing is read: durations are like LibriSpeech's
train-clean-100, or those of a manifest, whose audio need not be there.

Shapes: N utterances, B of a micro-batch, T samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch

from w2v_lightning.data.batch import SAMPLE_RATE, Batch, InputSpec
from w2v_lightning.data.checks import usable
from w2v_lightning.data.loader import UtteranceDataset
from w2v_lightning.data.manifest import Manifest
from w2v_lightning.data.samplers import Slot, TrainSampler
from w2v_lightning.data.trial import NoiseDataset
from w2v_lightning.errors import InputError

NUM_UTTERANCES = 28_539  # of train-clean-100: a step's padding comes from how densely durations lie
LETTERS_PER_SECOND = 14
SEED = 0


@dataclass(frozen=True)
class Workload:
    """Global steps as micro-batches that fit on a device; on the CPU, pinned where a GPU will fetch them."""

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
        """Seconds of real audio in one pass over all steps: what counts as work."""
        return sum(self.num_samples) / SAMPLE_RATE

    @cached_property
    def padding(self) -> float:
        """Share of what a model computes on that is not audio."""
        return 1 - self.audio_s * SAMPLE_RATE / sum(batch.waveforms_BT.numel() for batch in self.batches)

    @cached_property
    def num_samples(self) -> list[int]:
        """Of every utterance of a pass."""
        return [n for batch in self.batches if not batch.is_filler for n in batch.num_samples_B.tolist()]


def librispeech_durations_s(rng: np.random.Generator, number: int = NUM_UTTERANCES) -> np.ndarray:
    """Of N utterances that last as train-clean-100's do: most 12 to 16.5 s, 12.7 s on average."""
    long_s, short_s = rng.normal(14.3, 1.4, number).clip(8.0, 17.0), rng.uniform(2.0, 11.5, number)
    return np.where(rng.random(number) < 0.79, long_s, short_s).round(3)


def like_librispeech(spec: InputSpec, number: int = NUM_UTTERANCES) -> Manifest:
    """Utterances that last as train-clean-100's do, with random letters."""
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
    device_seconds: Sequence[float],
    num_steps: int,
    pin: bool,
    rank: int = 0,
    world_size: int = 1,
) -> dict[float, Workload]:
    """A rank's share of the same `num_steps` global steps, from short to long utterances, cut for each of
    `device_seconds`.

    Raises:
        InputError: an utterance is longer than `device_seconds`, or there are fewer steps than asked for.
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
    cut = {"device_seconds": device_seconds, "rank": rank, "world_size": world_size}
    sampler = TrainSampler(durations_s_N, batch_seconds=batch_seconds, seed=SEED, **cut)
    slots: dict[int, list[Slot]] = {}
    for slot in sampler:
        slots.setdefault(slot.global_step, []).append(slot)
    if len(slots) < num_steps:
        raise InputError(
            f"--steps is {num_steps}, but the data make {len(slots)} of {batch_seconds:g} s: lower either."
        )
    chosen = _evenly_by_duration(slots, durations_s_N, num_steps)
    steps = tuple(tuple(_batch(dataset, slot, pin) for slot in slots[step]) for step in chosen)
    return Workload(device_seconds, steps)


def _check_fits(durations_s_N: np.ndarray, batch_seconds: float, device_seconds: float) -> None:
    longest_s = float(durations_s_N.max())
    if longest_s > min(device_seconds, batch_seconds):
        raise InputError(
            f"The longest utterance lasts {longest_s:.2f} s, but --device-seconds is {device_seconds:g} and"
            f" --batch-seconds {batch_seconds:g}: raise what is below it."
        )


def _evenly_by_duration(slots: dict[int, list[Slot]], durations_s_N: np.ndarray, num_steps: int) -> list[int]:
    """Steps at even quantiles of an epoch's, so that they stand for all of it; in the order of the plan."""
    by_duration = sorted(slots, key=lambda step: durations_s_N[slots[step][0].step_positions].mean())
    return sorted(by_duration[int((i + 0.5) * len(slots) / num_steps)] for i in range(num_steps))


def _batch(dataset: UtteranceDataset, slot: Slot, pin: bool) -> Batch:
    return dataset[slot].pin_memory() if pin else dataset[slot]


def _letters(spec: InputSpec) -> list[str]:
    vocabulary = spec.vocabulary
    return [t for t in vocabulary.tokens if len(t) == 1 and t not in (vocabulary.blank, vocabulary.word_delimiter)]


def without_padding(batch: Batch) -> Batch:
    """`batch` with every utterance cut to the shortest, its masks too, as a step of its own."""
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
