"""Display of a training job on the terminal."""

from datetime import UTC, datetime

from rich.console import Console
from rich.table import Table
from rich.text import Text

from w2v_lightning.catalog.cost import saving
from w2v_lightning.reporting.units import duration
from w2v_lightning.sagemaker.advice import advice
from w2v_lightning.sagemaker.training_job import TrainingJob

COLOURS = {"Completed": "green", "Failed": "red", "Stopped": "yellow"}


def show(job: TrainingJob, console: Console) -> None:
    """Print a job's state, times, transitions, why it failed, and what to do next."""
    rows = Table(box=None, show_header=False, pad_edge=False)
    rows.add_column(no_wrap=True)
    rows.add_column(overflow="fold")
    for name, value in _facts(job).items():
        if value:
            rows.add_row(name, value)
    console.print(rows)
    if job.transitions:
        console.print()
        console.print(_transitions(job))
    if next_step := advice(job):
        console.print()
        console.print(Text(next_step), soft_wrap=True)


def coloured_status(job: TrainingJob) -> Text:
    """Return the status, such as "Completed" or "InProgress: Interrupted"."""
    detail = "" if job.secondary_status == job.status else f": {job.secondary_status}"
    return Text(job.status + detail, style=COLOURS.get(job.status, ""))


def instances(job: TrainingJob) -> str:
    """Return number and type of the instances, such as "2 x ml.g5.xlarge, spot"."""
    return f"{job.count} x {job.instance_type}{', spot' if job.is_spot else ''}"


def local_time(moment: datetime) -> str:
    """Return date and time in the user's time zone."""
    return f"{moment.astimezone():%Y-%m-%d %H:%M}"


def _facts(job: TrainingJob) -> dict[str, str | Text]:
    return {
        "job": job.name,
        "status": coloured_status(job),
        "reason": Text(job.failure_reason),
        "instances": f"{instances(job)}, {job.region}",
        "created": local_time(job.created),
        "trained": _times(job),
        "interruptions": str(job.interruptions) if job.is_spot else "",
        **{name: f"{value:g}" for name, value in job.metrics.items()},
        "checkpoints": job.checkpoints,
        "output": job.output,
    }


def _times(job: TrainingJob) -> str:
    if job.training_s is None or job.billable_s is None:
        return ""
    saved = f" (saving {saving(job.training_s, job.billable_s):.0%})" if job.is_spot else ""
    return f"{duration(job.training_s)}, billable {duration(job.billable_s)}{saved}"


def _transitions(job: TrainingJob) -> Table:
    table = Table("began", "took", "status", "message", box=None, pad_edge=False)
    for transition in job.transitions:
        began = transition["StartTime"]
        took = (transition.get("EndTime") or datetime.now(UTC)) - began
        message = Text(transition.get("StatusMessage", ""))
        table.add_row(local_time(began), duration(took.total_seconds()), transition["Status"], message)
    return table
