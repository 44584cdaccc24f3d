"""Which checkpoint of a run is its best: that model is exported, and the closing summary is about it."""

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint


class BestCheckpoint(ModelCheckpoint):
    """What the `checkpoint` section of a config keeps.

    A class of its own, so that it is known among the ModelCheckpoints that a user adds, and so that one with the same
    monitor is no second of its kind, which Lightning refuses.
    """

    monitor_option = "checkpoint.monitor"

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lightning warns of a score that is not there, also in a run that validates nothing, or not in this epoch."""
        is_to_come = (self.monitor or "").startswith("val_") and self.monitor not in trainer.callback_metrics
        if not is_to_come:
            super().on_train_epoch_end(trainer, pl_module)


def best_checkpoint(trainer: Trainer) -> ModelCheckpoint | None:
    """The `checkpoint` of the config; in a script, the first ModelCheckpoint that monitors a score, or else the first.

    `trainer.checkpoint_callback` is the first of anything that saves.
    """
    candidates = [callback for callback in trainer.callbacks if isinstance(callback, ModelCheckpoint)]
    return max(candidates, key=lambda each: (isinstance(each, BestCheckpoint), each.monitor is not None), default=None)
