"""Which cell runs next, under the quota; and what was started, so that a command that is started again finds it.

A cell that has a run.json is done. What was started and is not done is in DIR/state.json, written before and after each
start: one that was cut short is looked for, and not made a second time.
"""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from w2v_lightning.errors import InputError
from w2v_lightning.perf_model import runs
from w2v_lightning.perf_model.runs import Run
from w2v_lightning.runtime.files import atomic_text_file
from w2v_lightning.study.collect import FINISHED
from w2v_lightning.study.matrix import Cell, Study

STATE = "state.json"
FORMAT = 1
FIRST_WAIT_S, LONGEST_WAIT_S = 300.0, 3600.0  # after a refusal; doubled each time
PATIENCE_S = 24 * 3600.0  # from the first refusal on
MOST_LOSSES = 3  # of what was started, while this command runs


class NoCapacityError(Exception):
    """Not now, perhaps later: what was started, if anything, has ended without training."""


class LostError(Exception):
    """What was started is not there any more, and may be started again: it goes on from its checkpoint."""


class Runner(Protocol):
    """Where cells run: local.py, sagemaker.py."""

    poll_s: float

    def obstacle(self, cell: Cell) -> str | None:
        """Why a cell cannot run there; None: it can. Raises InputError where something of it is wrong."""

    def verdict(self, cells: Sequence[Cell]) -> str:
        """After a dry run, for the user: what is known of them."""

    def plan(self, cell: Cell) -> dict[str, Any]:
        """What will be started, by a name under which it can be found; plain values."""

    def start(self, cell: Cell, folder: Path, handle: dict[str, Any]) -> dict[str, Any]:
        """Start it; returns the handle, perhaps with more in it. Raises NoCapacityError."""

    def poll(self, cell: Cell, folder: Path, handle: dict[str, Any]) -> Run | None:
        """The run if it has ended, also badly. Raises NoCapacityError or LostError."""

    def given_up(self, cell: Cell, folder: Path, outcome: str) -> Run:
        """With what there is of it."""


@dataclass
class Entry:
    """A cell that is not done. `handle`: of what was started; None: it waits."""

    cell: Cell
    handle: dict[str, Any] | None = None
    not_before: float = 0.0  # monotonic seconds, as all here: a command that is started again tries at once
    first_refusal: float | None = None
    refusals: int = 0
    losses: int = 0


@dataclass
class Queue:
    """The cells of a study that are not done.

    Args:
        folder: of the study.
        entries: in the order in which they start where all fit.
        quota: instances at once.
        config: fingerprint of the files that all cells train by.
        say: what happens, for the user.
    """

    folder: Path
    entries: list[Entry]
    quota: float
    config: str
    say: Callable[[str], None] = field(default=print)

    @property
    def running(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.handle is not None]

    def next(self, now: float) -> Entry | None:
        """The first one that waits, whose time has come, and that the quota has room for."""
        room = self.quota - sum(instances(entry.cell) for entry in self.running)
        waiting = (entry for entry in self.entries if entry.handle is None and entry.not_before <= now)
        return next((entry for entry in waiting if instances(entry.cell) <= room), None)

    def save(self) -> None:
        """DIR/state.json, whole or not at all."""
        kept = {entry.cell.run: {"cell": asdict(entry.cell), "handle": entry.handle} for entry in self.running}
        with atomic_text_file(self.folder / STATE) as file:
            json.dump({"format": FORMAT, "config": self.config, "cells": kept}, file, indent=1)


def instances(cell: Cell) -> int:
    """That a cell takes of the quota; here all cells run one by one, or they would slow each other down."""
    return 1 if cell.hardware == "local" else cell.count


def ordered(cells: tuple[Cell, ...]) -> list[Cell]:
    """By repetition, and the largest first: small ones fit beside them, and none waits long for room."""
    return sorted(cells, key=lambda cell: (cell.repetition, -instances(cell)))


def quota(study: Study) -> float:
    """Of `instances`."""
    return 1 if study.where == "local" else study.quota or float("inf")


def waves(study: Study, cells: list[Cell]) -> list[list[Cell]]:
    """Which cells would run side by side if all took the same time."""
    queue = Queue(Path(), [Entry(cell) for cell in cells], quota(study), "")
    found = []
    while queue.entries:
        while entry := queue.next(0.0):
            entry.handle = {}
        found.append([entry.cell for entry in queue.running])
        queue.entries = [entry for entry in queue.entries if entry.handle is None]
    return found


# ---- what there is already ------------------------------------------------------------------------------------------


def load(study: Study, folder: Path, retry_failed: bool = False) -> Queue:
    """What is left to do in a study's folder, which may be new.

    Args:
        study: whose cells may be some of those that the folder has.
        folder: of its runs.
        retry_failed: what did not finish, too; its run.json is removed.

    Raises:
        InputError: it has runs of other settings, or a file in it cannot be read.
    """
    state, config = _state(folder), _fingerprint(study.config)
    if state["config"] not in (None, config) and (state["cells"] or any(folder.glob(f"*/{runs.FILE}"))):
        raise InputError(
            f"{folder} has runs of another config than {', '.join(study.config)} is now: {_remedy(folder)}."
        )
    entries = []
    for cell in ordered(study.cells):
        kept = state["cells"].pop(cell.run, None)
        path = folder / cell.run / runs.FILE
        run = runs.read(path) if path.exists() else None
        if run:
            _check_same(path, run.cell, cell, _remedy(path.parent))
            kept = None  # killed after it was done, and before that was noted
        elif kept:
            _check_same(folder / STATE, kept["cell"], cell, "it has been started: put that back until it has ended")
        if not run or (retry_failed and run.outcome != FINISHED):
            path.unlink(missing_ok=True)
            entries.append(Entry(cell, kept and kept["handle"]))
    if started := [name for name in state["cells"] if not (folder / name / runs.FILE).exists()]:
        raise InputError(f"{folder}: {', '.join(started)} was started and is not in the study any more: put it back.")
    return Queue(folder, entries, quota(study), config)


def _state(folder: Path) -> dict[str, Any]:
    path = folder / STATE
    if not path.exists():
        return {"config": None, "cells": {}}
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        if state["format"] != FORMAT:
            raise ValueError(f"its format is {state['format']}, not {FORMAT}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} cannot be read ({error}). It says what was started: see `python -m w2v_lightning list` for"
            " jobs that run, stop them, and remove it."
        ) from None
    return state


def _check_same(path: Path, found: dict[str, Any], cell: Cell, remedy: str) -> None:
    asked = json.loads(json.dumps(asdict(cell)))
    if different := [key for key in asked if found.get(key) != asked[key]]:
        key = different[0]
        raise InputError(f"{path}: {cell.run} has {key} {found.get(key)!r}, the study {asked[key]!r} now: {remedy}.")


def _remedy(folder: Path) -> str:
    return f"give another folder (--to), or remove {folder}"


def _fingerprint(files: tuple[str, ...]) -> str:
    return hashlib.sha256(b"\0".join(Path(file).read_bytes() for file in files)).hexdigest()


# ---- carrying it out ------------------------------------------------------------------------------------------------


def carry_out(queue: Queue, runner: Runner, sleep: Callable[[float], None] = time.sleep) -> None:
    """Until every cell has its run.json."""
    queue.save()
    while queue.entries:
        while entry := queue.next(time.monotonic()):
            _start(queue, entry, runner)
        for entry in queue.running:
            _look_at(queue, entry, runner)
        if queue.entries and not queue.next(time.monotonic()):
            sleep(runner.poll_s)


def _start(queue: Queue, entry: Entry, runner: Runner) -> None:
    entry.handle = runner.plan(entry.cell)
    queue.save()
    try:
        entry.handle = runner.start(entry.cell, queue.folder / entry.cell.run, entry.handle)
    except NoCapacityError as refusal:
        _wait(queue, entry, runner, str(refusal))
    else:
        queue.say(f"{entry.cell.run}: started")
    queue.save()


def _look_at(queue: Queue, entry: Entry, runner: Runner) -> None:
    try:
        run = runner.poll(entry.cell, queue.folder / entry.cell.run, entry.handle)
    except NoCapacityError as refusal:
        _wait(queue, entry, runner, str(refusal))
    except LostError as loss:
        _start_again(queue, entry, runner, str(loss))
    else:
        if run is None:
            return
        _end(queue, entry, run)
    queue.save()


def _wait(queue: Queue, entry: Entry, runner: Runner, reason: str) -> None:
    """Try again later, each time after twice as long, or give up."""
    now = time.monotonic()
    entry.handle = None
    entry.first_refusal = entry.first_refusal or now
    wait_s = min(FIRST_WAIT_S * 2**entry.refusals, LONGEST_WAIT_S)
    entry.refusals += 1
    entry.not_before = now + wait_s
    if entry.not_before - entry.first_refusal > PATIENCE_S:
        _give_up(queue, entry, runner, f"given up after {PATIENCE_S / 3600:g} h: {reason}")
    else:
        queue.say(f"{entry.cell.run}: not now, again in {wait_s / 60:.0f} min: {reason}")


def _start_again(queue: Queue, entry: Entry, runner: Runner, reason: str) -> None:
    entry.handle = None
    entry.losses += 1
    if entry.losses > MOST_LOSSES:
        _give_up(queue, entry, runner, f"given up after {MOST_LOSSES} restarts: {reason}")
    else:
        queue.say(f"{entry.cell.run}: to be started again: {reason}")


def _end(queue: Queue, entry: Entry, run: Run) -> None:
    runs.write(run, queue.folder / entry.cell.run)
    queue.entries.remove(entry)
    queue.say(f"{entry.cell.run}: {run.outcome}")


def _give_up(queue: Queue, entry: Entry, runner: Runner, outcome: str) -> None:
    _end(queue, entry, runner.given_up(entry.cell, queue.folder / entry.cell.run, outcome))
