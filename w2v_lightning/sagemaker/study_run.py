"""Command `study run`: run every cell of a study, on this host or on SageMaker."""

import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from w2v_lightning.command_line import Parser, parse, parser_of
from w2v_lightning.errors import InputError
from w2v_lightning.perf_model import runs
from w2v_lightning.sagemaker.aws_errors import explain_aws_errors
from w2v_lightning.study import queue
from w2v_lightning.study.cells import Cell, Study, Where
from w2v_lightning.study.collect import FINISHED
from w2v_lightning.study.spec import load

LOCK = ".lock"


@dataclass(frozen=True)
class RunOptions:
    """Run every cell of a study that has not been run.

    Args:
        study: YAML file of the study; docs/study.md lists its keys.
        where: place to run the cells; default: sagemaker if the cells have an instance_type, otherwise local.
        to: folder of the study's runs; default: runs/NAME.
        retry_failed: repetition of the cells that did not finish.
        dry_run: check of all cells and list of their order, without running any.
    """

    study: Path
    where: Where | None = None
    to: Path | None = None
    retry_failed: bool = False
    dry_run: bool = False


@explain_aws_errors()
def main(args: Sequence[str]) -> int:
    """Run a study; return the exit status, which is 1 if a cell has not finished."""
    options = parse(RunOptions, "study run", args, positional=["study"])
    study = load(options.study, options.where)
    folder = (options.to or Path("runs", study.name)).resolve()
    with _runner(study, options.dry_run) as runner:
        study = _possible(study, runner)
        if options.dry_run:
            return _show(study, runner)
        with _only_one(folder), _stopped_by_signals():
            _carry_out(study, folder, runner, options.retry_failed)
    return _summary(study, folder)


def parser() -> Parser:
    """Return the parser of the options."""
    return parser_of(RunOptions, "study run", positional=["study"])


@contextmanager
def _runner(study: Study, is_dry_run: bool) -> Iterator[queue.Runner]:
    # Imported here, because one runner imports torch and the other the SageMaker SDK.
    if study.where == "local":
        from w2v_lightning.study.local import Local

        with Local(study) as runner:
            yield runner
    else:
        from w2v_lightning.sagemaker.study_runner import SageMaker

        yield SageMaker(study, is_dry_run)


def _possible(study: Study, runner: queue.Runner) -> Study:
    """Return the study without the cells that cannot run there; print why."""
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
    pending = queue.load(study, folder, retry_failed)
    pending.say = lambda text: print(f"{datetime.now():%H:%M:%S}  {text}", flush=True)
    print(f"Running {len(pending.entries)} of {len(study.cells)} runs, in {folder}", flush=True)
    queue.carry_out(pending, runner)


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which the operating system releases if the process is killed."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / LOCK, timeout=0):
            yield
    except Timeout:
        raise InputError(
            f"{folder} is in use by another `study run`: wait for it to end, or give another --to."
        ) from None


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """End on Ctrl-C or SIGTERM: processes of this host save a checkpoint and end, training jobs continue."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        print("Stopped. Run the same command to continue; training jobs have not been stopped.", file=sys.stderr)
        raise SystemExit(130) from None
    finally:
        signal.signal(signal.SIGTERM, before)


# ---- output ---------------------------------------------------------------------------------------------------------


def _show(study: Study, runner: queue.Runner) -> int:
    """Print the cells in the order in which they would start, and the result of their checks."""
    waves = queue.waves(study, queue.ordered(study.cells))
    quota = f", at most {study.quota} instances at once" if study.quota else ""
    print(
        f"{study.name}: {len(study.cells)} runs{quota}, in this order; each number is a group of runs that are"
        " concurrent if all take equally long:"
    )
    for number, wave in enumerate(waves, start=1):
        print(f"{number:>4}  " + "\n      ".join(_line(cell) for cell in wave))
    print(runner.verdict(study.cells))
    return 0


def _line(cell: Cell) -> str:
    machines = f"{cell.count} x {cell.hardware}" if cell.hardware != "local" else f"{cell.count} host"
    return f"{cell.run}: {machines}, {cell.devices_per_host} device(s) each, precision {cell.precision}"


def _summary(study: Study, folder: Path) -> int:
    """Print the outcome of each run; return the exit status, which is 0 if all have finished."""
    results = [runs.read(folder / cell.run) for cell in study.cells]
    for run in results:
        speed = f", {run.audio_s_per_s:.0f} audio-s/s" if run.is_measured else ""
        print(f"{run.name}: {run.outcome}{speed}")
    print(f"python -m w2v_lightning study report {folder}")
    return 0 if all(run.outcome == FINISHED for run in results) else 1
