"""Where `fit` begins: `resume: auto|never|must|PATH`.

Every process decides for itself, from what lies in the run's folder before any of them writes there, so that all decide
the same; `RecentCheckpoints` makes sure of it once they can talk to each other.
"""

import json
import logging
import math
from collections.abc import Mapping
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

from w2v_lightning.checkpoints import files
from w2v_lightning.checkpoints.history import FROM_NEWEST, began_with
from w2v_lightning.errors import InputError

log = logging.getLogger(__name__)

# Options of the module that belong to the machine, not to the experiment.
MAY_DIFFER = {"gradient_checkpointing"}


def choose(resume: str, folder: str, options: Mapping[str, Any]) -> str | None:
    """The checkpoint to go on from; None: begin at step 0.

    Args:
        resume: "auto", the newest complete checkpoint in `folder`, if there is one; "must", likewise, but there must be
            one; "never"; or the path of one, where the run begins: once it has, the newest of what was trained from it.
        folder: of the run's checkpoints, or its URL.
        options: the module's hyper-parameters. Under "auto" and "must", a checkpoint of other ones is refused; under a
            path, it is not of what was trained from it.

    Raises:
        InputError: there is none where one must be; it is damaged, or of another run. Damaged ones that stand in the
            way of the newest complete one are named in a warning.
    """
    if resume == "never":
        return None
    path = _newest_complete(folder)
    if resume not in FROM_NEWEST:
        return path if path is not None and _was_begun_with(resume, path, options) else _checked(resume)
    if path is None and resume == "must":
        raise InputError(f"resume=must: {folder} holds no complete checkpoint; resume=auto would begin at step 0.")
    if path is not None and (changed := _changes(files.peek(path), options)):
        raise InputError(
            f"{path} is of another run: {'; '.join(changed)}. Give this one a folder of its own"
            " (trainer.default_root_dir), begin anew with resume=never, or go on from it all the same with"
            f" resume={path}."
        )
    return path


def _was_begun_with(resume: str, path: str, options: Mapping[str, Any]) -> bool:
    """`path` is what the same command has come to: to begin once more would only repeat it."""
    checkpoint = files.peek(path)
    return began_with(checkpoint.get("run", {}).get("segments", [])) == resume and not _changes(checkpoint, options)


def _checked(path: str) -> str:
    what = files.damage(path)
    if what == files.NO_CHECKSUM:
        files.peek(path)  # another program's is whole if it can be loaded
    elif what:
        raise InputError(
            f"--resume or --ckpt_path {path}: {what}. Without it, the newest complete one of the run is taken."
        )
    return path


def _newest_complete(folder: str) -> str | None:
    """The complete checkpoint after the most steps; one of no known step stands before all others."""
    steps = {path: files.global_step(path) for path in files.found_in(folder)}
    in_order = sorted(steps, key=lambda path: (math.inf if steps[path] is None else steps[path], path), reverse=True)
    for path in in_order:
        if what := files.damage(path):
            rank_zero_only(log.warning)("Checkpoint %s is not gone on from: %s.", path, what)
        elif "optimizer_states" in files.peek(path):  # of weights alone (checkpoint.save_weights_only) no run goes on
            return path
    return None


def _changes(checkpoint: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The hyper-parameters that the checkpoint was made with and that are others `now`, in words."""
    then = checkpoint.get("hyper_parameters", {})
    return [
        f"model.{name} was {then[name]}, is {value}"
        for name, value in now.items()
        if name in then and name not in MAY_DIFFER and _plain(then[name]) != _plain(value)
    ]


def _plain(value: Any) -> str:
    """To compare: a tuple is a list."""
    return json.dumps(value, default=str, sort_keys=True)
