"""Processes of a run: started together, ended together, and found again after the command that started them has died.

Each process has the run's folder in its environment, and so do its children in any session or process group: torchrun's
workers are in groups of their own.
"""

import os
import re
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

MARK = "W2V_LIGHTNING_STUDY_RUN"
LOG = "log-{}.txt"
POLL_S = 0.1
ERROR = re.compile(r"^(?:error: |[\w.]*(?:Error|Exception|Interrupt)\b)")


def start(commands: Sequence[Sequence[str]], folder: Path, variables: Mapping[str, str]) -> list[subprocess.Popen]:
    """Start a process for each command; its output is appended to FOLDER/log-N.txt."""
    environment = {**os.environ, **variables, MARK: str(folder.resolve())}
    settings: dict[str, Any] = {
        "stdin": subprocess.DEVNULL,
        "stderr": subprocess.STDOUT,
        "env": environment,
        "start_new_session": True,
    }
    processes: list[subprocess.Popen] = []
    try:
        for number, command in enumerate(commands):
            with (folder / LOG.format(number)).open("ab") as log:
                processes.append(subprocess.Popen(command, stdout=log, **settings))  # noqa: S603  (the commands are our own)
    except BaseException:
        kill(folder, processes)
        raise
    return processes


def end(folder: Path, processes: Sequence[subprocess.Popen], save_s: float) -> None:
    """End the processes: SIGTERM, up to `save_s` seconds to save a checkpoint, then SIGKILL."""
    give_up_at = time.monotonic() + save_s
    _signal(folder, processes, signal.SIGTERM)
    while _living(folder, processes) and time.monotonic() < give_up_at:
        time.sleep(POLL_S)
    kill(folder, processes)


def kill(folder: Path, processes: Sequence[subprocess.Popen] = ()) -> None:
    """Kill all processes of a run, including those of an earlier command; returns when they are gone."""
    while _living(folder, processes):  # a process that is just starting may be missed at first
        _signal(folder, processes, signal.SIGKILL)
        time.sleep(POLL_S)


def last_words(folder: Path) -> str:
    """Return why a run has failed, according to its logs: the last line that names an error, or else the last line."""
    lines = [
        line.strip()
        for log in sorted(folder.glob(LOG.format("*")))
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines()
        if line.strip()
    ]
    errors = [line for line in lines if ERROR.match(line)]
    return (errors or lines or ["the run has printed nothing"])[-1].removeprefix("error: ")


def _signal(folder: Path, processes: Sequence[subprocess.Popen], number: int) -> None:
    for pid in _living(folder, processes):
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _living(folder: Path, processes: Sequence[subprocess.Popen]) -> set[int]:
    """Return the PIDs of a run's processes: by their mark, or without /proc those that this command has started."""
    mark = f"{MARK}={folder.resolve()}\0".encode()
    pids = {process.pid for process in processes if process.poll() is None}
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # the process has just ended, or belongs to another user
            if mark in path.read_bytes():
                pids.add(int(path.parent.name))
    return pids
