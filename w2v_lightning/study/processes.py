"""Processes of a run: started together, ended together, and found again where the command that started them is gone.

Each has the run's folder in its environment, and so has whatever it starts, in whichever session or process group:
torchrun's processes are not in its own.
"""

import os
import re
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

MARK = "W2V_LIGHTNING_STUDY_RUN"
LOG = "log-{}.txt"
POLL_S = 0.1
ERROR = re.compile(r"^(?:error: |[\w.]*(?:Error|Exception|Interrupt)\b)")


def start(commands: Sequence[Sequence[str]], folder: Path, variables: Mapping[str, str]) -> list[subprocess.Popen]:
    """A process for each command, which logs to FOLDER/log-N.txt, also where it runs before."""
    environment = {**os.environ, **variables, MARK: str(folder.resolve())}
    settings = {"stdin": subprocess.DEVNULL, "stderr": subprocess.STDOUT, "env": environment, "start_new_session": True}
    processes: list[subprocess.Popen] = []
    try:
        for number, command in enumerate(commands):
            with (folder / LOG.format(number)).open("ab") as log:
                processes.append(subprocess.Popen(command, stdout=log, **settings))  # noqa: S603 (ourselves)
    except BaseException:
        kill(folder, processes)
        raise
    return processes


def end(folder: Path, processes: Sequence[subprocess.Popen], save_s: float) -> None:
    """By SIGTERM, which leaves them `save_s` to save a checkpoint; what is left then is killed."""
    give_up_at = time.monotonic() + save_s
    _signal(folder, processes, signal.SIGTERM)
    while _living(folder, processes) and time.monotonic() < give_up_at:
        time.sleep(POLL_S)
    kill(folder, processes)


def kill(folder: Path, processes: Sequence[subprocess.Popen] = ()) -> None:
    """All processes of a run, also those that an earlier command has left; returns when they are gone."""
    while _living(folder, processes):  # one that is being started may be missed at first
        _signal(folder, processes, signal.SIGKILL)
        time.sleep(POLL_S)


def last_words(folder: Path) -> str:
    """Why a run has failed, as far as its logs say: the last line that names an error, or else the last one."""
    lines = [
        line.strip()
        for log in sorted(folder.glob(LOG.format("*")))
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines()
        if line.strip()
    ]
    errors = [line for line in lines if ERROR.match(line)]
    return (errors or lines or ["it has printed nothing"])[-1].removeprefix("error: ")


def _signal(folder: Path, processes: Sequence[subprocess.Popen], number: int) -> None:
    for pid in _living(folder, processes):
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _living(folder: Path, processes: Sequence[subprocess.Popen]) -> set[int]:
    """By their mark, where there is /proc; elsewhere those that this command has started itself."""
    mark = f"{MARK}={folder.resolve()}\0".encode()
    found = {process.pid for process in processes if process.poll() is None}
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # it has just ended, or is another user's
            if mark in path.read_bytes():
                found.add(int(path.parent.name))
    return found
