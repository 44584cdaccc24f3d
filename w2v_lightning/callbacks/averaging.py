"""Averaged weights: over the last updates during training, and over the best checkpoints afterwards."""

import copy
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor

from w2v_lightning.callbacks.export import save_pretrained
from w2v_lightning.checkpoints import files
from w2v_lightning.checkpoints.best import best_checkpoint
from w2v_lightning.errors import InputError
from w2v_lightning.model.sharding import is_finite
from w2v_lightning.strategies.fsdp2 import whole_module
from w2v_lightning.training.run_folder import output_folder

log = logging.getLogger(__name__)


class MovingAverage(EMAWeightAveraging):
    """Exponential moving average of the weights, used for validation, checkpoints and export, but not for training.

    It is Lightning's callback, made safe against interruptions during validation: there the average is swapped with the
    weights, and a checkpoint saved at that time would resume training from the average.

    Args:
        decay: share of the average that is kept at each optimiser update; 0.999 averages about 1,000 updates.

    Raises:
        InputError: `decay` is not between 0 and 1.
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 < decay < 1:
            raise InputError(f"MovingAverage: decay={decay} must be between 0 and 1, such as 0.999.")
        super().__init__(decay=decay)
        self._is_swapped = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and isinstance(trainer.strategy, ModelParallelStrategy):
            raise InputError(
                "MovingAverage needs all weights on each device, but fsdp2 shards them: remove the callback or use ddp."
            )
        with warnings.catch_warnings():  # it warns of any module with configure_model, also if nothing is sharded
            warnings.filterwarnings("ignore", message="You're using the WeightAveraging callback with a model that")
            super().setup(trainer, pl_module, stage)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_epoch_start(trainer, pl_module)
        self._is_swapped = True

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_epoch_end(trainer, pl_module)
        self._is_swapped = False

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        # ModelCheckpoint, which may save on an exception, is called after all other callbacks: after this one.
        if self._is_swapped:
            self.on_validation_epoch_end(trainer, pl_module)


class AverageBest(Callback):
    """Callback that writes the average of the best checkpoints to LOG_DIR/model-average.

    It needs at least two of them (`checkpoint.save_top_k`). The folder has the Hugging Face format, as LOG_DIR/model.
    The module is not changed.
    """

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        best = best_checkpoint(trainer)
        if trainer.fast_dev_run or best is None or len(best.best_k_models) < 2:  # type: ignore[attr-defined]
            return
        folder = output_folder(trainer) / "model-average"  # collective: all ranks
        whole = whole_module(trainer)  # collective: all ranks
        if not trainer.is_global_zero:
            return
        scores = best.best_k_models
        paths = sorted(scores, key=lambda path: float(scores[path]), reverse=best.mode == "max")
        averaged = copy.deepcopy(whole).cpu()
        try:
            averaged.load_state_dict(average_weights(paths))
        except (InputError, OSError) as error:  # a disk fault must not end a run that has trained to its end
            log.warning("No average of the %d best checkpoints is written: %s", len(paths), error)
            return
        if not is_finite(averaged):
            log.warning("No average of the %d best checkpoints is written: weights are NaN or infinite.", len(paths))
            return
        save_pretrained(averaged, folder)
        log.info("Average of the %d best checkpoints: %s", len(paths), folder)


def average_weights(paths: Sequence[str | Path]) -> dict[str, Tensor]:
    """Average the weights in several checkpoints of a run; tensors not of floating point are taken from the first one.

    The mean is computed in float64, so that a weight that is equal in all checkpoints stays exactly the same. No code
    in a checkpoint is run.

    Raises:
        InputError: a checkpoint is missing or damaged, or holds more than tensors and plain values.
    """
    mean = _weights(paths[0])
    dtypes = {name: tensor.dtype for name, tensor in mean.items() if tensor.is_floating_point()}
    mean |= {name: mean[name].double() / len(paths) for name in dtypes}
    for path in paths[1:]:  # one at a time: several checkpoints of a large model may not fit into memory
        weights = _weights(path)
        for name in dtypes:
            mean[name] += weights[name].double() / len(paths)
    return mean | {name: mean[name].to(dtype) for name, dtype in dtypes.items()}


def _weights(path: str | Path) -> dict[str, Tensor]:
    return files.load(str(path))["state_dict"]
