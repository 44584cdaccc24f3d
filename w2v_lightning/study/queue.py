"""Queue of the cells of a study: which cell starts next under the quota, and a record of what was started.

A cell that has a run.json is done. DIR/state.json lists what was started and is not done. It is written before and
after each start, so that a command that was interrupted finds its runs and does not start them twice.
"""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, NotRequired, Protocol, TypedDict

from w2v_lightning.errors import InputError
from w2v_lightning.perf_model import runs
from w2v_lightning.perf_model.runs import Run
from w2v_lightning.runtime.files import atomic_text_file
from w2v_lightning.runtime.schema import Mismatch, Moment, Rule, check, check_content, read_json
from w2v_lightning.study.cells import Cell, Study
from w2v_lightning.study.collect import FINISHED

STATE = "state.json"
FORMAT = 1
STATE_REMEDY = (
    "it lists the runs that were started: find running jobs with `python -m w2v_lightning list`, stop them, and remove"
    " the file."
)
FIRST_WAIT_S, LONGEST_WAIT_S = 300.0, 3600.0  # after a refusal; doubled after each further one
PATIENCE_S = 24 * 3600.0  # from the first refusal until the cell is given up
MAX_LOSSES = 3  # restarts of a cell by one command


class NoCapacityError(Exception):
    """No capacity now, perhaps later; anything that was started has ended without training."""


class LostError(Exception):
    """A started run has disappeared; it may be started again, and resumes from its checkpoint."""


class Runner(Protocol):
    """Place where cells run: study/local.py or sagemaker/study_runner.py."""

    poll_s: float

    def obstacle(self, cell: Cell) -> str | None:
        """Return why a cell cannot run there, or None if it can. Raises InputError if the cell is invalid."""

    def verdict(self, cells: Sequence[Cell]) -> str:
        """Return what a dry run has found out about the cells, as a sentence for the user."""

    def plan(self, cell: Cell) -> dict[str, Any]:
        """Return a handle (plain values) by which the run can be found once it is started."""

    def start(self, cell: Cell, folder: Path, handle: dict[str, Any]) -> dict[str, Any]:
        """Start the cell; return the handle, possibly extended. Raises NoCapacityError."""

    def poll(self, cell: Cell, folder: Path, handle: dict[str, Any]) -> Run | None:
        """Return the run once it has ended or failed, else None. Raises NoCapacityError or LostError."""

    def given_up(self, cell: Cell, folder: Path, outcome: str) -> Run:
        """Build a Run from whatever an abandoned cell has left."""


@dataclass
class Entry:
    """Cell that is not done. `handle` names its run; None: it waits to be started."""

    cell: Cell
    handle: dict[str, Any] | None = None
    not_before: float = 0.0  # monotonic seconds, like all times here: a restarted command tries at once
    first_refusal: float | None = None
    refusals: int = 0
    losses: int = 0


@dataclass
class Queue:
    """Cells of a study that are not done.

    Args:
        folder: folder of the study.
        entries: cells in the order in which they start if the quota has room for all.
        quota: number of instances at once.
        config: fingerprint of the config files that all cells share.
        say: function that reports progress to the user.
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
        """Return the first waiting entry whose time has come and for which the quota has room."""
        room = self.quota - sum(instances(entry.cell) for entry in self.running)
        waiting = (entry for entry in self.entries if entry.handle is None and entry.not_before <= now)
        return next((entry for entry in waiting if instances(entry.cell) <= room), None)

    def save(self) -> None:
        """Write DIR/state.json, completely or not at all."""
        kept = {entry.cell.run: {"cell": asdict(entry.cell), "handle": entry.handle} for entry in self.running}
        with atomic_text_file(self.folder / STATE) as file:
            json.dump({"format": FORMAT, "config": self.config, "cells": kept}, file, indent=1)


def instances(cell: Cell) -> int:
    """Return the share of the quota that a cell takes. Local cells run one by one, not to slow each other."""
    return 1 if cell.hardware == "local" else cell.count


def ordered(cells: tuple[Cell, ...]) -> list[Cell]:
    """Return the cells by repetition, the largest first: smaller ones fit beside them, and no cell waits long."""
    return sorted(cells, key=lambda cell: (cell.repetition, -instances(cell)))


def quota(study: Study) -> float:
    """Return the number of `instances` that may run at once."""
    return 1 if study.where == "local" else study.quota or float("inf")


def waves(study: Study, cells: list[Cell]) -> list[list[Cell]]:
    """Return which cells would run side by side if all took the same time."""
    queue = Queue(Path(), [Entry(cell) for cell in cells], quota(study), "")
    waves = []
    while queue.entries:
        while entry := queue.next(0.0):
            entry.handle = {}
        waves.append([entry.cell for entry in queue.running])
        queue.entries = [entry for entry in queue.entries if entry.handle is None]
    return waves


# ---- restart ------------------------------------------------------------------------------------------


def load(study: Study, folder: Path, retry_failed: bool = False) -> Queue:
    """Return the queue of cells that a study's folder, which may be new, does not have yet.

    Args:
        study: study; its cells may be a part of those that the folder has.
        folder: folder of its runs.
        retry_failed: queue cells again that did not finish; their run.json is removed.

    Raises:
        InputError: the folder has runs with other settings, or a file in it cannot be read.
    """
    state, config = _state(folder), _fingerprint(study.config)
    for name, started in state["cells"].items():
        if started["handle"] is not None:
            handle_type = LocalHandle if study.where == "local" else SageMakerHandle
            check_content(started["handle"], handle_type, f"{folder / STATE}: {name}", STATE_REMEDY)
    if state["config"] not in (None, config) and (state["cells"] or any(folder.glob(f"*/{runs.FILE}"))):
        raise InputError(f"{folder} has runs of another version of {', '.join(study.config)}: {_remedy(folder)}.")
    entries = []
    for cell in ordered(study.cells):
        kept = state["cells"].pop(cell.run, None)
        path = folder / cell.run / runs.FILE
        run = runs.read(path) if path.exists() else None
        if run:
            _check_same(path, run.cell, cell, _remedy(path.parent))
            kept = None  # the command was killed after the run was done and before state.json was updated
        elif kept:
            _check_same(folder / STATE, kept["cell"], cell, "it is running: restore the setting until it has ended")
        if not run or (retry_failed and run.outcome != FINISHED):
            path.unlink(missing_ok=True)
            entries.append(Entry(cell, kept and kept["handle"]))
    if started := [name for name in state["cells"] if not (folder / name / runs.FILE).exists()]:
        raise InputError(f"{folder}: {', '.join(started)} was started and is no longer in the study: add it again.")
    return Queue(folder, entries, quota(study), config)


class LocalHandle(TypedDict):
    """Handle of study/local.py."""

    began: Moment


class SageMakerHandle(TypedDict):
    """Handle of sagemaker/study_runner.py; it has no job until that was submitted."""

    run: str
    region: str
    job: NotRequired[str | None]


class _Started(TypedDict):
    """Cell that was started."""

    cell: dict[str, Any]
    handle: dict[str, Any] | None


class State(TypedDict):
    """Content of state.json."""

    format: Annotated[int, Rule(f"{FORMAT}", lambda number: number == FORMAT)]
    config: str | None
    cells: dict[str, _Started]


def _state(folder: Path) -> dict[str, Any]:
    path = folder / STATE
    if not path.exists():
        return {"config": None, "cells": {}}
    state: dict[str, Any] = read_json(path, STATE_REMEDY)
    try:
        check(state, State)
    except Mismatch as error:
        raise InputError(f"{path} cannot be read ({error}); {STATE_REMEDY}") from None
    return state


def _check_same(path: Path, recorded: dict[str, Any], cell: Cell, remedy: str) -> None:
    current = json.loads(json.dumps(asdict(cell)))
    if different := [key for key in current if recorded.get(key) != current[key]]:
        key = different[0]
        raise InputError(
            f"{path}: {cell.run} has {key} {recorded.get(key)!r}, but the study now has {current[key]!r}: {remedy}."
        )


def _remedy(folder: Path) -> str:
    return f"give another folder (--to), or remove {folder}"


def _fingerprint(files: tuple[str, ...]) -> str:
    return hashlib.sha256(b"\0".join(Path(file).read_bytes() for file in files)).hexdigest()


# ---- execution ------------------------------------------------------------------------------------------------


def carry_out(queue: Queue, runner: Runner, sleep: Callable[[float], None] = time.sleep) -> None:
    """Run cells until each has its run.json."""
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
    assert entry.handle is not None  # only running entries are looked at
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
    """Schedule another attempt, after twice the time of the one before, or give up."""
    now = time.monotonic()
    entry.handle = None
    entry.first_refusal = entry.first_refusal or now
    wait_s = min(FIRST_WAIT_S * 2**entry.refusals, LONGEST_WAIT_S)
    entry.refusals += 1
    entry.not_before = now + wait_s
    if entry.not_before - entry.first_refusal > PATIENCE_S:
        _give_up(queue, entry, runner, f"given up after {PATIENCE_S / 3600:g} h: {reason}")
    else:
        queue.say(f"{entry.cell.run}: no capacity, next attempt in {wait_s / 60:.0f} min: {reason}")


def _start_again(queue: Queue, entry: Entry, runner: Runner, reason: str) -> None:
    entry.handle = None
    entry.losses += 1
    if entry.losses > MAX_LOSSES:
        _give_up(queue, entry, runner, f"given up after {MAX_LOSSES} restarts: {reason}")
    else:
        queue.say(f"{entry.cell.run}: will be restarted: {reason}")


def _end(queue: Queue, entry: Entry, run: Run) -> None:
    runs.write(run, queue.folder / entry.cell.run)
    queue.entries.remove(entry)
    queue.say(f"{entry.cell.run}: {run.outcome}")


def _give_up(queue: Queue, entry: Entry, runner: Runner, outcome: str) -> None:
    _end(queue, entry, runner.given_up(entry.cell, queue.folder / entry.cell.run, outcome))
