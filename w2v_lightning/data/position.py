"""Position of a run in the plan, to resume from, and a fingerprint to check that the plan is still the same.

A checkpoint holds how many global steps of its epoch are done. The plan defines the steps independently of the machine,
so the rest of the epoch is known on any number of devices and loader workers. Lightning itself counts micro-batches,
which depend on the machine: its count is converted when the checkpoint is loaded.
"""

from typing import Any

from lightning.pytorch import Trainer

from w2v_lightning.data import plan
from w2v_lightning.data.manifest import Manifest


def training_progress(trainer: Trainer, num_micro_batches: int) -> dict[str, Any]:
    """Return the progress of training: the epoch, its global steps done, and micro-batches per step on this machine.

    The count is that of optimiser steps, so that it is consistent even in a checkpoint saved in the middle of a step or
    on an exception.
    """
    optimizer_steps = trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step
    steps_done = optimizer_steps.current.completed
    return {
        "epoch": max(0, trainer.fit_loop.epoch_progress.current.ready - 1),
        "epoch_is_over": steps_done * num_micro_batches >= trainer.num_training_batches,
        "steps_done": steps_done,
        "num_micro_batches": num_micro_batches,
    }


def fingerprint(manifest: Manifest, batch_seconds: float, seed: int, spread: float) -> dict[str, Any]:
    """Return all inputs of the plan, in a form that can be compared by `changes`."""
    options = {"data.batch_seconds": batch_seconds, "data.seed": seed, "data.duration_spread": spread}
    return manifest.digests | options | {"version of the plan": plan.VERSION}


def changes(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Describe the differences between two fingerprints; empty if they are equal."""
    return [
        name if isinstance(value, str) else f"{name} (was {then.get(name)}, is {value})"  # digests are not shown
        for name, value in now.items()
        if then.get(name) != value
    ]


def align_progress(
    checkpoint: dict[str, Any], state: dict[str, Any], num_micro_batches: int, *, from_start: bool = False
) -> None:
    """Set the count of micro-batches in a loaded checkpoint to that of the completed steps on this machine.

    An epoch that was ended by max_steps or max_time is continued, although Lightning has marked it as completed.

    Args:
        checkpoint: the checkpoint that Lightning loaded; changed in place.
        state: the part of the data module (`training_progress`).
        num_micro_batches: number of micro-batches per rank and step, on this machine.
        from_start: whether to restart the epoch.
    """
    loops = checkpoint["loops"]["fit_loop"]
    if not state["epoch_is_over"]:
        for counts in (loops["epoch_progress"]["current"], loops["epoch_progress"]["total"]):
            counts.update(processed=counts["started"] - 1, completed=counts["started"] - 1)
    _restart_validation(loops["epoch_loop.val_loop.batch_progress"])
    current, total = loops["epoch_loop.batch_progress"]["current"], loops["epoch_loop.batch_progress"]["total"]
    done = 0 if from_start else state["steps_done"] * num_micro_batches
    # If the checkpoint was saved in a hook at the end of a batch, Lightning counts this batch when it resumes.
    is_whole = current["processed"] == state["steps_done"] * state["num_micro_batches"]
    uncounted = current["processed"] - current["completed"] if is_whole and not from_start else 0
    added = done - current["processed"]
    for counts, processed in ((current, done), (total, total["processed"] + added)):
        counts.update(ready=processed, started=processed, processed=processed, completed=processed - uncounted)


def restart_validation(checkpoint: dict[str, Any]) -> None:
    """Make a checkpoint from the middle of a validation repeat all of it, even if only its final sum is missing."""
    _reset_validation(checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"])


def _restart_validation(progress: dict[str, Any]) -> None:
    """Restart an interrupted validation: its batches depend on the machine, and its partial sums are lost."""
    if progress["total"]["processed"] == progress["total"]["started"] - 1:  # how Lightning recognises an interruption
        _reset_validation(progress)


def _reset_validation(validation: dict[str, Any]) -> None:
    for counts in (validation["total"], validation["current"]):
        counts.update(ready=1, started=1, processed=0, completed=0)
    validation["is_last_batch"] = False
