"""At the end of a run, the best model as a Hugging Face folder beside the logs."""

import logging
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from torch.distributed.fsdp import FSDPModule

from w2v_lightning.checkpoints import files
from w2v_lightning.checkpoints.best import best_checkpoint
from w2v_lightning.errors import InputError
from w2v_lightning.model.sharding import is_finite
from w2v_lightning.strategies.fsdp2 import whole_module
from w2v_lightning.training.run_folder import output_folder

log = logging.getLogger(__name__)


class ExportBest(Callback):
    """Writes LOG_DIR/model from the best checkpoint, or from the last weights where no checkpoint was kept.

    transformers and `model.pretrained` load that folder. The module is left with the weights that were written;
    one whose weights are shared out keeps its last ones. An InputError refuses weights that are NaN or infinite.
    """

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.best_step: int | None = None  # global step of the best checkpoint, where the model is from it

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.fast_dev_run:
            return
        best = best_checkpoint(trainer)
        self.folder = output_folder(trainer) / "model"  # asks all ranks
        module = whole_module(trainer)  # asks all ranks
        has_diverged = trainer.is_global_zero and not is_finite(module)
        if best and best.best_model_path and (trainer.is_global_zero or not isinstance(module, FSDPModule)):
            self.best_step = _load_weights(module, best.best_model_path)
        if not trainer.strategy.broadcast(trainer.is_global_zero and is_finite(module)):
            raise InputError(
                f"{self.folder} is not written: weights are NaN or infinite. Lower model.learning_rate or set"
                " trainer.gradient_clip_val=1.0, see that the audio is sound (check --decode), and begin anew"
                " (resume=never) or at a checkpoint from before (resume=PATH)."
            )
        if has_diverged:
            log.warning("The last weights are NaN or infinite: %s is the best checkpoint, from before.", self.folder)
        if trainer.is_global_zero:
            module.save_pretrained(self.folder)


def _load_weights(module: LightningModule, path: str) -> int | None:
    """Of the best checkpoint, whose step is returned.

    Where that could not be written, or not be read, what was trained is not to be lost.
    """
    try:
        checkpoint = files.load(path)
        module.load_state_dict(checkpoint["state_dict"])
    except (InputError, OSError) as error:
        message = "The best checkpoint cannot be read, so the last weights are exported: %s"
        rank_zero_only(log.warning)(message, error)  # another host has not the files that this rank does not write
        return None
    return checkpoint["global_step"]
