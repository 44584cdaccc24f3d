"""The newest checkpoints of a run: saved at intervals, the last few kept.

To save at another time, such as on preemption: `checkpoint_path(trainer)` is the path of a checkpoint of the current
step, for `trainer.save_checkpoint(path)`; `drain(trainer)` returns when it is on disk, or raises.
"""

import logging
import re
import time
from dataclasses import dataclass

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy

from w2v_lightning.checkpoints import files
from w2v_lightning.checkpoints.writer import BackgroundCheckpointIO
from w2v_lightning.compat.lightning import dump_checkpoint
from w2v_lightning.data.batch import Batch
from w2v_lightning.errors import InputError

log = logging.getLogger(__name__)

SECONDS = {"s": 1, "m": 60, "h": 3600}
SHARDED = (FSDPStrategy, ModelParallelStrategy)  # every rank has a shard of the state, and takes part in saving


def checkpoint_path(trainer: Trainer) -> str:
    """Path of a checkpoint of the current step, in the folder of the run's newest checkpoints."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by Lightning's callback connector
    recent = next((callback for callback in callbacks if isinstance(callback, RecentCheckpoints)), None)
    folder = recent.folder if recent else files.join(trainer.default_root_dir, "checkpoints")
    return files.join(folder, f"step-{trainer.global_step:08}.ckpt")


def drain(trainer: Trainer) -> None:
    """Wait until all saved checkpoints are on disk.

    Raises:
        InputError: the last one could not be written; the message gives the reason.
    """
    writer = trainer.strategy.checkpoint_io
    if isinstance(writer, BackgroundCheckpointIO):
        writer.drain()
        if writer.failure:
            raise InputError(
                f"The last checkpoint, {writer.failure}. Free some space, or choose another folder with"
                " checkpoint.dirpath. Then the same command with --resume auto resumes from the newest complete"
                " checkpoint."
            )


@dataclass(frozen=True)
class Interval:
    """Interval in `seconds` or `steps`; never if both are None."""

    seconds: float | None = None
    steps: int | None = None

    @classmethod
    def parse(cls, text: str) -> "Interval":
        """Parse an interval, such as "90s", "15m", "2h", "500 steps" or "never".

        Raises:
            InputError: `text` is not an interval.
        """
        if text == "never":
            return cls()
        if match := re.fullmatch(r"([1-9]\d*) ?steps?", text):
            return cls(steps=int(match[1]))
        if match := re.fullmatch(r"(\d+(?:\.\d+)?) ?([smh])", text):
            return cls(seconds=float(match[1]) * SECONDS[match[2]])
        raise InputError(
            f"checkpoint_every is {text!r}: give a time (90s, 15m or 2h), a number of steps (500 steps), or never."
        )


class RecentCheckpoints(Checkpoint):
    """Callback that saves FOLDER/step-00000500.ckpt at intervals and at the end, and removes all but the newest few.

    With an interval of time, rank 0 decides alone: under DDP it has the whole state, so the other ranks need not take
    part. A checkpoint is saved between two steps, after everything that belongs to the first, such as updating averaged
    weights or a validation.

    Args:
        folder: folder or URL, shared with the best checkpoint.
        every: interval between checkpoints.
        keep: number of checkpoints to keep; with 2, the previous one is left if the newest is damaged.

    Raises:
        InputError: `keep` is not positive.
    """

    def __init__(self, folder: str, every: Interval, keep: int = 2) -> None:
        if keep < 1:
            raise InputError(f"checkpoint_keep is {keep}, must be at least 1. Keep 2 to survive a damaged checkpoint.")
        self.folder = folder
        self.every = every
        self.keep = keep
        self.resume_from: str | None = None  # the checkpoint that this process chose (resume.choose)
        self._last_step = 0
        self._last_time_s = 0.0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        self._check_agreement(trainer)
        if isinstance(trainer.strategy, SHARDED) and self.every.seconds is not None:
            raise InputError(
                "checkpoint_every is a time, but ranks of a sharded model must all save at the same step:"
                " give a number of steps, such as '500 steps'."
            )

    def _check_agreement(self, trainer: Trainer) -> None:
        """Refuse to train if ranks chose different checkpoints, as on hosts that do not share the folder."""
        first = trainer.strategy.broadcast(self.resume_from)
        if not trainer.strategy.reduce_boolean_decision(first == self.resume_from, all=True):
            raise InputError(
                f"Rank 0 resumes from {first or 'step 0'}, another rank does not: checkpoint.dirpath"
                f" ({self.folder}) must be a folder or URL that all hosts share or have a copy of."
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._last_step, self._last_time_s = trainer.global_step, time.monotonic()
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            files.remove_leftovers(self.folder)
            self._set_aside(trainer.global_step)

    def _set_aside(self, step: int) -> None:
        """Rename checkpoints that a run starting at `step` did not come from, so that none is taken for its newest.

        These are damaged ones, ones later than `resume: PATH`, and, if the run starts over, all those of another run.
        """
        for path in files.list_checkpoints(self.folder):
            checkpoint_step = files.global_step(path) if _step_of(path) is None else _step_of(path)
            if checkpoint_step is not None and (checkpoint_step > step or step == 0):
                log.warning("%s does not belong to this run; renamed to %s.", path, files.set_aside(path))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        if batch.micro_batch == 0 and self._is_due(trainer.global_step):
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.fit_loop.done and trainer.global_step > self._last_step:
            self._save(trainer)

    def _is_due(self, step: int) -> bool:
        if step == self._last_step:
            return False
        if self.every.steps is not None:
            return step % self.every.steps == 0
        return self.every.seconds is not None and time.monotonic() - self._last_time_s >= self.every.seconds

    def _save(self, trainer: Trainer) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]  # set by Lightning's setup
            return
        self._last_step, self._last_time_s = trainer.global_step, time.monotonic()
        path = checkpoint_path(trainer)
        if isinstance(trainer.strategy, SHARDED):
            trainer.save_checkpoint(path)
        elif trainer.is_global_zero:  # not trainer.save_checkpoint, which has a barrier for all ranks
            state = dump_checkpoint(trainer)
            trainer.strategy.save_checkpoint(state, path)
        self._remove_older(trainer)

    def _remove_older(self, trainer: Trainer) -> None:
        writer = trainer.strategy.checkpoint_io
        if not trainer.is_global_zero:
            return
        if isinstance(writer, BackgroundCheckpointIO):
            writer.remove_later(self._older)  # later: some saved checkpoints may not be written yet
        else:
            for path in self._older():
                trainer.strategy.remove_checkpoint(path)

    def _older(self) -> list[str]:
        """Return all checkpoints of this callback but the newest few."""
        return sorted(path for path in files.list_checkpoints(self.folder) if _step_of(path) is not None)[: -self.keep]


def _step_of(path: str) -> int | None:
    """Parse the step in a file name of RecentCheckpoints; None for other names, such as best.ckpt."""
    match = re.search(r"(?:^|/)step-(\d+)\.ckpt$", path)
    return int(match[1]) if match else None
