"""Averages of weights: over the last updates while training, and over the best checkpoints afterwards."""

import copy
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor

from w2v_lightning.checkpoints.best import best_checkpoint
from w2v_lightning.errors import InputError
from w2v_lightning.model.sharding import is_finite
from w2v_lightning.strategies.fsdp2 import whole_module
from w2v_lightning.training.run_folder import output_folder

log = logging.getLogger(__name__)


class MovingAverage(EMAWeightAveraging):
    """Validates, keeps and exports an exponential moving average of the weights; training goes on with the weights.

    Lightning's own callback, for which an interruption in mid-validation is no trap: there the two are swapped, and a
    checkpoint made then would resume training from the average.

    Args:
        decay: what is left of the average after each optimiser update; 0.999 remembers some 1,000 updates.

    Raises:
        InputError: `decay` is not between 0 and 1.
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 < decay < 1:
            raise InputError(f"MovingAverage: decay={decay} must lie between 0 and 1, such as 0.999.")
        super().__init__(decay=decay)
        self._is_swapped = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and isinstance(trainer.strategy, ModelParallelStrategy):
            raise InputError(
                "MovingAverage needs all weights on each device, which fsdp2 shares out: leave it out, or use ddp."
            )
        with warnings.catch_warnings():  # a module that could share itself out, and does not
            warnings.filterwarnings("ignore", message="You're using the WeightAveraging callback with a model that")
            super().setup(trainer, pl_module, stage)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_epoch_start(trainer, pl_module)
        self._is_swapped = True

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_epoch_end(trainer, pl_module)
        self._is_swapped = False

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._is_swapped:  # ModelCheckpoint, which may save now, comes after all other callbacks
            self.on_validation_epoch_end(trainer, pl_module)


class AverageBest(Callback):
    """Where the run keeps several best checkpoints (`checkpoint.save_top_k`), writes LOG_DIR/model-average from them.

    The folder is a Hugging Face one as LOG_DIR/model is. The module stays as it is.
    """

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        best = best_checkpoint(trainer)
        if trainer.fast_dev_run or best is None or len(best.best_k_models) < 2:
            return
        folder = output_folder(trainer) / "model-average"  # asks all ranks
        whole = whole_module(trainer)  # asks all ranks
        if not trainer.is_global_zero:
            return
        scores = best.best_k_models
        paths = sorted(scores, key=lambda path: float(scores[path]), reverse=best.mode == "max")
        averaged = copy.deepcopy(whole).cpu()
        averaged.load_state_dict(average_weights(paths))
        if not is_finite(averaged):
            log.warning("No average of the %d best checkpoints is written: weights are NaN or infinite.", len(paths))
            return
        averaged.save_pretrained(folder)
        log.info("The average of the %d best checkpoints: %s", len(paths), folder)


def average_weights(paths: Sequence[str | Path]) -> dict[str, Tensor]:
    """The mean of the weights in several checkpoints of one run; what is not of floating point, from the first.

    Computed in float64, so that a weight which is the same in all comes out as it is; no code in a checkpoint is run.

    Raises:
        pickle.UnpicklingError: a checkpoint holds more than tensors and plain values.
    """
    mean = _weights(paths[0])
    dtypes = {name: tensor.dtype for name, tensor in mean.items() if tensor.is_floating_point()}
    mean |= {name: mean[name].double() / len(paths) for name in dtypes}
    for path in paths[1:]:  # one after the other: a large model's checkpoints would not fit together
        weights = _weights(path)
        for name in dtypes:
            mean[name] += weights[name].double() / len(paths)
    return mean | {name: mean[name].to(dtype) for name, dtype in dtypes.items()}


def _weights(path: str | Path) -> dict[str, Tensor]:
    return torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
