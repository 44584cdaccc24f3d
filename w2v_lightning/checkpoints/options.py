"""Checkpoint options of `fit`, and how they are applied."""

import logging
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import Callback, LightningModule, Trainer

from w2v_lightning.checkpoints import content, files
from w2v_lightning.checkpoints.changes import RunOptions
from w2v_lightning.checkpoints.history import FROM_NEWEST, RunHistory, finished_segment, limits_of
from w2v_lightning.checkpoints.recent import Interval, RecentCheckpoints
from w2v_lightning.checkpoints.resume import announce, choose
from w2v_lightning.errors import InputError
from w2v_lightning.runtime import signals

log = logging.getLogger(__name__)


def add_options(parser: ArgumentParser) -> None:
    resume = (
        "checkpoint to start from: the newest one if there is any (auto), the newest one or an error (must), none"
        " (never), or a PATH, which only counts until the run has checkpoints of its own"
    )
    every = "time or number of steps between checkpoints, such as 90s, 15m, '500 steps' or never"
    keep = "number of newest checkpoints to keep"
    parser.add_argument("--resume", type=str, default="auto", help=f"{resume} (fit only)")
    parser.add_argument("--checkpoint_every", type=str, default="15m", help=f"{every} (fit only)")
    parser.add_argument("--checkpoint_keep", type=int, default=2, help=f"{keep} (fit only)")


def run_folder(options: Namespace) -> str:
    """Folder of a run's checkpoints, the same at every start, unlike the loggers' folders."""
    return str(options.checkpoint.dirpath or Path(options.trainer.default_root_dir, "checkpoints").absolute())


def callbacks(options: Namespace, resolved: str) -> list[Callback]:
    """Create the callbacks that keep the newest checkpoints and the history of the run.

    Args:
        options: options of the command line.
        resolved: the run's config as YAML, with all defaults filled in.

    Raises:
        InputError: `checkpoint_every` or `checkpoint_keep` is invalid.
    """
    folder, every = run_folder(options), Interval.parse(options.checkpoint_every)
    recent = RecentCheckpoints(folder, every, options.checkpoint_keep)
    return [RunHistory(folder, resolved, limits_of(options.trainer)), recent]


def check_ckpt_path(subcommand: str, options: Namespace) -> None:
    """Refuse Lightning's keywords best, last and hpc, which refer to the checkpoints of a preceding `fit`.

    Raises:
        InputError: `ckpt_path` is one of them, and the subcommand is not fit.
    """
    if subcommand != "fit" and options.ckpt_path in ("best", "last", "hpc"):
        best = f"{run_folder(options)}/best.ckpt"
        raise InputError(f"--ckpt_path is {options.ckpt_path}: {subcommand} needs a path or URL, such as {best}.")


def hyper_parameters(path: str) -> dict[str, Any]:
    """Return the options of the module in a local checkpoint, as LightningCLI reads them; {} for a URL or no file.

    Raises:
        InputError: the checkpoint is damaged, or lacks what every command reads.
    """
    if not Path(path).is_file():
        return {}
    if problem := content.find_problem(path, content.Weights):
        raise InputError(f"--ckpt_path {path}: {problem}. Name another checkpoint.")
    saved = files.peek(path).get("hyper_parameters", {})
    return {name: value for name, value in saved.items() if name not in ("_instantiator", "_class_path")}


def begin(trainer: Trainer, module: LightningModule, options: Namespace, run: RunOptions) -> tuple[bool, str | None]:
    """Decide where `fit` starts, and tell the callbacks and the user.

    Args:
        trainer, module: those of the run.
        options: options of the command line.
        run: the same as plain values, to compare with those of a checkpoint.

    Returns:
        Whether there is anything left to train, and the checkpoint to resume from (None: start at step 0).

    Raises:
        InputError: `resume` and `ckpt_path` disagree, or the checkpoint cannot be used; see `choose`.
    """
    resume, folder = _requested_resume(options), run_folder(options)
    chosen = choose(resume, folder, run, module.state_dict())
    signals.sigterm.set_resume_hint(_resume_hint(resume))
    for callback in trainer.callbacks:  # type: ignore[attr-defined]  # set by Lightning's callback connector
        if isinstance(callback, RecentCheckpoints):
            callback.resume_from = chosen
        if isinstance(callback, RunHistory):
            callback.resume = resume
    last = finished_segment(folder, limits_of(options.trainer)) if chosen not in (None, resume) else None
    if last:
        log.info("This run is finished, at step %d: %s", last["last_step"], last["log_dir"] or folder)
        log.info("To continue training, raise trainer.max_steps or trainer.max_epochs; to restart, --resume never.")
    elif chosen:
        origin = "" if resume in (*FROM_NEWEST, chosen) else f", which was trained from {resume}"
        log.info("Resuming from %s%s", chosen, origin)
        announce(chosen, run)
    return last is None, chosen


def _resume_hint(resume: str) -> str:
    """Tell how to resume, for the message of an interrupted run."""
    if resume == "never":
        return "Resume from there with --resume auto: the same command, with --resume never, would start over"
    return "The same command resumes from there"


def _requested_resume(options: Namespace) -> str:
    """Return the option `resume`, for which Lightning's `ckpt_path` is an alias.

    Raises:
        InputError: both are given, and differ.
    """
    path = options.ckpt_path
    if path in (None, "last"):
        return options.resume
    if options.resume not in ("auto", path):
        raise InputError(f"--resume is {options.resume} and --ckpt_path is {path}: give one of them.")
    return str(path)
