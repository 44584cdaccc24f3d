"""Which checkpoint of a run is its best: that model is exported, and the closing summary is about it."""

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint


class BestCheckpoint(ModelCheckpoint):
    """What the `checkpoint` section of a config keeps.

    A class of its own, so that it is known among the ModelCheckpoints that a user adds, and so that one with the same
    monitor is no second of its kind, which Lightning refuses.
    """

    monitor_option = "checkpoint.monitor"


def best_checkpoint(trainer: Trainer) -> ModelCheckpoint | None:
    """The `checkpoint` of the config; in a script, the first ModelCheckpoint that monitors a score, or else the first.

    `trainer.checkpoint_callback` is the first of anything that saves.
    """
    candidates = [callback for callback in trainer.callbacks if isinstance(callback, ModelCheckpoint)]
    return max(candidates, key=lambda each: (isinstance(each, BestCheckpoint), each.monitor is not None), default=None)
