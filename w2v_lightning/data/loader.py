"""Read, decode, resample, normalise, mask and pad: from a slot of the plan to a Batch, inside a loader worker."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import soundfile
import torch
from torch.utils.data import Dataset, DistributedSampler

from w2v_lightning.data import plan
from w2v_lightning.data.batch import SAMPLE_RATE, Batch, InputSpec, pad
from w2v_lightning.data.manifest import Manifest
from w2v_lightning.data.masking import draw_masks, utterance_rng
from w2v_lightning.errors import InputError


@dataclass(frozen=True)
class Slot:
    """One micro-batch of the plan: which utterances, and their place in the epoch. All that a worker is told."""

    positions: np.ndarray
    epoch: int = 0
    global_step: int = 0
    micro_batch: int = 0
    num_micro_batches: int = 1
    num_utterances_in_step: int = 1
    is_filler: bool = False


class UtteranceDataset(Dataset):
    """`dataset[slot]` is the slot's Batch. One worker makes a whole micro-batch: nothing is copied twice."""

    def __init__(self, manifest: Manifest, spec: InputSpec, *, split: str = "", seed: int = 0, masked: bool = False):
        self.manifest = manifest
        self.spec = spec
        self.split = split
        self.seed = seed
        self.masked = masked
        self.texts = [spec.vocabulary.normalise(text) for text in manifest.texts]

    def __len__(self) -> int:
        return len(self.manifest)

    def __getitem__(self, slot: Slot) -> Batch:
        manifest, spec = self.manifest, self.spec
        ids = [manifest.ids[i] for i in slot.positions]
        texts = [self.texts[i] for i in slot.positions]
        waveforms = [self._waveform(i) for i in slot.positions]
        labels = [np.array(spec.vocabulary.encode(text), dtype=np.int64) for text in texts]
        num_samples_B = torch.tensor([len(waveform) for waveform in waveforms])
        num_frames_B = spec.num_frames(num_samples_B)
        time_mask_BF, channel_mask_BC = self._masks(ids, num_frames_B, slot.epoch)
        return Batch(
            waveforms_BT=pad(waveforms),
            num_samples_B=num_samples_B,
            num_frames_B=num_frames_B,
            labels_BU=pad(labels),
            num_labels_B=torch.tensor([len(row) for row in labels]),
            ids=ids,
            texts=texts,
            time_mask_BF=time_mask_BF,
            channel_mask_BC=channel_mask_BC,
            global_step=slot.global_step,
            micro_batch=slot.micro_batch,
            num_micro_batches=slot.num_micro_batches,
            num_utterances_in_step=slot.num_utterances_in_step,
            is_filler=slot.is_filler,
        )

    def _waveform(self, position: int) -> np.ndarray:
        waveform_T = read_audio(self.manifest.audio_paths[position])
        if len(waveform_T) < self.spec.min_samples:
            raise InputError(
                f"{self.manifest.audio_paths[position]}: {len(waveform_T)} samples at {SAMPLE_RATE} Hz, the model needs"
                f" {self.spec.min_samples}."
            )
        return normalise(waveform_T) if self.spec.normalise else waveform_T

    def _masks(
        self, ids: list[str], num_frames_B: torch.Tensor, epoch: int
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        augment, num_channels = self.spec.spec_augment, self.spec.num_channels
        if not self.masked:
            return None, None
        masks = [
            draw_masks(augment, num_frames, num_channels, utterance_rng(self.seed, epoch, utterance_id))
            for utterance_id, num_frames in zip(ids, num_frames_B.tolist(), strict=True)
        ]
        time_masks, channel_masks = zip(*masks, strict=True)
        return pad(time_masks) if augment.time_prob else None, pad(channel_masks) if augment.channel_prob else None


def read_audio(path: str) -> np.ndarray:
    """The file's audio as float32 in [-1, 1] at 16 kHz, channels averaged; shape (T,).

    Raises:
        InputError: the file is missing, cannot be decoded, or is empty.
    """
    try:
        samples, sample_rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError) as error:
        raise InputError(f"{path}: cannot be read as audio: {error}") from error
    if len(samples) == 0:
        raise InputError(f"{path}: there is no audio in it.")
    waveform_T = samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1)
    return waveform_T if sample_rate == SAMPLE_RATE else _resample(waveform_T, sample_rate)


def _resample(waveform_T: np.ndarray, sample_rate: int) -> np.ndarray:
    from torchaudio.functional import resample  # slow to import, and LibriSpeech never needs it

    return resample(torch.from_numpy(waveform_T), sample_rate, SAMPLE_RATE).numpy()


def normalise(waveform_T: np.ndarray) -> np.ndarray:
    """Zero mean and unit variance over the utterance, as transformers' Wav2Vec2FeatureExtractor does it."""
    return (waveform_T - waveform_T.mean()) / np.sqrt(waveform_T.var() + 1e-7)


class TrainSampler(DistributedSampler):
    """This rank's slots of the epoch's plan, in order.

    A DistributedSampler in name, because Lightning calls `set_epoch` on one and leaves its ranks alone.
    """

    def __init__(
        self,
        durations_s_N: np.ndarray,
        *,
        batch_seconds: float,
        device_seconds: float,
        seed: int,
        rank: int,
        world_size: int,
    ):
        self.durations_s_N = durations_s_N
        self.batch_seconds = batch_seconds
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.num_steps = len(self._steps())
        self.num_micro_batches = plan.micro_batches_per_rank(durations_s_N, batch_seconds, world_size, device_seconds)

    def _steps(self) -> list[np.ndarray]:
        return plan.plan(self.durations_s_N, self.batch_seconds, self.seed, self.epoch)

    def __len__(self) -> int:
        return self.num_steps * self.num_micro_batches

    def __iter__(self) -> Iterator[Slot]:
        for global_step, step in enumerate(self._steps()):
            ranks = plan.split(self.durations_s_N, step, self.world_size, self.num_micro_batches)
            for micro_batch, positions in enumerate(ranks[self.rank]):
                place = self.epoch, global_step, micro_batch, self.num_micro_batches, len(step)
                if len(positions):
                    yield Slot(positions, *place)
                else:  # every rank must take part in every micro-batch: it computes, and does not count
                    shortest = step[[self.durations_s_N[step].argmin()]]
                    yield Slot(shortest, *place, is_filler=True)


class EvaluationSampler(DistributedSampler):
    """This rank's share of all utterances, each exactly once over the ranks; shares may differ by one batch."""

    def __init__(self, durations_s_N: np.ndarray, *, device_seconds: float, rank: int, world_size: int):
        batches = plan.evaluation_batches(durations_s_N, device_seconds)
        self.slots = [Slot(positions, num_utterances_in_step=len(positions)) for positions in batches[rank::world_size]]

    def set_epoch(self, epoch: int) -> None:
        """Evaluation is the same in every epoch."""

    def __len__(self) -> int:
        return len(self.slots)

    def __iter__(self) -> Iterator[Slot]:
        return iter(self.slots)
