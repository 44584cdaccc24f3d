"""Going on where a run was interrupted: the position in the plan, and whether the plan is still the same.

A checkpoint holds how many global steps of its epoch are done. The plan fixes what a step is, whatever the machine, so
the rest of the epoch is known on any number of devices and loader workers. Lightning itself counts micro-batches, which
belong to the machine: its count is translated when the checkpoint is loaded.
"""

from typing import Any

from lightning.pytorch import Trainer

from w2v_lightning.data import plan
from w2v_lightning.data.manifest import Manifest


def progress_of(trainer: Trainer, num_micro_batches: int) -> dict[str, Any]:
    """Where training is: the epoch, its global steps done, and micro-batches per step on this machine.

    Steps are counted where the optimiser makes them, so that neither a checkpoint in the middle of a step nor one from
    an exception is ever between two counts.
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
    """What the plan follows from, in a form that can be compared and says what differs."""
    options = {"data.batch_seconds": batch_seconds, "data.seed": seed, "data.duration_spread": spread}
    return manifest.digests | options | {"version of the plan": plan.VERSION}


def changes(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs between two fingerprints, in words; empty where nothing does."""
    return [
        name if isinstance(value, str) else f"{name} (was {then.get(name)}, is {value})"  # a digest says nothing
        for name, value in now.items()
        if then.get(name) != value
    ]


def align_progress(
    checkpoint: dict[str, Any], state: dict[str, Any], num_micro_batches: int, *, from_start: bool = False
) -> None:
    """Set the micro-batches done, in a loaded checkpoint, to what the steps done are on this machine.

    An epoch that max_steps or max_time has ended is taken up again: to Lightning it is over.

    Args:
        checkpoint: as Lightning loaded it; changed in place.
        state: the data module's part of it (`progress_of`).
        num_micro_batches: per rank and step, on this machine.
        from_start: the epoch begins anew.
    """
    loops = checkpoint["loops"]["fit_loop"]
    if not state["epoch_is_over"]:
        for counts in (loops["epoch_progress"]["current"], loops["epoch_progress"]["total"]):
            counts.update(processed=counts["started"] - 1, completed=counts["started"] - 1)
    _restart_validation(loops["epoch_loop.val_loop.batch_progress"])
    current, total = loops["epoch_loop.batch_progress"]["current"], loops["epoch_loop.batch_progress"]["total"]
    done = 0 if from_start else state["steps_done"] * num_micro_batches
    # Saved from a hook at the end of a batch, Lightning has yet to count it as completed, and does so when it resumes.
    is_whole = current["processed"] == state["steps_done"] * state["num_micro_batches"]
    uncounted = current["processed"] - current["completed"] if is_whole and not from_start else 0
    added = done - current["processed"]
    for counts, processed in ((current, done), (total, total["processed"] + added)):
        counts.update(ready=processed, started=processed, processed=processed, completed=processed - uncounted)


def restart_validation(checkpoint: dict[str, Any]) -> None:
    """In a checkpoint from the middle of a validation: it is done again as a whole, even if only its sum is missing."""
    _begin_anew(checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"])


def _restart_validation(progress: dict[str, Any]) -> None:
    """A validation that was interrupted begins anew: its batches, too, belong to the machine, and its sums are lost."""
    if progress["total"]["processed"] == progress["total"]["started"] - 1:  # which Lightning takes for a sign of it
        _begin_anew(progress)


def _begin_anew(validation: dict[str, Any]) -> None:
    for counts in (validation["total"], validation["current"]):
        counts.update(ready=1, started=1, processed=0, completed=0)
    validation["is_last_batch"] = False
