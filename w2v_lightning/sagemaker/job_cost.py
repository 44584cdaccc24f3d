"""Command `cost`: time and cost of one job, or of all jobs with some tags."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from w2v_lightning.catalog.cost import saving, storage_usd, training_usd
from w2v_lightning.catalog.dated import Price
from w2v_lightning.catalog.prices import on_demand
from w2v_lightning.command_line import Parser, parse, parser_of
from w2v_lightning.errors import InputError
from w2v_lightning.reporting.units import duration
from w2v_lightning.sagemaker import aws_session
from w2v_lightning.sagemaker.aws_errors import explain_aws_errors
from w2v_lightning.sagemaker.job_display import instances
from w2v_lightning.sagemaker.training_job import TrainingJob, describe, parse_tags, search

COLUMNS = ("job", "instances", "status", "trained", "billable", "saving", "interruptions", "USD")


@dataclass(frozen=True)
class CostOptions:
    """Show training time, billable time, saving, interruptions and dollars of jobs.

    Args:
        name: name of a job, or of a run (its newest job); required unless tag is given.
        tag: tag KEY=VALUE of the jobs to add up, such as run=base-100h; may be repeated.
        usd_per_gb_month: price of disks in USD, for instance types without disks of their own.
        region: AWS region; default: AWS_REGION or that of the AWS profile.
    """

    name: str | None = None
    tag: list[str] = field(default_factory=list)
    usd_per_gb_month: float = 0.0
    region: str | None = None

    def __post_init__(self) -> None:
        if bool(self.name) == bool(self.tag):
            raise InputError("cost: give either NAME, a job or a run, or --tag KEY=VALUE.")


@explain_aws_errors()
def main(args: Sequence[str]) -> int:
    """Print a table of jobs with their cost, and the prices; return the exit status."""
    options = parse(CostOptions, "cost", args, positional=["name"])
    sagemaker = aws_session.boto_session(options.region).client("sagemaker")
    jobs = _jobs(sagemaker, options)
    prices, missing = _prices(jobs)
    dollars = [usd(job, prices.get(_kind(job)), options.usd_per_gb_month) for job in jobs]
    console = Console()
    console.print(_table(jobs, dollars))
    console.print()
    for (instance_type, region), price in prices.items():
        console.print(Text(f"{instance_type} in {region}: {price.described()}."), soft_wrap=True)
    disks = "" if options.usd_per_gb_month else "disks (--usd_per_gb_month; most GPU instances include their own), "
    console.print(Text(f"Not counted: {disks}storage and requests of S3, logs."), soft_wrap=True)
    if missing:
        raise InputError(" ".join(missing))
    return 0


def parser() -> Parser:
    """Return the parser of the options."""
    return parser_of(CostOptions, "cost", positional=["name"])


def usd(job: TrainingJob, price: Price | None, usd_per_gb_month: float = 0.0) -> float | None:
    """Return the cost of a job in USD; None without a price, or before the service reports the job's seconds."""
    if price is None or job.training_s is None or job.billable_s is None:
        return None
    disks = storage_usd(job.training_s, job.count, job.volume_gb, usd_per_gb_month)
    return training_usd(job.billable_s, job.count, price.usd_per_hour) + disks


def _jobs(sagemaker: Any, options: CostOptions) -> list[TrainingJob]:
    if options.name:
        return [describe(sagemaker, options.name)]
    tags = parse_tags(options.tag)
    jobs = list(search(sagemaker, tags))
    if not jobs:
        raise InputError(f"--tag: no jobs with the tags {tags} in {sagemaker.meta.region_name}; see `list`.")
    return jobs


def _kind(job: TrainingJob) -> tuple[str, str]:
    return job.instance_type, job.region


def _prices(jobs: list[TrainingJob]) -> tuple[dict[tuple[str, str], Price], list[str]]:
    """Return prices by instance type and region, and a message about each that is missing."""
    prices: dict[tuple[str, str], Price] = {}
    missing = []
    for kind in dict.fromkeys(map(_kind, jobs)):
        try:
            prices[kind] = on_demand(*kind)
        except InputError as error:
            missing.append(str(error))
    return prices, missing


def _table(jobs: list[TrainingJob], dollars: list[float | None]) -> Table:
    table = Table(box=None, pad_edge=False)
    for title in COLUMNS:
        is_text = title in ("job", "instances", "status")
        table.add_column(title, justify="left" if is_text else "right", overflow="fold")
    for job, job_usd in zip(jobs, dollars, strict=True):
        trained, billable = job.training_s, job.billable_s
        saved = "-" if trained is None or billable is None else f"{saving(trained, billable):.0%}"
        times = duration(trained), duration(billable), saved, str(job.interruptions)
        table.add_row(job.name, instances(job), job.status, *times, "-" if job_usd is None else f"{job_usd:.2f}")
    if len(jobs) > 1:
        table.add_row(*_total(jobs, dollars), style="bold")
    return table


def _total(jobs: list[TrainingJob], dollars: list[float | None]) -> list[str]:
    """Return the last row: sums over the jobs whose numbers are known."""
    trained = sum(job.training_s or 0 for job in jobs)
    billable = sum(job.billable_s or 0 for job in jobs)
    interruptions = sum(job.interruptions for job in jobs)
    times = duration(trained), duration(billable), f"{saving(trained, billable):.0%}", str(interruptions)
    return [f"{len(jobs)} jobs", "", "", *times, f"{sum(filter(None, dollars)):.2f}"]
