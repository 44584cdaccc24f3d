"""Export of the best model at the end of a run, as a Hugging Face folder beside the logs."""

import logging
from pathlib import Path
from typing import Protocol, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

from w2v_lightning.checkpoints import files
from w2v_lightning.checkpoints.best import best_checkpoint
from w2v_lightning.compat.torch import FSDPModule
from w2v_lightning.errors import InputError
from w2v_lightning.model.sharding import is_finite
from w2v_lightning.strategies.fsdp2 import whole_module
from w2v_lightning.training.run_folder import output_folder

log = logging.getLogger(__name__)


class Exportable(Protocol):
    """Module whose model can be written as a Hugging Face folder, as ours can."""

    def save_pretrained(self, folder: str | Path) -> None: ...


class ExportBest(Callback):
    """Callback that writes LOG_DIR/model from the best checkpoint, or from the last weights if none was kept.

    transformers and `model.pretrained` can load that folder. The module is left with the exported weights; a sharded
    module keeps its last ones.

    Raises:
        InputError: at the end of the run, weights are NaN or infinite.
    """

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.best_step: int | None = None  # global step of the best checkpoint; None: the last weights were exported

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]  # set by Lightning's setup
            return
        best = best_checkpoint(trainer)
        self.folder = output_folder(trainer) / "model"  # collective: all ranks
        module = whole_module(trainer)  # collective: all ranks
        has_diverged = trainer.is_global_zero and not is_finite(module)
        if best and best.best_model_path and (trainer.is_global_zero or not isinstance(module, FSDPModule)):
            self.best_step = _load_weights(module, best.best_model_path)
        if not trainer.strategy.broadcast(trainer.is_global_zero and is_finite(module)):
            raise InputError(
                f"{self.folder} is not written: weights are NaN or infinite. Lower model.learning_rate or set"
                " trainer.gradient_clip_val=1.0, check the audio (check --decode), and start over (resume=never) or"
                " from an earlier checkpoint (resume=PATH)."
            )
        if has_diverged:
            log.warning("The last weights are NaN or infinite: %s has the earlier, best checkpoint.", self.folder)
        if trainer.is_global_zero:
            save_pretrained(module, self.folder)


def save_pretrained(module: LightningModule, folder: Path) -> None:
    """Write the model of a module as a Hugging Face folder."""
    cast("Exportable", module).save_pretrained(folder)


def _load_weights(module: LightningModule, path: str) -> int | None:
    """Load the weights of the best checkpoint and return its global step.

    If the checkpoint cannot be read, keep the last weights, so that the training is not lost, and return None.
    """
    try:
        checkpoint = files.load(path)
        module.load_state_dict(checkpoint["state_dict"])
    except (InputError, OSError) as error:
        message = "The best checkpoint cannot be read, so the last weights are exported: %s"
        rank_zero_only(log.warning)(message, error)  # on other hosts the file may be missing: it is rank 0's
        return None
    return checkpoint["global_step"]
