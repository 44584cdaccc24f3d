"""The best checkpoint of a run, which is exported and reported in the final summary."""

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint


class BestCheckpoint(ModelCheckpoint):
    """ModelCheckpoint that is configured by the `checkpoint` section of a config.

    It is a class of its own to tell it from ModelCheckpoints that a user adds, and because Lightning refuses two
    ModelCheckpoints with the same monitor.
    """

    monitor_option = "checkpoint.monitor"

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Skip epochs without validation, where Lightning would warn that the monitored score is missing."""
        is_pending = (self.monitor or "").startswith("val_") and self.monitor not in trainer.callback_metrics
        if not is_pending:
            super().on_train_epoch_end(trainer, pl_module)


def best_checkpoint(trainer: Trainer) -> ModelCheckpoint | None:
    """Return the callback that keeps the best checkpoint.

    That is the config's `checkpoint`; in a script, the first ModelCheckpoint with a monitor, otherwise the first one.
    `trainer.checkpoint_callback` would not do: it is the first callback that saves anything.
    """
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by Lightning's callback connector
    candidates = [callback for callback in callbacks if isinstance(callback, ModelCheckpoint)]
    return max(
        candidates,
        key=lambda candidate: (isinstance(candidate, BestCheckpoint), candidate.monitor is not None),
        default=None,
    )
