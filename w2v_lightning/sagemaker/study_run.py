"""The command `study run`: every cell of a study, here or on SageMaker."""

import argparse
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from w2v_lightning.errors import InputError
from w2v_lightning.perf_model import runs
from w2v_lightning.study import queue
from w2v_lightning.study.collect import FINISHED
from w2v_lightning.study.matrix import Cell, Study, load

LOCK = ".lock"


def add_parser(actions: Any) -> None:
    """`run`."""
    parser = actions.add_parser("run", help="run every cell of a study that has not been run")
    parser.add_argument("study", type=Path, metavar="STUDY.yaml", help="what to run; docs/study.md has the keys")
    parser.add_argument("--where", choices=("local", "sagemaker"), help="default: as the study says")
    parser.add_argument("--to", type=Path, metavar="DIR", help="folder of the study's runs; default: runs/NAME")
    parser.add_argument("--retry-failed", action="store_true", help="run those cells again that did not finish")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the cells in their order, and check all; run none"
    )
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    study = load(options.study, options.where)
    folder = (options.to or Path("runs", study.name)).resolve()
    with _runner(study) as runner:
        study = _possible(study, runner)
        if options.dry_run:
            return _show(study, runner)
        with _only_one(folder), _stopped_by_signals():
            _carry_out(study, folder, runner, options.retry_failed)
    return _summary(study, folder)


@contextmanager
def _runner(study: Study) -> Iterator[queue.Runner]:
    """The modules are imported where they are wanted: one imports torch, the other the SDK."""
    if study.where == "local":
        from w2v_lightning.study.local import Local

        with Local(study) as runner:
            yield runner
    else:
        from w2v_lightning.sagemaker.study_runner import SageMaker

        yield SageMaker(study)


def _possible(study: Study, runner: queue.Runner) -> Study:
    """Without the cells that cannot run there, which are named."""
    cells = []
    for cell in study.cells:
        obstacle = runner.obstacle(cell)
        if obstacle is None:
            cells.append(cell)
        elif cell.repetition == 1:
            print(f"left out: {cell.name}: {obstacle}", file=sys.stderr)
    if not cells:
        raise InputError("None of the study's cells can run here; see the reasons above.")
    return replace(study, cells=tuple(cells))


def _carry_out(study: Study, folder: Path, runner: queue.Runner, retry_failed: bool) -> None:
    left = queue.load(study, folder, retry_failed)
    left.say = lambda text: print(f"{datetime.now():%H:%M:%S}  {text}", flush=True)
    print(f"{len(left.entries)} of {len(study.cells)} runs are to be made, in {folder}", flush=True)
    queue.carry_out(left, runner)


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """The lock is the process's, so a command that was killed leaves none."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / LOCK, timeout=0):
            yield
    except Timeout:
        raise InputError(
            f"{folder}: another `study run` is at work there; wait for it, or give another --to."
        ) from None


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Ctrl-C and SIGTERM: processes of this host save a checkpoint and end, jobs go on."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        print("Stopped. The same command goes on from here; training jobs have not been stopped.", file=sys.stderr)
        raise SystemExit(130) from None
    finally:
        signal.signal(signal.SIGTERM, before)


# ---- what is printed ------------------------------------------------------------------------------------------------


def _show(study: Study, runner: queue.Runner) -> int:
    """The cells as they would start, and what is known of them."""
    waves = queue.waves(study, queue.ordered(study.cells))
    quota = f", at most {study.quota} instances at once" if study.quota else ""
    print(f"{study.name}: {len(study.cells)} runs{quota}, in this order; side by side if all took the same time:")
    for number, wave in enumerate(waves, start=1):
        print(f"{number:>4}  " + "\n      ".join(_line(cell) for cell in wave))
    print(runner.verdict(study.cells))
    return 0


def _line(cell: Cell) -> str:
    machines = f"{cell.count} x {cell.hardware}" if cell.hardware != "local" else f"{cell.count} host"
    return f"{cell.run}: {machines}, {cell.devices_per_host} device(s) each, precision {cell.precision}"


def _summary(study: Study, folder: Path) -> int:
    """What became of each run; the exit status is 0 where all have finished."""
    found = [runs.read(folder / cell.run) for cell in study.cells]
    for run in found:
        speed = f", {run.audio_s_per_s:.0f} audio-s/s" if run.is_measured else ""
        print(f"{run.name}: {run.outcome}{speed}")
    print(f"python -m w2v_lightning study report {folder}")
    return 0 if all(run.outcome == FINISHED for run in found) else 1
