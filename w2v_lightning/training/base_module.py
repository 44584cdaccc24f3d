"""Base class of both modules: scoring by split, layer drop by step, resuming on another machine."""

import random
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from transformers import Wav2Vec2ForCTC, Wav2Vec2ForPreTraining

from w2v_lightning.compat.torch import allow_clipping
from w2v_lightning.data import agreement
from w2v_lightning.data.batch import Batch, InputSpec
from w2v_lightning.data.draw import draw_dropped_layers, dropout_seed
from w2v_lightning.model.sharding import shard
from w2v_lightning.model.speed import Speed
from w2v_lightning.optim import parameter_groups
from w2v_lightning.runtime.precision import check_precision
from w2v_lightning.training import resuming
from w2v_lightning.training.monitors import check_monitors
from w2v_lightning.training.options import TrainingOptions


class PlannedModule(LightningModule):
    """LightningModule around a transformers model in `self.model`, fed by LibriSpeechDataModule.

    A subclass sets `model`, `options` and `speed`, and scores with `_start_scoring`, `_score` and `_log_scores`.
    """

    model: Wav2Vec2ForCTC | Wav2Vec2ForPreTraining
    options: TrainingOptions
    speed: Speed

    def logged_names(self, val_splits: Sequence[str]) -> list[str]:
        """Return the names of the metrics that training logs; `checkpoint.monitor` may be any of them."""
        raise NotImplementedError

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: Any,
        map_location: Any = None,
        hparams_file: Any = None,
        strict: bool | None = None,
        weights_only: bool | None = True,
        **kwargs: Any,
    ) -> Self:
        """Load a module as Lightning does, but with `weights_only=True`, which is torch's default only from 2.6 on.

        Raises:
            pickle.UnpicklingError: the file holds more than tensors and plain values, which could run code.
        """
        return super().load_from_checkpoint(checkpoint_path, map_location, hparams_file, strict, weights_only, **kwargs)

    @property
    def input_spec(self) -> InputSpec:
        """Description of the input for the data module."""
        raise NotImplementedError

    def setup(self, stage: str) -> None:
        """Check what only the trainer knows.

        Raises:
            InputError: its precision is not supported, or a callback monitors a metric that nothing logs.
        """
        check_precision(self.trainer.precision)
        if stage == "fit":
            check_monitors(self.trainer, self, getattr(self._datamodule, "val_splits", ()))

    def configure_model(self) -> None:
        """Shard the weights under a strategy that shards, such as `fsdp2`; otherwise do nothing."""
        if self.device_mesh is not None:
            shard(self, self.model.wav2vec2.encoder.layers, self.device_mesh["data_parallel"])

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the trained weights, and let the data module adapt Lightning's counts of batches to this machine."""
        if self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING:
            resuming.use_live_weights(self._trainer, checkpoint)
        if self._trainer is not None and hasattr(self._datamodule, "align_progress"):
            self._datamodule.align_progress(checkpoint)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Copy without waiting, because the loader pins batches; Lightning would wait for each."""
        return batch.to(device, non_blocking=True)

    def on_train_start(self) -> None:
        loader = self.trainer.train_dataloader
        agreement.check_input(loader, self.input_spec)
        agreement.check_training_loader(self.trainer, loader)
        resuming.keep_schedule(self.trainer)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed dropout, and anything else that a step may draw, from (seed, global step, rank, micro-batch).

        Checkpoints therefore need not hold the generators' states, which would also be wrong in the middle of a step.
        """
        seed = dropout_seed(self.options.seed, self.trainer.global_step, self.global_rank, batch.micro_batch)
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)

    def on_validation_epoch_start(self) -> None:
        agreement.check_input(self._val_loaders, self.input_spec)
        self._start_scoring(len(self._val_loaders))

    def on_test_epoch_start(self) -> None:
        agreement.check_input(self._test_loaders, self.input_spec)
        self._start_scoring(len(self._test_loaders))

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._score(batch, dataloader_idx)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._score(batch, dataloader_idx)

    def on_validation_epoch_end(self) -> None:
        self._log_scores("val", self._val_loaders)

    def on_test_epoch_end(self) -> None:
        self._log_scores("test", self._test_loaders)

    def train_all_layers(self) -> None:
        """Train every layer in every update; for a copy that measures memory or time."""
        self.model.config.layerdrop = 0.0

    def _start_scoring(self, num_loaders: int) -> None:
        raise NotImplementedError

    def _score(self, batch: Batch, dataloader_idx: int) -> None:
        raise NotImplementedError

    def _log_scores(self, stage: str, loaders: Sequence[Any]) -> None:
        raise NotImplementedError

    def _adamw(self, factor: Callable[[int], float], layer_lr_decay: float = 1.0) -> OptimizerLRSchedulerConfig:
        """Return AdamW as the options say; `factor` multiplies the learning rate at each update."""
        options = self.options
        beta1, beta2 = options.adam_betas
        optimizer = torch.optim.AdamW(
            parameter_groups(self.model, options.weight_decay, options.learning_rate, layer_lr_decay),
            betas=(beta1, beta2),
            eps=options.adam_eps,
            fused=self.speed.fuses_optimizer(self.device),
        )
        # Lightning does not clip for an optimiser that could unscale gradients itself, as a fused one can.
        allow_clipping(optimizer)
        resuming.keep_options(optimizer)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _dropped_layers(self) -> list[int]:
        """Return the layers to drop, drawn for (seed, global step): the same on all ranks and in all micro-batches."""
        if not self.training or self._trainer is None:
            return []
        config, seed = self.model.config, self.options.seed
        return draw_dropped_layers(seed, self.trainer.global_step, config.num_hidden_layers, config.layerdrop)

    @property
    def _datamodule(self) -> Any:
        return self.trainer.datamodule  # type: ignore[attr-defined]  # set by Lightning's data connector

    @property
    def _log_every_n_steps(self) -> int:
        return self.trainer.log_every_n_steps  # type: ignore[attr-defined]  # set by Lightning's logger connector

    @property
    def _val_loaders(self) -> Sequence[Any]:
        loaders = self.trainer.val_dataloaders
        assert loaders is not None  # Lightning sets them up before an epoch starts
        return loaders

    @property
    def _test_loaders(self) -> Sequence[Any]:
        loaders = self.trainer.test_dataloaders
        assert loaders is not None
        return loaders
