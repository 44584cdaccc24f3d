"""What fine-tuning and pre-training share: scoring by split, layer drop by step, resuming on another machine."""

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule

from w2v_lightning.data.batch import Batch
from w2v_lightning.data.draw import draw_dropped_layers, dropout_seed
from w2v_lightning.model.sharding import shard
from w2v_lightning.optim import parameter_groups
from w2v_lightning.training.monitors import check_monitors


class PlannedModule(LightningModule):
    """A LightningModule around a transformers model in `self.model`, fed by LibriSpeechDataModule.

    A subclass scores with `_start_scoring`, `_score` and `_log_scores`.
    """

    def logged_names(self, val_splits: Sequence[str]) -> list[str]:
        """What training logs, of which a checkpoint may be chosen by any."""
        raise NotImplementedError

    def setup(self, stage: str) -> None:
        if stage == "fit":
            check_monitors(self.trainer, self, getattr(self.trainer.datamodule, "val_splits", ()))

    def configure_model(self) -> None:
        """Under a strategy that shares out weights, such as `fsdp2`, this is done here; else nothing is."""
        if self.device_mesh is not None:
            shard(self, self.model.wav2vec2.encoder.layers, self.device_mesh["data_parallel"])

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A checkpoint from another number of devices: its data module makes Lightning's counts fit this one."""
        if self._trainer is not None and hasattr(self.trainer.datamodule, "align_progress"):
            self.trainer.datamodule.align_progress(checkpoint)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Without waiting: the loader pins batches. Lightning would wait for each."""
        return batch.to(device, non_blocking=True)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Dropout, and what else a step may draw, belongs to (seed, global step, rank, micro-batch).

        No checkpoint needs to hold what generators have come to; in the middle of a step that would say nothing.
        """
        seed = dropout_seed(self.hparams.seed, self.trainer.global_step, self.global_rank, batch.micro_batch)
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)

    def on_validation_epoch_start(self) -> None:
        self._start_scoring(len(self.trainer.val_dataloaders))

    def on_test_epoch_start(self) -> None:
        self._start_scoring(len(self.trainer.test_dataloaders))

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._score(batch, dataloader_idx)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._score(batch, dataloader_idx)

    def on_validation_epoch_end(self) -> None:
        self._log_scores("val", self.trainer.val_dataloaders)

    def on_test_epoch_end(self) -> None:
        self._log_scores("test", self.trainer.test_dataloaders)

    def _start_scoring(self, num_loaders: int) -> None:
        raise NotImplementedError

    def _score(self, batch: Batch, dataloader_idx: int) -> None:
        raise NotImplementedError

    def _log_scores(self, stage: str, loaders: Sequence[Any]) -> None:
        raise NotImplementedError

    def _adamw(self, factor: Callable[[int], float], layer_lr_decay: float = 1.0) -> dict[str, Any]:
        """AdamW with the options of the hyper-parameters; `factor` is on the learning rate at each update."""
        options = self.hparams
        optimizer = torch.optim.AdamW(
            parameter_groups(self.model, options.weight_decay, options.learning_rate, layer_lr_decay),
            betas=tuple(options.adam_betas),
            eps=options.adam_eps,
            fused=self.speed.fuses_optimizer(self.device),
        )
        # Lightning does not clip for an optimiser that would unscale gradients itself, as a fused one can.
        optimizer._step_supports_amp_scaling = False
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _dropped_layers(self) -> list[int]:
        """Layer drop, drawn for (seed, global step): the same on every rank and in every micro-batch of a step."""
        if not self.training or self._trainer is None:
            return []
        config, seed = self.model.config, self.hparams.seed
        return draw_dropped_layers(seed, self.trainer.global_step, config.num_hidden_layers, config.layerdrop)
