"""Loading in a worker: read, decode, augment, mask and pad the utterances of a slot of the plan to a Batch."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from w2v_lightning.data.audio_ref import AudioRef
from w2v_lightning.data.augment import Augmentation, Augmenter
from w2v_lightning.data.batch import Batch, InputSpec, pad
from w2v_lightning.data.decode import as_float, load
from w2v_lightning.data.draw import Draw, utterance_rng
from w2v_lightning.data.durations import check_duration
from w2v_lightning.data.manifest import Manifest
from w2v_lightning.data.masking import draw_masks
from w2v_lightning.data.negatives import contrastive_indices
from w2v_lightning.data.reader import AudioReader
from w2v_lightning.data.samplers import EndlessSampler, Slot, TrainSampler
from w2v_lightning.errors import InputError
from w2v_lightning.runtime.signals import accept_sigterm_from_parent_only, sigterm_blocked
from w2v_lightning.text.vocabulary import count_repeats

# A forked worker inherits locks held by other threads, and nothing will ever release them. Gloo's threads release the
# tensors of a collective after the main thread has continued, and register with the interpreter for that, under such a
# lock: in Python 3.11, a worker forked at that moment never starts (gh-112275, fixed in the last releases of 3.11 and
# in 3.12). This wait lets the threads finish first.
SETTLE_S = 0.05


def _must_settle_before_fork() -> bool:
    is_distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return is_distributed and sys.version_info < (3, 12)


class UtteranceDataset(Dataset):
    """Dataset of micro-batches: `dataset[slot]` is the Batch of a slot. One worker makes all of it, to avoid copies.

    Args:
        manifest: the utterances.
        spec: properties of the model.
        split: name of the split.
        reader: source of the encoded audio; default: an AudioReader without a cache.
        seed: random seed of masks and augmentation.
        masked: draw time and channel masks, and the negatives of pre-training.
        augmentation: augmentation of the waveforms; None: none.
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
    ) -> None:
        self.manifest = manifest
        self.spec = spec
        self.split = split
        self.reader = reader or AudioReader()
        self.seed = seed
        self.masked = masked
        self.augmenter = Augmenter(augmentation, spec.sample_rate) if augmentation else None

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
            sample_rate=spec.sample_rate,
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
        """Return the normalised transcript; "" if the model is not trained on text."""
        return self.spec.vocabulary.normalise(self.manifest.texts[position]) if self.spec.needs_text else ""

    def _waveforms(self, slot: Slot, labels: list[np.ndarray]) -> list[np.ndarray]:
        refs = [self.manifest.audio(i) for i in slot.positions]
        waveforms = load(refs, self.reader, self.spec.sample_rate)
        for ref, waveform_T in zip(refs, waveforms, strict=True):
            if len(waveform_T) < self.spec.min_samples:
                raise InputError(
                    f"{ref}: {len(waveform_T)} samples at {self.spec.sample_rate} Hz, the model needs"
                    f" {self.spec.min_samples}."
                )
            self._check_duration(ref, len(waveform_T) / self.spec.sample_rate)
        if self.augmenter:
            rngs = [self._rng(Draw.AUGMENTATION, slot.epoch, i) for i in slot.positions]
            waveforms = [
                self.augmenter(as_float(waveform_T), self._min_samples(label_ids), rng)
                for waveform_T, label_ids, rng in zip(waveforms, labels, rngs, strict=True)
            ]
        is_uniform = len({waveform_T.dtype for waveform_T in waveforms}) == 1
        return waveforms if is_uniform else [as_float(waveform_T) for waveform_T in waveforms]

    def _check_duration(self, ref: AudioRef, actual_s: float) -> None:
        check_duration(ref, actual_s)

    def _min_samples(self, label_ids: np.ndarray) -> int:
        """Return the fewest samples that give the model enough frames for the labels."""
        return self.spec.samples_for(max(1, len(label_ids) + count_repeats(label_ids)))

    def _rng(self, purpose: Draw, epoch: int, position: int) -> np.random.Generator:
        return utterance_rng(purpose, self.seed, epoch, self.manifest.ids[position])

    def _masks(self, slot: Slot, num_frames_B: torch.Tensor, num_frames: int) -> dict[str, torch.Tensor]:
        """Draw the masks and negatives of a Batch of `num_frames` padded frames; return them by field name."""
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
    """DataLoader that adds up, in `waited_s`, the seconds its consumer waits for batches; a ready batch costs none."""

    waited_s = 0.0

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]  # DataLoader declares a private type
        started = time.perf_counter()
        if self.num_workers and _must_settle_before_fork():
            time.sleep(SETTLE_S)
        with sigterm_blocked() if self.num_workers else nullcontext():
            batches = super().__iter__()  # starts the workers now, not with the first batch
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
    """DataLoader that loads the next epoch during the last batches of the current one, so its first batch is ready.

    If workers stopped between epochs, they would idle at the end of one, and the device at the beginning of the next:
    half a second at batches of 1,600 s.
    """

    sampler: EndlessSampler
    _ahead: tuple[int, Iterator[Batch]] | None = None  # the next epoch, and an iterator from its first batch on

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]  # DataLoader declares a private type
        epoch, num_steps = self.sampler.epochs.epoch, self.sampler.epochs.num_steps
        next_epoch, batches = self._take_ahead() or (epoch, None)
        if batches is None or next_epoch != epoch:  # the first epoch, or the last one was not finished
            batches = super().__iter__()
        for batch in batches:
            is_last = batch.is_last_of_step and batch.global_step == num_steps - 1
            if is_last:
                # Set before the yield: a consumer that knows the length does not resume this generator after it.
                self._ahead = epoch + 1, batches
            yield batch
            if is_last:
                return

    def _take_ahead(self) -> tuple[int, Iterator[Batch]] | None:
        ahead, self._ahead = self._ahead, None
        return ahead


def train_loader(dataset: UtteranceDataset, sampler: TrainSampler, num_workers: int) -> TrainLoader:
    """Return a loader of the sampler's epochs, with `num_workers` worker processes (0: load in this process)."""
    return TrainLoader(dataset, persistent_workers=num_workers > 0, **_options(EndlessSampler(sampler), num_workers))


def batch_loader(dataset: UtteranceDataset, sampler: Sampler, num_workers: int) -> TimedLoader:
    """Return a loader of the sampler's slots, with `num_workers` worker processes (0: load in this process)."""
    return TimedLoader(dataset, **_options(sampler, num_workers))


def _options(sampler: Sampler, num_workers: int) -> dict[str, Any]:
    return {
        "sampler": sampler,
        "batch_size": None,  # the sampler's slots are whole micro-batches
        "collate_fn": _identity,
        "num_workers": num_workers,
        "worker_init_fn": accept_sigterm_from_parent_only,
        "pin_memory": torch.cuda.is_available(),
    }


def _identity(batch: Batch) -> Batch:
    return batch
