"""The newest checkpoints of a run: one every so often, the last few kept.

For who must save at another time, such as on preemption:
`checkpoint_path(trainer)` says where a checkpoint of this moment belongs (then `trainer.save_checkpoint(path)`), and
`drain(trainer)` returns when it is on the disk, or raises.
"""

import logging
import re
import time
from dataclasses import dataclass

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy

from w2v_lightning.checkpoints import files
from w2v_lightning.checkpoints.writer import BackgroundCheckpointIO
from w2v_lightning.data.batch import Batch
from w2v_lightning.errors import InputError

log = logging.getLogger(__name__)

SECONDS = {"s": 1, "m": 60, "h": 3600}
SHARDED = (FSDPStrategy, ModelParallelStrategy)  # every rank has a part of the state, and saves it


def checkpoint_path(trainer: Trainer) -> str:
    """Where a checkpoint of the steps that are done belongs, among the newest ones of the run."""
    own = next((callback for callback in trainer.callbacks if isinstance(callback, RecentCheckpoints)), None)
    folder = own.folder if own else files.join(trainer.default_root_dir, "checkpoints")
    return files.join(folder, f"step-{trainer.global_step:08}.ckpt")


def drain(trainer: Trainer) -> None:
    """Wait until all checkpoints that were saved are on the disk.

    Raises:
        InputError: the last one could not be written; says why.
    """
    writer = trainer.strategy.checkpoint_io
    if isinstance(writer, BackgroundCheckpointIO):
        writer.drain()
        if writer.failure:
            raise InputError(
                f"The last checkpoint, {writer.failure}. Make room, or name another folder with"
                " checkpoint.dirpath; with --resume auto the same command then goes on from the newest complete one."
            )


@dataclass(frozen=True)
class Interval:
    """How often: `seconds` or `steps`; neither is never."""

    seconds: float | None = None
    steps: int | None = None

    @classmethod
    def parse(cls, text: str) -> "Interval":
        """Such as "90s", "15m", "2h", "500 steps" or "never".

        Raises:
            InputError: it is none of these.
        """
        if text == "never":
            return cls()
        if found := re.fullmatch(r"([1-9]\d*) ?steps?", text):
            return cls(steps=int(found[1]))
        if found := re.fullmatch(r"(\d+(?:\.\d+)?) ?([smh])", text):
            return cls(seconds=float(found[1]) * SECONDS[found[2]])
        raise InputError(f"checkpoint_every is {text!r}: give a time as 90s, 15m or 2h, or 500 steps, or never.")


class RecentCheckpoints(Checkpoint):
    """Saves FOLDER/step-00000500.ckpt every so often and where training ends, and removes all but the newest few.

    By time, rank 0 decides alone: what DDP has to save it has on every rank, so the others need not even know. A
    checkpoint is made between two steps, after what belongs to the first: the averages of weights, a validation.

    Args:
        folder: a folder or a URL; the best checkpoint's too.
        every: how often.
        keep: how many of them; with two, the one before is there where the newest is damaged.

    Raises:
        InputError: `keep` is not positive.
    """

    def __init__(self, folder: str, every: Interval, keep: int = 2) -> None:
        if keep < 1:
            raise InputError(f"checkpoint_keep is {keep}: at least 1 is needed to go on from; 2 outlive a damaged one.")
        self.folder = folder
        self.every = every
        self.keep = keep
        self.goes_on_from: str | None = None  # the checkpoint that this process has chosen (resume.choose)
        self._last_step = 0
        self._last_time_s = 0.0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        self._check_agreement(trainer)
        if isinstance(trainer.strategy, SHARDED) and self.every.seconds is not None:
            raise InputError(
                "checkpoint_every is a time, at which ranks that share a model out would not save at the same step:"
                " give a number of steps, such as '500 steps'."
            )

    def _check_agreement(self, trainer: Trainer) -> None:
        """Hosts that do not see the same folder would go on from different steps."""
        first = trainer.strategy.broadcast(self.goes_on_from)
        if not trainer.strategy.reduce_boolean_decision(first == self.goes_on_from, all=True):
            raise InputError(
                f"The first process goes on from {first or 'step 0'}, another one does not: checkpoint.dirpath"
                f" ({self.folder}) must be a folder, or a URL, that all hosts share or have a copy of."
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._last_step, self._last_time_s = trainer.global_step, time.monotonic()
        if trainer.is_global_zero and not trainer.fast_dev_run:
            files.remove_leftovers(self.folder)
            self._set_aside(trainer.global_step)

    def _set_aside(self, step: int) -> None:
        """What the run that begins now at `step` does not come after: it must not be taken for its newest.

        Damaged ones, those that `resume: PATH` has gone back from, and all of another run where this one begins anew.
        """
        for path in files.found_in(self.folder):
            made_after = files.global_step(path) if _step_of(path) is None else _step_of(path)
            if made_after is not None and (made_after > step or step == 0):
                log.warning("%s is not of this run's past; it is kept as %s.", path, files.set_aside(path))

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
        if trainer.fast_dev_run:
            return
        self._last_step, self._last_time_s = trainer.global_step, time.monotonic()
        path = checkpoint_path(trainer)
        if isinstance(trainer.strategy, SHARDED):
            trainer.save_checkpoint(path)
        elif trainer.is_global_zero:  # trainer.save_checkpoint would wait for the other ranks, who do not come
            state = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
            trainer.strategy.save_checkpoint(state, path)
        self._remove_older(trainer)

    def _remove_older(self, trainer: Trainer) -> None:
        writer = trainer.strategy.checkpoint_io
        if not trainer.is_global_zero:
            return
        if isinstance(writer, BackgroundCheckpointIO):
            writer.remove_later(self._older)  # some of those that were saved may not be there yet
        else:
            for path in self._older():
                trainer.strategy.remove_checkpoint(path)

    def _older(self) -> list[str]:
        """All of our checkpoints but the newest few."""
        return sorted(path for path in files.found_in(self.folder) if _step_of(path) is not None)[: -self.keep]


def _step_of(path: str) -> int | None:
    """The step that one of our names says; None for another's, such as best.ckpt."""
    found = re.search(r"(?:^|/)step-(\d+)\.ckpt$", path)
    return int(found[1]) if found else None
