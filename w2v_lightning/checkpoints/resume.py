"""Choice of the checkpoint that `fit` starts from: `resume: auto|never|must|PATH`.

Each process chooses from the content of the run's folder, before any process writes there, so that all choose alike;
`RecentCheckpoints` verifies this once the processes can communicate.
"""

import json
import logging
import math
from collections.abc import Mapping
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

from w2v_lightning.checkpoints import files
from w2v_lightning.checkpoints.history import FROM_NEWEST, initial_resume
from w2v_lightning.errors import InputError

log = logging.getLogger(__name__)

# Options of the module that depend on the machine, not on the experiment.
MAY_DIFFER = {"gradient_checkpointing"}


def choose(resume: str, folder: str, options: Mapping[str, Any]) -> str | None:
    """Choose the checkpoint to resume from; None: start at step 0.

    Damaged checkpoints that are skipped on the way to the newest complete one are named in a warning.

    Args:
        resume: "auto": the newest complete checkpoint in `folder`, if there is one; "must": the same, but it is an
            error if there is none; "never"; or the path of a checkpoint, where the run starts: once it has, the newest
            checkpoint trained from it.
        folder: folder of the run's checkpoints, or its URL.
        options: the module's hyper-parameters. With "auto" and "must", a checkpoint of others is refused; with a path,
            it does not count as trained from that one.

    Raises:
        InputError: there is no checkpoint although `resume` is "must", or it is damaged or belongs to another run.
    """
    if resume == "never":
        return None
    path = _newest_complete(folder)
    if resume not in FROM_NEWEST:
        return path if path is not None and _was_started_from(resume, path, options) else _verified(resume)
    if path is None and resume == "must":
        raise InputError(f"resume=must: {folder} holds no complete checkpoint; resume=auto would start at step 0.")
    if path is not None and (changes := _changes(files.peek(path), options)):
        raise InputError(
            f"{path} belongs to another run: {'; '.join(changes)}. Give this run its own folder"
            " (trainer.default_root_dir), start over with resume=never, or resume from the checkpoint regardless with"
            f" resume={path}."
        )
    return path


def _was_started_from(resume: str, path: str, options: Mapping[str, Any]) -> bool:
    """True if the same command has already trained up to `path`: starting from `resume` again would only repeat it."""
    checkpoint = files.peek(path)
    return initial_resume(checkpoint.get("run", {}).get("segments", [])) == resume and not _changes(checkpoint, options)


def _verified(path: str) -> str:
    problem = files.find_damage(path)
    if problem == files.NO_CHECKSUM:
        files.peek(path)  # a checkpoint of another program counts as complete if it can be loaded
    elif problem:
        raise InputError(
            f"--resume or --ckpt_path {path}: {problem}. Omit the option to use the run's newest complete checkpoint."
        )
    return path


def _newest_complete(folder: str) -> str | None:
    """Find the complete checkpoint with the highest step; one of unknown step is tried before all others."""
    steps = {path: files.global_step(path) for path in files.list_checkpoints(folder)}
    sort_keys = {path: (math.inf if step is None else step, path) for path, step in steps.items()}
    for path in sorted(steps, key=sort_keys.__getitem__, reverse=True):
        if problem := files.find_damage(path):
            rank_zero_only(log.warning)("Skipping checkpoint %s: %s.", path, problem)
        elif "optimizer_states" in files.peek(path):  # absent with checkpoint.save_weights_only: cannot be resumed
            return path
    return None


def _changes(checkpoint: Mapping[str, Any], options: Mapping[str, Any]) -> list[str]:
    """Describe the hyper-parameters of a checkpoint that differ from `options`."""
    saved = checkpoint.get("hyper_parameters", {})
    return [
        f"model.{name} was {saved[name]}, is {value}"
        for name, value in options.items()
        if name in saved and name not in MAY_DIFFER and _comparable(saved[name]) != _comparable(value)
    ]


def _comparable(value: Any) -> str:
    """Serialise a value for comparison: a tuple equals a list."""
    return json.dumps(value, default=str, sort_keys=True)
