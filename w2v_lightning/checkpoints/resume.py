"""Choice of the checkpoint that `fit` starts from: `resume: auto|never|must|PATH`.

Each process chooses from the content of the run's folder, before any process writes there, so that all choose alike;
`RecentCheckpoints` verifies this once the processes can communicate.
"""

import logging
import math
from collections.abc import Mapping
from typing import Any

from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from w2v_lightning.checkpoints import content, files
from w2v_lightning.checkpoints.changes import Change, Effect, RunOptions
from w2v_lightning.checkpoints.history import FROM_NEWEST, initial_resume
from w2v_lightning.errors import InputError

log = logging.getLogger(__name__)

NOTHING = RunOptions()  # to compare
WEIGHTS_ALONE = "it was saved with checkpoint.save_weights_only, so it cannot be resumed"


def choose(
    resume: str, folder: str, options: RunOptions = NOTHING, weights: Mapping[str, Tensor] | None = None
) -> str | None:
    """Choose the checkpoint to resume from; None: start at step 0.

    Damaged checkpoints that are skipped on the way to the newest complete one are named in a warning.

    Args:
        resume: "auto": the newest complete checkpoint in `folder`, if there is one; "must": the same, but it is an
            error if there is none; "never"; or the path of a checkpoint, where the run starts: once it has, the newest
            checkpoint trained from it.
        folder: folder of the run's checkpoints, or its URL.
        options: the run's. With "auto" and "must", a checkpoint of another experiment is
            refused; with a path, it does not count as trained from that one.
        weights: the module's `state_dict`, to recognise a checkpoint that lacks some of them; None: not checked.

    Raises:
        InputError: there is no checkpoint although `resume` is "must", or it is damaged or belongs to another run.
    """
    if resume == "never":
        return None
    path = _newest_complete(folder, options, weights or {})
    if resume not in FROM_NEWEST:
        return path if path is not None and _was_started_from(resume, path, options) else _verified(resume)
    if path is None and resume == "must":
        raise InputError(f"resume=must: {folder} holds no complete checkpoint; resume=auto would start at step 0.")
    if path is not None and (refused := _refused(files.peek(path), options)):
        raise InputError(
            f"{path} belongs to another run: {_listed(refused)}. Give this run its own folder"
            " (trainer.default_root_dir), start over with resume=never, or resume from the checkpoint regardless with"
            f" resume={path}."
        )
    return path


def announce(path: str, options: RunOptions) -> None:
    """Report the options that differ from those that the checkpoint was trained with."""
    if changed := options.changes_since(files.peek(path)):
        rank_zero_only(log.warning)("Options have changed since checkpoint %s: %s.", path, _listed(changed))


def _refused(checkpoint: Mapping[str, Any], options: RunOptions) -> list[Change]:
    return [change for change in options.changes_since(checkpoint) if change.effect is Effect.REFUSED]


def _listed(changed: list[Change]) -> str:
    return "; ".join(map(str, changed))


def _was_started_from(resume: str, path: str, options: RunOptions) -> bool:
    """True if the same command has already trained up to `path`: starting from `resume` again would only repeat it."""
    checkpoint = files.peek(path)
    return initial_resume(checkpoint.get("run", {}).get("segments", [])) == resume and not _refused(checkpoint, options)


def _verified(path: str) -> str:
    if problem := content.find_problem(path):
        raise InputError(
            f"--resume or --ckpt_path {path}: {problem}. Omit the option to use the run's newest complete checkpoint."
        )
    return path


def _newest_complete(folder: str, options: RunOptions, weights: Mapping[str, Tensor]) -> str | None:
    """Find the complete checkpoint with the highest step; one of unknown step is tried before all others."""
    steps = {path: files.global_step(path) for path in files.list_checkpoints(folder)}
    sort_keys = {path: (math.inf if step is None else step, path) for path, step in steps.items()}
    for path in sorted(steps, key=sort_keys.__getitem__, reverse=True):
        problem = files.find_damage(path) or _fault(path, options, weights)
        if problem is None:
            return path
        if problem is not WEIGHTS_ALONE:
            rank_zero_only(log.warning)("Skipping checkpoint %s: %s.", path, problem)
    return None


def _fault(path: str, options: RunOptions, weights: Mapping[str, Tensor]) -> str | None:
    """Describe why a checkpoint whose bytes are right cannot be resumed; None if it can."""
    try:
        checkpoint = files.peek(path)
    except InputError as error:
        return str(error)
    if isinstance(checkpoint, dict) and "optimizer_states" not in checkpoint and "state_dict" in checkpoint:
        return WEIGHTS_ALONE
    if fault := content.find_fault(checkpoint):
        return fault
    # Weights of another shape are expected of another experiment, which is refused by the names of its options.
    return None if _refused(checkpoint, options) else content.find_misfit(checkpoint, weights)
