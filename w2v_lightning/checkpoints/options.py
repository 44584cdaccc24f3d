"""The options of `fit` that checkpoints have, and what follows from them."""

import logging
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import Callback, LightningModule, Trainer

from w2v_lightning.checkpoints.history import FROM_NEWEST, RunHistory, finished, limits_of
from w2v_lightning.checkpoints.recent import Interval, RecentCheckpoints
from w2v_lightning.checkpoints.resume import choose
from w2v_lightning.errors import InputError
from w2v_lightning.runtime import signals

log = logging.getLogger(__name__)


def add_options(parser: ArgumentParser) -> None:
    every, keep = "such as 90s, 15m, '500 steps', never", "how many of the newest checkpoints"
    resume = "go on from the newest checkpoint? auto, must, never; or the PATH of one to begin from, once"
    parser.add_argument("--resume", type=str, default="auto", help=f"of fit: {resume}")
    parser.add_argument("--checkpoint_every", type=str, default="15m", help=f"of fit: {every}")
    parser.add_argument("--checkpoint_keep", type=int, default=2, help=f"of fit: {keep}")


def run_folder(options: Namespace) -> str:
    """Where a run's checkpoints lie: the same at every start, as the loggers' folders are not."""
    return str(options.checkpoint.dirpath or Path(options.trainer.default_root_dir, "checkpoints").absolute())


def callbacks(options: Namespace, resolved: str) -> list[Callback]:
    """What keeps the newest checkpoints and the record of the run; `resolved` is its whole config.

    Raises:
        InputError: `checkpoint_every` or `checkpoint_keep` make no sense.
    """
    folder, every = run_folder(options), Interval.parse(options.checkpoint_every)
    recent = RecentCheckpoints(folder, every, options.checkpoint_keep)
    return [RunHistory(folder, resolved, limits_of(options.trainer)), recent]


def check_ckpt_path(subcommand: str, options: Namespace) -> None:
    """Lightning's words for the checkpoints of a run mean nothing, or no checkpoint at all, where none has been run.

    Raises:
        InputError: `ckpt_path` is one of them.
    """
    if subcommand != "fit" and options.ckpt_path in ("best", "last", "hpc"):
        best = f"{run_folder(options)}/best.ckpt"
        raise InputError(f"--ckpt_path is {options.ckpt_path}: {subcommand} wants a path or URL, such as {best}.")


def begin(trainer: Trainer, module: LightningModule, options: Namespace) -> tuple[bool, str | None]:
    """Whether there is anything left to train, and the checkpoint to go on from; None: begin at step 0.

    Raises:
        InputError: see `choose`.
    """
    resume, folder = _asked(options), run_folder(options)
    chosen = choose(resume, folder, module.hparams)
    signals.watch.how_to_go_on = _how_to_go_on(resume)
    for callback in trainer.callbacks:
        if isinstance(callback, RecentCheckpoints):
            callback.goes_on_from = chosen
        if isinstance(callback, RunHistory):
            callback.resume = resume
    last = finished(folder, limits_of(options.trainer)) if chosen not in (None, resume) else None
    if last:
        log.info("This run has ended, at step %d: %s", last["last_step"], last["log_dir"] or folder)
        log.info("To train on, raise trainer.max_steps or trainer.max_epochs; to begin anew, --resume never.")
    elif chosen:
        origin = "" if resume in (*FROM_NEWEST, chosen) else f", which was trained from {resume}"
        log.info("Going on from %s%s", chosen, origin)
    return last is None, chosen


def _how_to_go_on(resume: str) -> str:
    """What a run says that has been interrupted."""
    if resume == "never":
        return "Go on from there with --resume auto: with --resume never the same command would begin anew"
    return "The same command goes on from there"


def _asked(options: Namespace) -> str:
    """`resume`, of which Lightning's own `ckpt_path` is another name.

    Raises:
        InputError: they name different things.
    """
    path = options.ckpt_path
    if path in (None, "last"):
        return options.resume
    if options.resume not in ("auto", path):
        raise InputError(f"--resume is {options.resume} and --ckpt_path is {path}: give one of them.")
    return str(path)
