"""History of a run: when, where and for which steps each of its processes ran, and with which software.

A run that is preempted is started several times. Each start is a segment in FOLDER/run_history.json, beside the
checkpoints. Every checkpoint has the segments that led to it, with versions, config and commit, under the key "run".
"""

import json
import logging
import os
import subprocess
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import fsspec
from lightning.pytorch import Callback, LightningModule, Trainer

import w2v_lightning
from w2v_lightning.checkpoints import files
from w2v_lightning.runtime.hardware import device_name, versions
from w2v_lightning.runtime.schema import Mismatch, check
from w2v_lightning.strategies.sagemaker_environment import find_hosts
from w2v_lightning.training.run_folder import output_folder

log = logging.getLogger(__name__)

FILE = "run_history.json"
FROM_NEWEST = ("auto", "must")  # values of `resume` that resume from the newest checkpoint
LIMITS = ("max_steps", "max_epochs", "max_time")  # options of the trainer that say where training ends


class Segment(TypedDict):
    """Keys of a segment that are read again, see `RunHistory`."""

    started: str
    ended: NotRequired[str]
    end: NotRequired[str]
    first_step: NotRequired[int]
    last_step: NotRequired[int]
    resume: NotRequired[str]
    limits: NotRequired[dict[str, Any]]


class RunHistory(Callback):
    """Callback that keeps FOLDER/run_history.json, and adds the history to each checkpoint.

    A segment has `started`, `ended` (UTC), `first_step`, `last_step`, `end` ("running", "finished", or the name of the
    exception that ended it; a killed process leaves "running"), `world_size`, `num_nodes`, `device`, `instance_type`
    (on SageMaker), `log_dir` and `resume`, the option. While a segment is running, `ended` and `last_step` are those of
    its last checkpoint.

    Args:
        folder: folder of the checkpoints, or its URL.
        config: the run's config as YAML, with all defaults filled in.
        limits: options that say where training ends, such as max_steps; plain values.
    """

    def __init__(self, folder: str, config: str, limits: dict[str, Any]) -> None:
        self.folder = folder
        self.limits = limits
        self.resume = "auto"  # the option; with "never", files in the folder belong to another run
        self._provenance = {"versions": versions(), "config": config, "git_commit": git_commit()}
        self._has_begun = False
        self._segments: list[dict[str, Any]] = []  # on rank 0 only
        self._past: list[dict[str, Any]] = []  # segments in the checkpoint that was loaded

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._past = checkpoint.get("run", {}).get("segments", [])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._segments and trainer.is_global_zero:
            self._write(trainer, self._segments[-1]["end"])
            checkpoint["run"] = self._provenance | {"segments": self._segments}

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._has_begun:
            self._begin(trainer)  # a run killed after its last step: this start trained nothing, it only exports
        self._write(trainer, "finished")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._write(trainer, type(exception).__name__)

    def _begin(self, trainer: Trainer) -> None:
        self._has_begun = True
        log_dir = str(output_folder(trainer))  # collective: all ranks
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]  # set by Lightning's setup
            return
        segment = _new_segment(trainer, log_dir) | {"resume": self.resume}
        if self.resume == "never":
            files.set_aside(files.join(self.folder, FILE))
            self.resume = "auto"  # after running out of memory, `out_of_memory.fit` calls fit again
        self._segments = [*_merged(self._past, read(self.folder)), segment]
        self._write(trainer, "running")

    def _write(self, trainer: Trainer, end: str) -> None:
        """Write the file. A failure is logged only: it must not end the run."""
        if not self._segments:
            return
        self._segments[-1] |= {"ended": _now(), "last_step": trainer.global_step, "end": end, "limits": self.limits}
        try:
            files.write_text(files.join(self.folder, FILE), json.dumps(self._segments, indent=1))
        except OSError as error:
            log.warning("%s could not be written to %s: %s", FILE, self.folder, error)


def read(folder: str) -> list[dict[str, Any]]:
    """Read the segments of the run in `folder`; none if the file is missing or cannot be read."""
    try:
        with fsspec.open(files.join(folder, FILE), "rt") as file:
            segments = json.load(file)
        check(segments, list[Segment])
    except FileNotFoundError:
        return []
    except (OSError, ValueError, RecursionError, Mismatch) as error:
        log.warning("%s in %s cannot be read (%s); starting a new one.", FILE, folder, error)
        return []
    return segments


def initial_resume(segments: Iterable[Mapping[str, Any]]) -> str:
    """Return the `resume` option that started the training in these segments: later starts only resumed it."""
    for segment in reversed(list(segments)):
        resume = segment.get("resume", "auto")
        if resume not in FROM_NEWEST or segment["first_step"] == 0:
            return resume
    return "auto"


def limits_of(trainer: Mapping[str, Any]) -> dict[str, str]:
    """Extract LIMITS from the trainer's options, in the format of a run history."""
    return {name: str(trainer.get(name)) for name in LIMITS}


def finished_segment(folder: str, limits: dict[str, Any]) -> dict[str, Any] | None:
    """Return the last segment of a run that reached its end under the same `limits`; None otherwise."""
    last: dict[str, Any] = next(reversed(read(folder)), {})
    return last if last.get("end") == "finished" and last.get("limits") == limits else None


def git_commit() -> str | None:
    """Commit of the checkout that this package runs from; None if it is installed. `git rev-parse` runs no hooks."""
    checkout = Path(w2v_lightning.__file__).parents[1]
    if not (checkout / ".git").exists():
        return None
    command = ["git", "-C", str(checkout), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _merged(*histories: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Merge histories. A segment that is in several is taken from the last one, which is the most recent."""
    by_start = {segment["started"]: segment for history in histories for segment in history}
    return [by_start[started] for started in sorted(by_start)]


def _new_segment(trainer: Trainer, log_dir: str) -> dict[str, Any]:
    hosts = find_hosts()
    return {
        "started": _now(),
        "first_step": trainer.global_step,
        "world_size": trainer.world_size,
        "num_nodes": trainer.num_nodes,
        "device": device_name(trainer.strategy.root_device),
        "instance_type": hosts.instance_type if hosts else None,
        "job": os.environ.get("TRAINING_JOB_NAME"),
        "log_dir": log_dir,
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
