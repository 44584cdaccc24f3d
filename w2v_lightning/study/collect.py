"""Collection of a run's files into a Run (run.json): the same for local runs and training jobs."""

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypedDict

from w2v_lightning.catalog.instances import instance
from w2v_lightning.catalog.prices import on_demand
from w2v_lightning.errors import InputError
from w2v_lightning.perf_model.run_schema import Throughput
from w2v_lightning.perf_model.runs import Run
from w2v_lightning.runtime.schema import Moment, check_content, read_json
from w2v_lightning.study.cells import Cell

FINISHED = "finished"
ROOT = "fit"  # in a run's folder: its trainer.default_root_dir, or the files fetched from a job
LOGS = "lightning_logs"  # in ROOT; a version_N for each start
HISTORY = "checkpoints"  # in ROOT: where run_history.json is


class _Segment(TypedDict):
    """Keys of a segment of run_history.json that a study needs."""

    started: Moment
    ended: Moment
    end: str


def local_run(
    cell: Cell, folder: Path, began: datetime, seconds: float, environment: dict[str, Any], outcome: str
) -> Run:
    """Return the Run of processes on this host.

    Args:
        cell: cell that ran.
        folder: its trainer.default_root_dir.
        began: time of the last start.
        seconds: wall-clock time since then.
        environment: description of this machine, without `versions`.
        outcome: see Run.
    """
    segments = read_segments(folder)
    before = [segment for segment in segments if _moment(segment["started"]) < began]
    first = min([began, *(_moment(segment["started"]) for segment in before)])
    throughput = read_throughput(folder)
    return Run(
        name=cell.run,
        cell=asdict(cell),
        where="local",
        date=iso_time(first),
        environment=environment | {"versions": throughput.get("versions", {})},
        throughput=throughput,
        wer=read_wer(folder, first),
        segments=segments,
        interruptions=sum(segment["end"] != "finished" for segment in segments[:-1]),
        training_s=seconds + sum(_seconds(segment) for segment in before),
        billable_s=None,
        price=None,
        outcome=outcome,
    )


def finished_at(folder: Path) -> datetime | None:
    """Return when the run with this trainer.default_root_dir has finished; None if it has not."""
    segments = read_segments(folder)
    is_finished = segments and segments[-1]["end"] == "finished"
    return _moment(segments[-1]["ended"]) if is_finished else None


def no_run(cell: Cell, where: str, outcome: str) -> Run:
    """Return the Run of a cell that never trained."""
    environment = {} if where == "local" else instance_environment(cell)
    return Run(
        name=cell.run,
        cell=asdict(cell),
        where=where,
        date=iso_time(datetime.now(UTC)),
        environment=environment | {"versions": {}},
        throughput={},
        wer=[],
        segments=[],
        interruptions=0,
        training_s=0.0,
        billable_s=None,
        price=None,
        outcome=outcome,
    )


def instance_environment(cell: Cell) -> dict[str, Any]:
    """Return the description of an instance by its type; the service does not say which CPU it has."""
    machine = instance(cell.hardware)
    return {"cpu": None, "cores": machine.vcpus, "gib": machine.gib, "instance_type": machine.name}


def price_of(instance_type: str, region: str) -> dict[str, Any] | None:
    """Return the on-demand price for run.json; None if it is not known."""
    try:
        price = on_demand(instance_type, region)
    except InputError:
        return None
    return {"usd_per_hour": price.usd_per_hour, "date": price.date, "source": price.source, "region": region}


# ---- files ----------------------------------------------------------------------------------------------------------


def versions(folder: Path) -> list[Path]:
    """Return the log folders of all starts, in order."""
    return sorted((folder / LOGS).glob("version_*"), key=lambda path: int(path.name.rpartition("_")[2]))


def read_throughput(folder: Path) -> dict[str, Any]:
    """Return throughput.json of the last start that has one (it covers the whole run), or an empty mapping."""
    paths = [path for version in versions(folder) if (path := version / "throughput.json").exists()]
    if not paths:
        return {}
    remedy = "remove it, or the run's folder."
    content = read_json(paths[-1], remedy)
    check_content(content, Throughput, paths[-1], remedy)
    return content


def read_segments(folder: Path) -> list[dict[str, Any]]:
    """Return the segments of the run history without paths of this machine, because runs are moved and shared."""
    from w2v_lightning.checkpoints import history  # imports Lightning

    segments = history.read(str(folder / HISTORY))
    check_content(segments, list[_Segment], folder / HISTORY / history.FILE, "remove it, or the run's folder.")
    return [{name: value for name, value in segment.items() if name != "log_dir"} for segment in segments]


def read_wer(folder: Path, began: datetime) -> list[dict[str, float]]:
    """Return the WER over all validation splits by step; for a step that ran twice, the last value counts."""
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    wer_by_step = {}
    for version in versions(folder):
        events = EventAccumulator(str(version), size_guidance={SCALARS: 0}).Reload()
        for event in events.Scalars("val_wer") if "val_wer" in events.Tags()["scalars"] else []:
            elapsed_s = max(0.0, event.wall_time - began.timestamp())  # the clocks of two machines may differ
            wer_by_step[event.step] = {"elapsed_s": round(elapsed_s, 1), "wer": event.value}
    return [{"step": step, **wer_by_step[step]} for step in sorted(wer_by_step)]


def _seconds(segment: dict[str, Any]) -> float:
    """Return the duration of a segment; a killed segment ends at its last checkpoint."""
    return (_moment(segment["ended"]) - _moment(segment["started"])).total_seconds()


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def iso_time(moment: datetime) -> str:
    """Return a moment in UTC as ISO 8601, to the second."""
    return moment.astimezone(UTC).isoformat(timespec="seconds")
