"""At the end of a run, the best model as a Hugging Face folder beside the logs."""

from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer


class ExportBest(Callback):
    """Writes LOG_DIR/model from the best checkpoint, or from the last weights where no checkpoint was kept.

    transformers and `model.pretrained` load that folder. The module is left with the weights that were written.
    """

    def __init__(self) -> None:
        self.folder: Path | None = None

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        log_dir = trainer.log_dir  # asks all ranks
        if trainer.fast_dev_run or log_dir is None:
            return
        best = getattr(trainer.checkpoint_callback, "best_model_path", "")
        if best:
            checkpoint = torch.load(best, map_location="cpu", weights_only=True)
            pl_module.load_state_dict(checkpoint["state_dict"])
        self.folder = Path(log_dir, "model")
        if trainer.is_global_zero:
            pl_module.save_pretrained(self.folder)
