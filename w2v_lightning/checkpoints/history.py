"""What a run was: every stretch of it, on which machine, when, which steps; and what made it.

A run that is preempted is a chain of starts. Each is a segment in FOLDER/run_history.json, beside the checkpoints, and
every checkpoint has those that led to it, with versions, config and commit, under the key "run".
"""

import json
import logging
import os
import subprocess
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsspec
from lightning.pytorch import Callback, LightningModule, Trainer

import w2v_lightning
from w2v_lightning.checkpoints import files
from w2v_lightning.runtime.hardware import device_name, versions
from w2v_lightning.strategies.sagemaker_environment import find_hosts
from w2v_lightning.training.run_folder import output_folder

log = logging.getLogger(__name__)

FILE = "run_history.json"
FROM_NEWEST = ("auto", "must")  # what `resume` is where a run goes on, wherever it began
LIMITS = ("max_steps", "max_epochs", "max_time")  # of the trainer: where training ends


class RunHistory(Callback):
    """Keeps FOLDER/run_history.json, and gives checkpoints what there is to know of their run.

    A segment has `started`, `ended` (UTC), `first_step`, `last_step`, `end` ("running", "finished", or what ended it; a
    process that was killed leaves "running"), `world_size`, `num_nodes`, `device`, `instance_type` (SageMaker's),
    `log_dir` and `resume`, as it was asked for. `ended` and `last_step` are as of the last checkpoint while it runs.

    Args:
        folder: a folder or URL.
        config: of the run, as YAML, all defaults filled in.
        limits: where training was to end, such as max_steps; plain values.
    """

    def __init__(self, folder: str, config: str, limits: dict[str, Any]) -> None:
        self.folder = folder
        self.limits = limits
        self.resume = "auto"  # the option; "never": what lies in the folder is of another run
        self._made_by = {"versions": versions(), "config": config, "git_commit": git_commit()}
        self._has_begun = False
        self._segments: list[dict[str, Any]] = []  # rank 0's
        self._past: list[dict[str, Any]] = []  # from the checkpoint

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._past = checkpoint.get("run", {}).get("segments", [])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._segments and trainer.is_global_zero:
            self._write(trainer, self._segments[-1]["end"])
            checkpoint["run"] = self._made_by | {"segments": self._segments}

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._has_begun:
            self._begin(trainer)  # it was killed after its last step, and has only exported its model now
        self._write(trainer, "finished")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._write(trainer, type(exception).__name__)

    def _begin(self, trainer: Trainer) -> None:
        self._has_begun = True
        log_dir = str(output_folder(trainer))  # asks all ranks
        if not trainer.is_global_zero or trainer.fast_dev_run:
            return
        segment = _new_segment(trainer, log_dir) | {"resume": self.resume}
        if self.resume == "never":
            files.set_aside(files.join(self.folder, FILE))
            self.resume = "auto"  # where memory runs out, `recovery.fit` fits a second time
        self._segments = [*_united(self._past, read(self.folder)), segment]
        self._write(trainer, "running")

    def _write(self, trainer: Trainer, end: str) -> None:
        """The record must not end the run that it is about."""
        if not self._segments:
            return
        self._segments[-1] |= {"ended": _now(), "last_step": trainer.global_step, "end": end, "limits": self.limits}
        try:
            files.write_text(files.join(self.folder, FILE), json.dumps(self._segments, indent=1))
        except OSError as error:
            log.warning("%s could not be written to %s: %s", FILE, self.folder, error)


def read(folder: str) -> list[dict[str, Any]]:
    """The segments of the run in `folder`; none where there is no history, or one that cannot be read."""
    try:
        with fsspec.open(files.join(folder, FILE), "rt") as file:
            segments = json.load(file)
        if not isinstance(segments, list) or not all("started" in segment for segment in segments):
            raise ValueError("it is no list of segments")
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError) as error:
        log.warning("%s in %s cannot be read (%s): a new one is begun.", FILE, folder, error)
        return []
    return segments


def began_with(segments: Iterable[Mapping[str, Any]]) -> str:
    """The `resume` that what these segments have trained began with: the other starts have only gone on from there."""
    for segment in reversed(list(segments)):
        asked = segment.get("resume", "auto")
        if asked not in FROM_NEWEST or segment["first_step"] == 0:
            return asked
    return "auto"


def limits_of(trainer: Mapping[str, Any]) -> dict[str, str]:
    """LIMITS, as a run history has them, from the trainer's options."""
    return {name: str(trainer.get(name)) for name in LIMITS}


def finished(folder: str, limits: dict[str, Any]) -> dict[str, Any] | None:
    """The last segment of a run that has reached its end, and still would: `limits` are as they were."""
    last = next(reversed(read(folder)), {})
    return last if last.get("end") == "finished" and last.get("limits") == limits else None


def git_commit() -> str | None:
    """Of the checkout that this package runs from; None where it is installed. `git rev-parse` runs no hook."""
    checkout = Path(w2v_lightning.__file__).parents[1]
    if not (checkout / ".git").exists():
        return None
    command = ["git", "-C", str(checkout), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _united(*histories: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same segment is in several; the last one knows most of it."""
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
