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
from w2v_lightning.errors import InputError

log = logging.getLogger(__name__)

# Options of the module that belong to the machine, not to the experiment.
MAY_DIFFER = {"gradient_checkpointing"}


def choose(resume: str, folder: str, options: Mapping[str, Any]) -> str | None:
    """The checkpoint to go on from; None: begin at step 0.

    Args:
        resume: "auto", the newest complete checkpoint in `folder`, if there is one; "must", likewise, but there must be
            one; "never"; or the path of one.
        folder: of the run's checkpoints, or its URL.
        options: the module's hyper-parameters. Under "auto" and "must", a checkpoint of other ones is refused.

    Raises:
        InputError: there is none where one must be; it is damaged, or of another run. Damaged ones that stand in the
            way of the newest complete one are named in a warning.
    """
    if resume == "never":
        return None
    if resume not in ("auto", "must"):
        return _checked(resume)
    path = _newest_complete(folder)
    if path is None and resume == "must":
        raise InputError(f"resume=must: {folder} holds no complete checkpoint; resume=auto would begin at step 0.")
    if path is not None:
        _check_options(path, files.peek(path).get("hyper_parameters", {}), options)
    return path


def _checked(path: str) -> str:
    if what := files.damage(path):
        raise InputError(f"resume={path}: {what}. Without `resume`, the newest complete one of the run is taken.")
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


def _check_options(path: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    changed = [
        f"model.{name} was {then[name]}, is {value}"
        for name, value in now.items()
        if name in then and name not in MAY_DIFFER and _plain(then[name]) != _plain(value)
    ]
    if changed:
        raise InputError(
            f"{path} is of another run: {'; '.join(changed)}. Give this one a folder of its own"
            " (trainer.default_root_dir), begin anew with resume=never, or go on from it all the same with"
            f" resume={path}."
        )


def _plain(value: Any) -> str:
    """To compare: a tuple is a list."""
    return json.dumps(value, default=str, sort_keys=True)
