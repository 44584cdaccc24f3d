"""Interface between data and module: Batch (data to module) and InputSpec (what loading needs to know of the model).

Shapes: B utterances, T samples, F frames, U labels, C channels of the transformer's input features, M masked frames of
all utterances, K negatives of each masked frame.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from w2v_lightning.text.vocabulary import Vocabulary

SAMPLE_RATE = 16_000  # Hz; the input of a model that names no other rate

Count = TypeVar("Count", int, np.ndarray, Tensor)


def round_to_few_sizes(size: int, per_octave: int) -> int:
    """Round `size` up to one of `per_octave` sizes per octave; `per_octave` is a power of two."""
    grid = 1 << max(0, (size - 1).bit_length() - per_octave.bit_length())
    return -(-size // grid) * grid


@dataclass(frozen=True)
class SpecAugment:
    """Options of time and channel masks, in fairseq's units.

    `prob` is the share of positions that would be masked if spans never overlapped (prob x positions / length spans are
    drawn); `length` is that of a span in frames or channels.
    """

    time_prob: float = 0.0
    time_length: int = 10
    time_min_spans: int = 2
    channel_prob: float = 0.0
    channel_length: int = 64
    channel_min_spans: int = 0


@dataclass(frozen=True)
class InputSpec:
    """Properties of the model that its loader needs. The defaults are those of wav2vec2-base."""

    vocabulary: Vocabulary = field(default_factory=Vocabulary)
    conv_kernel: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_stride: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    num_channels: int = 768
    normalise: bool = True  # zero mean, unit variance per utterance
    sample_rate: int = SAMPLE_RATE  # Hz
    spec_augment: SpecAugment = SpecAugment()
    coarse_lengths: bool = True  # pad batches to one of few lengths, not just to the longest utterance
    num_negatives: int = 0  # per masked frame, for pre-training; 0: the model is trained on text

    @property
    def needs_text(self) -> bool:
        """True if the model is trained on transcripts, false for pre-training."""
        return self.num_negatives == 0

    def num_frames(self, num_samples: Count) -> Count:
        """Number of frames that the convolutions make of `num_samples` samples; 0 if too few for one frame."""
        frames = num_samples
        for kernel, stride in zip(self.conv_kernel, self.conv_stride, strict=True):
            frames = (frames - kernel) // stride + 1
        return frames * (frames > 0)

    def padded_length(self, longest: int) -> int:
        """Number of samples to pad a batch to, given its longest utterance: 64 lengths per octave, under 1.6 % more.

        Few lengths, because cuDNN and cuFFT make a plan for each new shape.
        """
        return round_to_few_sizes(longest, per_octave=64) if self.coarse_lengths else longest

    @property
    def min_samples(self) -> int:
        """Shortest input, in samples, that gives one frame (400 samples, 25 ms, for the published models)."""
        return self.samples_for(1)

    def samples_for(self, num_frames: int) -> int:
        """Shortest input, in samples, that gives `num_frames` frames."""
        samples = num_frames
        for kernel, stride in zip(reversed(self.conv_kernel), reversed(self.conv_stride), strict=True):
            samples = (samples - 1) * stride + kernel
        return samples


@dataclass(frozen=True)
class Batch:
    """Micro-batch: utterances of similar duration for one forward pass on one device.

    The three counts stay on the CPU when the batch moves to a device: the CTC loss and logging need them there.
    """

    waveforms_BT: Tensor  # at `sample_rate`, padded with 0: int16, or float32 in [-1, 1]; see input_values
    num_samples_B: Tensor  # int64
    num_frames_B: Tensor  # int64, from InputSpec.num_frames
    labels_BU: Tensor  # int64, padded with 0
    num_labels_B: Tensor  # int64
    ids: list[str]
    texts: list[str]  # normalised transcripts
    time_mask_BF: Tensor | None = None  # bool, True where a frame is replaced by the mask embedding
    channel_mask_BC: Tensor | None = None  # bool, True where a channel is zeroed
    masked_M: Tensor | None = None  # int64, for pre-training: the masked frames, as positions in B x F
    negatives_MK: Tensor | None = None  # int32, positions in masked_M: others of the same utterance
    global_step: int = 0  # index in the plan of the epoch
    micro_batch: int = 0  # 0 .. num_micro_batches-1 on this rank
    num_micro_batches: int = 1  # per rank and global step; Lightning's accumulate_grad_batches
    num_utterances_in_step: int = 1  # over all ranks and micro-batches
    num_labels_in_step: int = 1  # over all ranks and micro-batches
    normalise: bool = False  # input_values have zero mean and unit variance per utterance
    sample_rate: int = SAMPLE_RATE  # Hz
    is_filler: bool = False  # repeats an utterance, because the step has too few for all ranks; not counted

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def is_last_of_step(self) -> bool:
        """True for the last micro-batch of this rank's global step."""
        return self.micro_batch == self.num_micro_batches - 1

    @property
    def audio_seconds(self) -> float:
        """Seconds of audio, without padding; 0 for a filler."""
        return 0.0 if self.is_filler else int(self.num_samples_B.sum()) / self.sample_rate

    def input_values(self) -> Tensor:
        """Return the model input, float32 (B, T), padded with 0; computed on the device of the batch."""
        waveforms_BT = self.waveforms_BT
        if not waveforms_BT.is_floating_point():
            waveforms_BT = waveforms_BT * 2.0**-15
        return normalised(waveforms_BT, self.num_samples_B) if self.normalise else waveforms_BT

    def part(self, utterances: slice) -> "Batch":
        """Return some of the utterances of a batch without masks, such as one to transcribe."""
        names = ("waveforms_BT", "num_samples_B", "num_frames_B", "labels_BU", "num_labels_B", "ids", "texts")
        return replace(self, **{name: getattr(self, name)[utterances] for name in names})

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """Return the batch on `device`, except the counts, which stay on the CPU."""
        return self._map_device_tensors(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        """Return the batch in pinned memory."""
        return self._map_device_tensors(Tensor.pin_memory)

    def _map_device_tensors(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        names = ("waveforms_BT", "labels_BU", "time_mask_BF", "channel_mask_BC", "masked_M", "negatives_MK")
        moved: dict[str, Any] = {name: function(t) for name in names if (t := getattr(self, name)) is not None}
        return replace(self, **moved)


def normalised(waveforms_BT: Tensor, num_samples_B: Tensor) -> Tensor:
    """Normalise each utterance to zero mean and unit variance, like Wav2Vec2FeatureExtractor of transformers.

    Args:
        waveforms_BT: float32, padded with 0.
        num_samples_B: int64, on any device.
    """
    num_B1 = num_samples_B.to(waveforms_BT.device, non_blocking=True)[:, None]
    is_real_BT = torch.arange(waveforms_BT.shape[1], device=waveforms_BT.device) < num_B1
    centred_BT = (waveforms_BT - waveforms_BT.sum(dim=1, keepdim=True) / num_B1) * is_real_BT
    variance_B1 = centred_BT.square().sum(dim=1, keepdim=True) / num_B1
    return centred_BT / (variance_B1 + 1e-7).sqrt()


def pad(rows: Sequence[np.ndarray], length: int | None = None) -> Tensor:
    """Stack 1-D arrays of one dtype as rows, padded with zeros (False), to `length` columns if given."""
    length = max(map(len, rows)) if length is None else length
    padded = np.zeros((len(rows), length), dtype=rows[0].dtype)
    for target, row in zip(padded, rows, strict=True):
        target[: len(row)] = row
    return torch.from_numpy(padded)
