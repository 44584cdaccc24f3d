"""LibriSpeechDataModule, which reads a LibriSpeech folder or manifests and yields Batches of similar duration."""

import logging
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from w2v_lightning.data import agreement, checks, position
from w2v_lightning.data.augment import Augmentation
from w2v_lightning.data.batch import InputSpec
from w2v_lightning.data.calibration import DEFAULT_DEVICE_SECONDS, calibrate
from w2v_lightning.data.demo import make_demo_corpus
from w2v_lightning.data.durations import load_manifest
from w2v_lightning.data.librispeech import load_split
from w2v_lightning.data.loader import UtteranceDataset, batch_loader, train_loader
from w2v_lightning.data.manifest import Manifest, find_manifest
from w2v_lightning.data.plan import SPREAD
from w2v_lightning.data.reader import AudioReader
from w2v_lightning.data.samplers import EvaluationSampler, TrainSampler
from w2v_lightning.data.trial import NoiseDataset
from w2v_lightning.errors import InputError
from w2v_lightning.runtime.cores import usable_cores
from w2v_lightning.runtime.hardware import loader_workers
from w2v_lightning.text.rules import TextRules
from w2v_lightning.text.vocabulary import Vocabulary

log = logging.getLogger(__name__)

DEMO = "demo"


class LibriSpeechDataModule(LightningDataModule):
    """Data module for LibriSpeech, or any corpus with manifests, in batches of similar duration.

    A split is a folder ROOT/SPLIT in LibriSpeech's layout, or a manifest ROOT/SPLIT.jsonl (also .jsonl.gz) as written
    by `prepare`. The root may be a URL (s3://bucket/prefix): audio is then streamed during training.

    The properties of the model (vocabulary, frame lengths, masks) are read from the LightningModule's `input_spec`;
    without one, wav2vec2-base is assumed.

    Args:
        root: folder or URL of the splits (.../LibriSpeech), or the word "demo": a small corpus that espeak-ng speaks
            into the cache folder on first use.
        train_splits: splits to train on, together.
        val_splits: splits to validate on, scored one by one, and together as `val_wer`.
        test_splits: splits for `test` and `predict`.
        batch_seconds: seconds of audio per optimiser step over all devices, with padding. A hyper-parameter of the
            experiment.
        device_seconds: seconds of audio per device and forward pass, limited by its memory. A property of the machine;
            Lightning's accumulate_grad_batches follows from it. "auto" finds it by a few trial steps. A number that is
            1/k of `batch_seconds` makes k micro-batches of a step, each at most 5 % above it (docs/data.md).
        max_seconds: longest utterance to train on; longer ones are left out.
        num_workers: number of loader workers per device; default: one per free core, at most 8.
        seed: random seed of order, masks and augmentation.
        strict: raise an error if a transcript or an audio file is missing; otherwise they are left out with a warning.
        skip_unusable: leave out unusable utterances with a warning instead of raising an error: undecodable audio,
            characters outside the vocabulary, empty transcripts, audio too short for the model or the transcript.
        duration_spread: ratio of the longest to the shortest utterance of a step, if the corpus is large enough. A
            larger ratio mixes durations better within a step and costs padding (docs/data.md).
        augmentation: speed, noise and gain for training utterances.
        text: rules for the writing of transcripts: normal form, letter case, characters to drop or replace, language;
            default: those of the model, which are exported with it. In a script, give them to the module, too.
        cache_dir: folder to cache audio from a URL in, so that the second epoch reads it from local disk.
        cache_gib: size limit of that cache in GiB; the least recently used files are removed first.
        verify_audio: compare every FLAC file with the checksum in its header while reading, at about half the speed.
        allow_changed_data: resume from a checkpoint although the data or the plan have changed; its epoch restarts.
    """

    def __init__(
        self,
        root: str,
        train_splits: Sequence[str] = ("train-clean-100",),
        val_splits: Sequence[str] = ("dev-clean", "dev-other"),
        test_splits: Sequence[str] = ("test-clean", "test-other"),
        batch_seconds: float = 1600.0,
        device_seconds: float | Literal["auto"] = DEFAULT_DEVICE_SECONDS,
        max_seconds: float | None = None,
        num_workers: int | None = None,
        seed: int = 0,
        strict: bool = False,
        skip_unusable: bool = False,
        duration_spread: float = SPREAD,
        augmentation: Augmentation | None = None,
        text: TextRules | None = None,
        cache_dir: str | None = None,
        cache_gib: float = 50.0,
        verify_audio: bool = False,
        allow_changed_data: bool = False,
    ) -> None:
        super().__init__()
        # Before calibration, and for validation or test without training, the default is used.
        self._is_calibrated = device_seconds != "auto"
        initial_seconds = device_seconds if self._is_calibrated else DEFAULT_DEVICE_SECONDS
        for name, seconds in (("batch_seconds", batch_seconds), ("device_seconds", initial_seconds)):
            if isinstance(seconds, str) or not seconds > 0:
                raise InputError(f"data.{name} must be a positive number of seconds, found {seconds}.")
        if not duration_spread >= 1:
            raise InputError(
                f"data.duration_spread is the ratio of longest to shortest utterance: at least 1, found"
                f" {duration_spread}."
            )
        if num_workers is not None and num_workers < 0:
            raise InputError(
                f"data.num_workers is {num_workers}: give the number of loader workers per device (0 for none), or"
                " leave it out for one per free core."
            )
        self.root = root
        self.train_splits = tuple(train_splits)
        self.val_splits = tuple(val_splits)
        self.test_splits = tuple(test_splits)
        self.batch_seconds = batch_seconds
        assert not isinstance(initial_seconds, str)  # checked above
        self.device_seconds: float = initial_seconds
        self._given_device_seconds = device_seconds
        self.max_seconds = max_seconds
        self.num_workers = num_workers
        self.seed = seed
        self.strict = strict
        self.skip_unusable = skip_unusable
        self.duration_spread = duration_spread
        self.augmentation = augmentation
        self.text = text
        self.reader = AudioReader(cache_dir, cache_gib, verify_audio)
        self.allow_changed_data = allow_changed_data
        self.datasets: dict[str, UtteranceDataset] = {}

    def prepare_data(self) -> None:
        """Make the demo corpus if requested, list the splits and cache their manifests, on one process per host."""
        for split in self._splits(self.trainer.state.fn if self.trainer else None):
            if self.root == DEMO or not find_manifest(self.root, split):
                self._load_split(split)

    def setup(self, stage: str | None = None) -> None:
        """Check every utterance against the model; Lightning calls this on every process.

        Raises:
            InputError: see `checks.usable`, `load_split` and `plan`; always before the first training step.
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
            # A model without text is scored on masked frames, with the same masks in every epoch and every run.
            masked = not spec.needs_text
            self.datasets[split] = UtteranceDataset(manifest, spec, split=split, reader=self.reader, masked=masked)
        checks.warn_of_letter_case((text for each in self.datasets.values() for text in each.manifest.texts), spec)
        if stage in (None, "fit"):
            self._setup_training(spec)

    def _setup_training(self, spec: InputSpec) -> None:
        manifest = Manifest.concatenate([self.datasets[split].manifest for split in self.train_splits])
        self.train_dataset = UtteranceDataset(
            manifest,
            spec,
            split="train",
            reader=self.reader,
            seed=self.seed,
            masked=True,
            augmentation=self.augmentation,
        )
        if self.trainer is not None and not self._is_calibrated:
            noise = NoiseDataset(manifest, spec, self._longest_stretch)
            self.device_seconds = calibrate(self.trainer, noise, self.batch_seconds)
            self._is_calibrated = True
        self.train_sampler = TrainSampler(
            manifest.durations_s_N,
            batch_seconds=self.batch_seconds,
            device_seconds=self.device_seconds / self._longest_stretch,
            seed=self.seed,
            rank=self._rank,
            world_size=self._world_size,
            spread=self.duration_spread,
            # What calibration found, or was halved because memory ran out, is a limit: it is not what was given.
            is_share=self.device_seconds == self._given_device_seconds,
        )
        if self.trainer is not None:
            agreement.set_accumulation(self.trainer, self.train_sampler, self.device_seconds)
            checks.check_trainer(self.trainer, len(self.train_sampler))
        log.info(
            "Training on %d utterances, %.2f h: %d steps per epoch of at most %g s, each in %d x %d micro-batches"
            " (devices x accumulation) of about %g s at most.",
            *(len(manifest), manifest.durations_s_N.sum() / 3600, self.train_sampler.num_steps, self.batch_seconds),
            *(self._world_size, self.train_sampler.num_micro_batches, self.device_seconds),
        )

    @property
    def min_device_seconds(self) -> float:
        """Smallest possible `device_seconds`: the longest training utterance at its slowest speed; set by `setup`."""
        longest_s = float(self.train_sampler.durations_s_N.max()) * self._longest_stretch
        return math.ceil(longest_s * 100) / 100  # rounded up, so that rounding never makes it too small

    @property
    def _longest_stretch(self) -> float:
        return self.augmentation.longest_stretch if self.augmentation else 1.0

    # ---- resuming -----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the data's part of a checkpoint: the position in the plan, and the fingerprint of the plan."""
        assert self.trainer is not None  # Lightning saves checkpoints only while training
        progress = position.training_progress(self.trainer, self.train_sampler.num_micro_batches)
        return {**progress, "fingerprint": self._fingerprint()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from the position of the checkpoint, on any number of devices and workers.

        Raises:
            InputError: the data or the plan have changed since the checkpoint; the message names the changes.
        """
        assert self.trainer is not None  # Lightning loads checkpoints only with a trainer
        if self.trainer.state.fn != "fit":
            return
        changes = position.changes(state["fingerprint"], self._fingerprint())
        epoch, global_step = state["epoch"], 0 if changes else state["steps_done"]
        if changes and not self.allow_changed_data:
            raise InputError(
                f"The checkpoint was made with other data: {'; '.join(changes)}. Resume with the original data, or set"
                f" data.allow_changed_data=true to restart its epoch {epoch} with the current data."
            )
        if changes:
            what = "; ".join(changes)
            log.warning("The data have changed since the checkpoint: %s. Restarting epoch %d.", what, epoch)
        # Lightning looks for state in the loader; ours is in the data module, and fits any number of ranks.
        warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")
        is_over = state["epoch_is_over"] or global_step >= self.train_sampler.num_steps
        self.train_sampler.resume(*((epoch + 1, 0) if is_over else (epoch, global_step)))

    def align_progress(self, checkpoint: dict[str, Any]) -> None:
        """Convert the count of micro-batches in a checkpoint, from which Lightning resumes, to this machine.

        Call it from `on_load_checkpoint` of the LightningModule, as `Wav2Vec2CTC` does.
        """
        state = checkpoint.get(type(self).__qualname__)
        if state is None:
            return
        assert self.trainer is not None  # Lightning loads checkpoints only with a trainer
        if self.trainer.state.fn == "fit":
            is_changed = bool(position.changes(state["fingerprint"], self._fingerprint()))
            position.align_progress(checkpoint, state, self.train_sampler.num_micro_batches, from_start=is_changed)

    def _fingerprint(self) -> dict[str, Any]:
        sampler = self.train_sampler
        return position.fingerprint(self.train_dataset.manifest, sampler.batch_seconds, sampler.seed, sampler.spread)

    def training_texts(self) -> list[str]:
        """Return the transcripts of the training splits, unnormalised."""
        return [text for split in self.train_splits for text in self._load_split(split).texts]

    # ---- loaders ------------------------------------------------------------------------------------------------

    def train_dataloader(self) -> DataLoader:
        return train_loader(self.train_dataset, self.train_sampler, self._num_workers())

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
        return batch_loader(dataset, sampler, self._num_workers())

    def _num_workers(self) -> int:
        if self.num_workers is not None:
            return self.num_workers
        return loader_workers(usable_cores(), self.trainer.num_devices if self.trainer else 1)

    def _splits(self, stage: str | None) -> tuple[str, ...]:
        splits_of: dict[str | None, tuple[str, ...]] = {
            "fit": self.train_splits + self.val_splits,
            "validate": self.val_splits,
        }
        everything = self.train_splits + self.val_splits + self.test_splits
        return splits_of.get(stage, self.test_splits if stage in ("test", "predict") else everything)

    def _load_split(self, split: str) -> Manifest:
        if self.root == DEMO:
            return load_split(make_demo_corpus(), split)
        if path := find_manifest(self.root, split):
            return load_manifest(path)
        return load_split(Path(self.root).expanduser(), split, strict=self.strict, skip_unusable=self.skip_unusable)

    def _input_spec(self) -> InputSpec:
        module = self.trainer.lightning_module if self.trainer else None
        spec: InputSpec | None = getattr(module, "input_spec", None)
        if spec is None:
            return InputSpec(vocabulary=Vocabulary().with_rules(self.text))
        if self.text is not None and spec.needs_text and self.text != spec.vocabulary.rules:
            raise InputError(
                "data.text was given to the data module alone, but the model is exported with these rules: give them to"
                " both, Wav2Vec2CTC(..., text=rules) and LibriSpeechDataModule(..., text=rules)."
            )
        return spec

    @property
    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer else 0

    @property
    def _world_size(self) -> int:
        return self.trainer.world_size if self.trainer else 1
