"""What a run has left in its folder, as its run.json: the same files, whether it ran here or as a training job."""

import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from w2v_lightning.catalog.instances import instance
from w2v_lightning.catalog.prices import on_demand
from w2v_lightning.errors import InputError
from w2v_lightning.perf_model.runs import Run
from w2v_lightning.study.matrix import Cell

FINISHED = "finished"
ROOT = "fit"  # in a run's folder: its trainer.default_root_dir, or what was fetched of a job's
LOGS = "lightning_logs"  # in ROOT; a version_N for each start
HISTORY = "checkpoints"  # in ROOT: where run_history.json is


def local_run(
    cell: Cell, folder: Path, began: datetime, seconds: float, environment: dict[str, Any], outcome: str
) -> Run:
    """Of processes of this host.

    Args:
        cell: what ran.
        folder: its trainer.default_root_dir.
        began: when the last start was.
        seconds: wall-clock time since then.
        environment: of this machine, but for `versions`.
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
    """When the run of which this is trainer.default_root_dir has reached its end; None: it has not."""
    segments = read_segments(folder)
    is_finished = segments and segments[-1]["end"] == "finished"
    return _moment(segments[-1]["ended"]) if is_finished else None


def no_run(cell: Cell, where: str, outcome: str) -> Run:
    """Of a cell that was never trained."""
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
    """Of one instance, by its type; the service does not say which CPU it has."""
    machine = instance(cell.hardware)
    return {"cpu": None, "cores": machine.vcpus, "gib": machine.gib, "instance_type": machine.name}


def price_of(instance_type: str, region: str) -> dict[str, Any] | None:
    try:
        price = on_demand(instance_type, region)
    except InputError:
        return None
    return {"usd_per_hour": price.usd_per_hour, "date": price.date, "source": price.source, "region": region}


# ---- files ----------------------------------------------------------------------------------------------------------


def versions(folder: Path) -> list[Path]:
    """The logs of each start, in order."""
    found = (folder / LOGS).glob("version_*")
    return sorted(found, key=lambda path: int(path.name.rpartition("_")[2]))


def read_throughput(folder: Path) -> dict[str, Any]:
    """Of the last start that has one: it has the whole run in it. Empty where none has got so far."""
    paths = [path for version in versions(folder) if (path := version / "throughput.json").exists()]
    if not paths:
        return {}
    try:
        return json.loads(paths[-1].read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{paths[-1]} cannot be read ({error}); remove it, or the run's folder.") from None


def read_segments(folder: Path) -> list[dict[str, Any]]:
    """But for the paths of the machine: runs are moved and shared."""
    from w2v_lightning.checkpoints import history  # imports Lightning

    segments = history.read(str(folder / HISTORY))
    return [{name: value for name, value in segment.items() if name != "log_dir"} for segment in segments]


def read_wer(folder: Path, began: datetime) -> list[dict[str, float]]:
    """Of all validation splits together. A step that was done twice counts as it was done last."""
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    found = {}
    for version in versions(folder):
        events = EventAccumulator(str(version), size_guidance={SCALARS: 0}).Reload()
        for event in events.Scalars("val_wer") if "val_wer" in events.Tags()["scalars"] else []:
            found[event.step] = {"elapsed_s": round(event.wall_time - began.timestamp(), 1), "wer": event.value}
    return [{"step": step, **found[step]} for step in sorted(found)]


def _seconds(segment: dict[str, Any]) -> float:
    """Of one that was killed, up to its last checkpoint."""
    return (_moment(segment["ended"]) - _moment(segment["started"])).total_seconds()


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def iso_time(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds")
