"""LibriSpeechDataModule: a LibriSpeech folder in, Batches by duration out."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch.utils.data import DataLoader, Sampler

from w2v_lightning.data import checks
from w2v_lightning.data.batch import Batch, InputSpec
from w2v_lightning.data.demo import make_demo_corpus
from w2v_lightning.data.librispeech import load_split
from w2v_lightning.data.loader import EvaluationSampler, TrainSampler, UtteranceDataset
from w2v_lightning.data.manifest import Manifest
from w2v_lightning.errors import InputError

log = logging.getLogger(__name__)

DEMO = "demo"


class LibriSpeechDataModule(LightningDataModule):
    """Streams LibriSpeech, or any corpus in its folder layout, in batches of neighbours in duration.

    What the model needs (vocabulary, frame lengths, masks) is read from the LightningModule's `input_spec`; without
    one, wav2vec2-base is assumed.

    Args:
        root: the folder that holds the splits (.../LibriSpeech), or the word "demo": a small corpus that espeak-ng
            speaks into the cache folder on first use.
        train_splits: trained on together.
        val_splits: scored one by one, and together as `val_wer`.
        test_splits: for `test` and `predict`.
        batch_seconds: audio per optimiser step over all devices, padding counted. A hyper-parameter of the experiment.
        device_seconds: audio per device and forward pass that fits its memory. A property of the machine; Lightning's
            accumulate_grad_batches follows from it.
        max_seconds: utterances longer than this are left out of training.
        num_workers: loader processes per device; by default one per core that is left over, at most 8.
        seed: decides order and masks.
        strict: raise where a transcript or its audio file is missing, instead of leaving the rest out with a warning.
        skip_unusable: leave out, with a warning, what would otherwise raise: undecodable audio, characters outside the
            vocabulary, empty transcripts, too short for the model or for the transcript.
    """

    def __init__(
        self,
        root: str,
        train_splits: Sequence[str] = ("train-clean-100",),
        val_splits: Sequence[str] = ("dev-clean", "dev-other"),
        test_splits: Sequence[str] = ("test-clean", "test-other"),
        batch_seconds: float = 1600.0,
        device_seconds: float = 200.0,
        max_seconds: float | None = None,
        num_workers: int | None = None,
        seed: int = 0,
        strict: bool = False,
        skip_unusable: bool = False,
    ):
        super().__init__()
        for name, seconds in (("batch_seconds", batch_seconds), ("device_seconds", device_seconds)):
            if not seconds > 0:
                raise InputError(f"data.{name} must be a positive number of seconds, found {seconds}.")
        self.root = root
        self.train_splits = tuple(train_splits)
        self.val_splits = tuple(val_splits)
        self.test_splits = tuple(test_splits)
        self.batch_seconds = batch_seconds
        self.device_seconds = device_seconds
        self.max_seconds = max_seconds
        self.num_workers = num_workers
        self.seed = seed
        self.strict = strict
        self.skip_unusable = skip_unusable
        self.datasets: dict[str, UtteranceDataset] = {}

    def prepare_data(self) -> None:
        """On one process per host: speak the demo corpus if asked for, list the splits, cache their manifests."""
        for split in self._splits(self.trainer.state.fn if self.trainer else None):
            self._load_split(split)

    def setup(self, stage: str | None = None) -> None:
        """Check every utterance against the model; Lightning calls this on every process.

        Raises:
            InputError: see `checks.usable`, `load_split` and `plan`; all before the first training step.
        """
        spec = self._input_spec()
        for split in self._splits(stage):
            is_train = split in self.train_splits
            manifest = checks.usable(
                self._load_split(split),
                spec,
                split=split,
                max_seconds=self.max_seconds if is_train else None,
                skip_unusable=self.skip_unusable,
            )
            self.datasets[split] = UtteranceDataset(manifest, spec, split=split)
        if stage in (None, "fit"):
            self._setup_training(spec)

    def _setup_training(self, spec: InputSpec) -> None:
        manifest = Manifest.concatenate([self.datasets[split].manifest for split in self.train_splits])
        self.train_dataset = UtteranceDataset(manifest, spec, split="train", seed=self.seed, masked=True)
        self.train_sampler = TrainSampler(
            manifest.durations_s_N,
            batch_seconds=self.batch_seconds,
            device_seconds=self.device_seconds,
            seed=self.seed,
            rank=self._rank,
            world_size=self._world_size,
        )
        if self.trainer is not None:
            self._set_accumulation(self.trainer)
        log.info(
            "Training on %d utterances, %.2f h: %d steps an epoch of at most %g s, each in %d x %d micro-batches"
            " (devices x accumulation) of at most %g s.",
            *(len(manifest), manifest.durations_s_N.sum() / 3600, self.train_sampler.num_steps, self.batch_seconds),
            *(self._world_size, self.train_sampler.num_micro_batches, self.device_seconds),
        )

    def _set_accumulation(self, trainer: Trainer) -> None:
        asked, needed = trainer.accumulate_grad_batches, self.train_sampler.num_micro_batches
        if asked not in (1, needed):
            raise InputError(
                f"trainer.accumulate_grad_batches is {asked}, but data.batch_seconds={self.batch_seconds:g} over"
                f" {self._world_size} device(s) of data.device_seconds={self.device_seconds:g} makes it {needed}:"
                " leave it out, it follows from the two."
            )
        trainer.accumulate_grad_batches = needed

    def train_dataloader(self) -> DataLoader:
        return self._loader(self.train_dataset, self.train_sampler, persistent=True)

    def val_dataloader(self) -> list[DataLoader]:
        return [self._evaluation_loader(split) for split in self.val_splits]

    def test_dataloader(self) -> list[DataLoader]:
        return [self._evaluation_loader(split) for split in self.test_splits]

    def predict_dataloader(self) -> list[DataLoader]:
        return self.test_dataloader()

    def _evaluation_loader(self, split: str) -> DataLoader:
        dataset = self.datasets[split]
        sampler = EvaluationSampler(
            dataset.manifest.durations_s_N,
            device_seconds=self.device_seconds,
            rank=self._rank,
            world_size=self._world_size,
        )
        return self._loader(dataset, sampler, persistent=False)

    def _loader(self, dataset: UtteranceDataset, sampler: Sampler, persistent: bool) -> DataLoader:
        num_workers = self._num_workers()
        return DataLoader(
            dataset,
            sampler=sampler,
            batch_size=None,  # the sampler's slots are whole micro-batches
            collate_fn=_as_it_is,
            num_workers=num_workers,
            persistent_workers=persistent and num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def _num_workers(self) -> int:
        if self.num_workers is not None:
            return self.num_workers
        has_affinity = hasattr(os, "sched_getaffinity")  # not on macOS
        cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
        return max(1, min(8, cores // (self.trainer.num_devices if self.trainer else 1) - 1))

    def _splits(self, stage: str | None) -> tuple[str, ...]:
        used = {"fit": self.train_splits + self.val_splits, "validate": self.val_splits}
        everything = self.train_splits + self.val_splits + self.test_splits
        return used.get(stage, self.test_splits if stage in ("test", "predict") else everything)

    def _load_split(self, split: str) -> Manifest:
        root = make_demo_corpus() if self.root == DEMO else Path(self.root).expanduser()
        return load_split(root, split, strict=self.strict, skip_unusable=self.skip_unusable)

    def _input_spec(self) -> InputSpec:
        module = self.trainer.lightning_module if self.trainer else None
        return getattr(module, "input_spec", None) or InputSpec()

    @property
    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer else 0

    @property
    def _world_size(self) -> int:
        return self.trainer.world_size if self.trainer else 1


def _as_it_is(batch: Batch) -> Batch:
    return batch
