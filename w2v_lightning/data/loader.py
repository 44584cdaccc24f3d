"""Read, decode, augment, mask and pad: from a slot of the plan to a Batch, inside a loader worker."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from w2v_lightning.data.augment import Augmentation, Augmenter
from w2v_lightning.data.batch import SAMPLE_RATE, Batch, InputSpec, pad
from w2v_lightning.data.decode import as_float, load
from w2v_lightning.data.draw import Draw, utterance_rng
from w2v_lightning.data.manifest import Manifest
from w2v_lightning.data.masking import draw_masks
from w2v_lightning.data.negatives import contrastive_indices
from w2v_lightning.data.reader import AudioReader
from w2v_lightning.data.samplers import EndlessSampler, Slot, TrainSampler
from w2v_lightning.errors import InputError
from w2v_lightning.runtime.signals import heed_parent_only, held_back
from w2v_lightning.text.vocabulary import count_repeats

# A fork takes along a lock that another thread holds just then, for ever held. Gloo's threads let go of a collective's
# tensors after the main thread has gone on, and make themselves known to the interpreter for that, under such a lock:
# in Python 3.11 a worker forked then never starts (gh-112275, fixed in its last releases and 3.12). Waiting lets them
# finish.
SETTLE_S = 0.05


def _may_fork_while_a_collective_lets_go() -> bool:
    is_distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return is_distributed and sys.version_info < (3, 12)


class UtteranceDataset(Dataset):
    """`dataset[slot]` is the slot's Batch. One worker makes a whole micro-batch: nothing is copied twice.

    Args:
        manifest: the utterances.
        spec: what the model needs.
        split: its name.
        reader: where bytes come from; by default plain local reading.
        seed: what masks and augmentation are drawn with.
        masked: draw time and channel masks, and the negatives of pre-training.
        augmentation: what is done to the waveforms; None leaves them as they are.
    """

    def __init__(
        self,
        manifest: Manifest,
        spec: InputSpec,
        *,
        split: str = "",
        reader: AudioReader | None = None,
        seed: int = 0,
        masked: bool = False,
        augmentation: Augmentation | None = None,
    ):
        self.manifest = manifest
        self.spec = spec
        self.split = split
        self.reader = reader or AudioReader()
        self.seed = seed
        self.masked = masked
        self.augmenter = Augmenter(augmentation) if augmentation else None

    def __len__(self) -> int:
        return len(self.manifest)

    def __getitem__(self, slot: Slot) -> Batch:
        manifest, spec = self.manifest, self.spec
        ids = [manifest.ids[i] for i in slot.positions]
        texts = [self._text(i) for i in slot.positions]
        labels = [np.array(spec.vocabulary.encode(text), dtype=np.int64) for text in texts]
        waveforms = self._waveforms(slot, labels)
        num_samples_B = torch.tensor([len(waveform) for waveform in waveforms])
        num_frames_B = spec.num_frames(num_samples_B)
        num_samples = spec.padded_length(int(num_samples_B.max()))
        return Batch(
            waveforms_BT=pad(waveforms, num_samples),
            normalise=spec.normalise,
            num_samples_B=num_samples_B,
            num_frames_B=num_frames_B,
            labels_BU=pad(labels),
            num_labels_B=torch.tensor([len(row) for row in labels]),
            ids=ids,
            texts=texts,
            global_step=slot.global_step,
            micro_batch=slot.micro_batch,
            num_micro_batches=slot.num_micro_batches,
            num_utterances_in_step=len(slot.step_positions),
            num_labels_in_step=sum(len(spec.vocabulary.pieces(self._text(i))) for i in slot.step_positions),
            is_filler=slot.is_filler,
            **self._masks(slot, num_frames_B, spec.num_frames(num_samples)),
        )

    def _text(self, position: int) -> str:
        """As it is encoded; nothing where the model is not trained on text."""
        return self.spec.vocabulary.normalise(self.manifest.texts[position]) if self.spec.needs_text else ""

    def _waveforms(self, slot: Slot, labels: list[np.ndarray]) -> list[np.ndarray]:
        refs = [self.manifest.audio(i) for i in slot.positions]
        waveforms = load(refs, self.reader)
        for ref, waveform_T in zip(refs, waveforms, strict=True):
            if len(waveform_T) < self.spec.min_samples:
                raise InputError(
                    f"{ref}: {len(waveform_T)} samples at {SAMPLE_RATE} Hz, the model needs {self.spec.min_samples}."
                )
        if self.augmenter:
            rngs = [self._rng(Draw.AUGMENTATION, slot.epoch, i) for i in slot.positions]
            waveforms = [
                self.augmenter(as_float(waveform_T), self._least_samples(label_ids), rng)
                for waveform_T, label_ids, rng in zip(waveforms, labels, rngs, strict=True)
            ]
        is_uniform = len({waveform_T.dtype for waveform_T in waveforms}) == 1
        return waveforms if is_uniform else [as_float(waveform_T) for waveform_T in waveforms]

    def _least_samples(self, label_ids: np.ndarray) -> int:
        """Fewer than these, and the model has not enough frames for the labels."""
        return self.spec.samples_for(max(1, len(label_ids) + count_repeats(label_ids)))

    def _rng(self, what: Draw, epoch: int, position: int) -> np.random.Generator:
        return utterance_rng(what, self.seed, epoch, self.manifest.ids[position])

    def _masks(self, slot: Slot, num_frames_B: torch.Tensor, num_frames: int) -> dict[str, torch.Tensor]:
        """What is drawn for a Batch of `num_frames`, padding counted, by the names of its fields."""
        augment, num_channels = self.spec.spec_augment, self.spec.num_channels
        if not self.masked:
            return {}
        masks = [
            draw_masks(augment, num_frames, num_channels, self._rng(Draw.MASKS, slot.epoch, i))
            for i, num_frames in zip(slot.positions, num_frames_B.tolist(), strict=True)
        ]
        time_masks, channel_masks = zip(*masks, strict=True)
        drawn = {"time_mask_BF": pad(time_masks, num_frames)} if augment.time_prob else {}
        if augment.channel_prob:
            drawn["channel_mask_BC"] = pad(channel_masks)
        return drawn | self._negatives(slot, time_masks, num_frames) if self.spec.num_negatives else drawn

    def _negatives(self, slot: Slot, time_masks: Sequence[np.ndarray], num_frames: int) -> dict[str, torch.Tensor]:
        rngs = [self._rng(Draw.NEGATIVES, slot.epoch, i) for i in slot.positions]
        masked_M, negatives_MK = contrastive_indices(time_masks, num_frames, self.spec.num_negatives, rngs)
        return {"masked_M": torch.from_numpy(masked_M), "negatives_MK": torch.from_numpy(negatives_MK)}


class TimedLoader(DataLoader):
    """Counts for how long (s) its batches were waited for, since it was made: a batch that lies ready costs nothing."""

    waited_s = 0.0

    def __iter__(self) -> Iterator[Batch]:
        started = time.perf_counter()
        if self.num_workers and _may_fork_while_a_collective_lets_go():
            time.sleep(SETTLE_S)
        with held_back() if self.num_workers else nullcontext():
            batches = super().__iter__()  # starts the workers: not put off to the first batch
        self.waited_s += time.perf_counter() - started
        return self._timed(batches)

    def _timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        while True:
            started = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            finally:
                self.waited_s += time.perf_counter() - started
            yield batch


class TrainLoader(TimedLoader):
    """Goes on to the next epoch while the last batches of one are being trained on: its first batch lies ready.

    Workers that were stopped between two epochs would have nothing to do at the end of one, and the device at the
    beginning of the next: half a second at 1,600 s a batch.
    """

    _ahead: tuple[int, Iterator[Batch]] | None = None  # an epoch, and its batches followed by those of all others

    def __iter__(self) -> Iterator[Batch]:
        wanted, num_steps = self.sampler.epochs.epoch, self.sampler.epochs.num_steps
        epoch, batches = self._take_ahead() or (wanted, None)
        if batches is None or epoch != wanted:  # the first, or one was left in the middle
            batches = super().__iter__()
        for batch in batches:
            is_last = batch.is_last_of_step and batch.global_step == num_steps - 1
            if is_last:
                self._ahead = wanted + 1, batches  # already: who knows the length does not ask once more
            yield batch
            if is_last:
                return

    def _take_ahead(self) -> tuple[int, Iterator[Batch]] | None:
        ahead, self._ahead = self._ahead, None
        return ahead


def train_loader(dataset: UtteranceDataset, sampler: TrainSampler, num_workers: int) -> TrainLoader:
    """The Batches of the sampler's epochs, made by `num_workers` processes (0: by this one)."""
    return TrainLoader(dataset, persistent_workers=num_workers > 0, **_options(EndlessSampler(sampler), num_workers))


def batch_loader(dataset: UtteranceDataset, sampler: Sampler, num_workers: int) -> TimedLoader:
    """The Batches of the sampler's slots, made by `num_workers` processes (0: by this one)."""
    return TimedLoader(dataset, **_options(sampler, num_workers))


def _options(sampler: Sampler, num_workers: int) -> dict[str, Any]:
    return {
        "sampler": sampler,
        "batch_size": None,  # the sampler's slots are whole micro-batches
        "collate_fn": _as_it_is,
        "num_workers": num_workers,
        "worker_init_fn": heed_parent_only,
        "pin_memory": torch.cuda.is_available(),
    }


def _as_it_is(batch: Batch) -> Batch:
    return batch
