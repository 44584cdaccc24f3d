"""The command `cost`: what one job, or all jobs with a tag, took and cost."""

import argparse
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from w2v_lightning.catalog.cost import saving, storage_usd, training_usd
from w2v_lightning.catalog.prices import Price, on_demand
from w2v_lightning.errors import InputError
from w2v_lightning.reporting.units import duration
from w2v_lightning.sagemaker import aws_session
from w2v_lightning.sagemaker.status_text import instances
from w2v_lightning.sagemaker.training_job import TrainingJob, add_region_option, describe, key_and_value, search

COLUMNS = ("job", "instances", "status", "trained", "billable", "saving", "interruptions", "USD")


def add_parser(commands: Any) -> None:
    """`cost`."""
    parser = commands.add_parser("cost", help="training and billable time, saving, interruptions and dollars")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("name", nargs="?", metavar="NAME", help="of a job, or of a run: then its newest job")
    which.add_argument(
        "--tag",
        action="append",
        type=key_and_value,
        metavar="KEY=VALUE",
        help="all jobs with it, such as run=base-100h",
    )
    parser.add_argument(
        "--usd-per-gb-month",
        type=float,
        default=0.0,
        metavar="USD",
        help="of disks; for instance types that have none of their own",
    )
    add_region_option(parser)
    parser.set_defaults(run=_run)


def usd(job: TrainingJob, price: Price | None, usd_per_gb_month: float = 0.0) -> float | None:
    """What the job cost; None without a price, or until the service knows its seconds."""
    if price is None or job.training_s is None or job.billable_s is None:
        return None
    disks = storage_usd(job.training_s, job.count, job.volume_gb, usd_per_gb_month)
    return training_usd(job.billable_s, job.count, price.usd_per_hour) + disks


def _run(options: argparse.Namespace) -> None:
    sagemaker = aws_session.boto_session(options.region).client("sagemaker")
    jobs = list(search(sagemaker, dict(options.tag))) if options.tag else [describe(sagemaker, options.name)]
    if not jobs:
        raise InputError(f"--tag: {sagemaker.meta.region_name} has no jobs with {dict(options.tag)}; see `list`.")
    prices, missing = _prices(jobs)
    dollars = [usd(job, prices.get(_kind(job)), options.usd_per_gb_month) for job in jobs]
    console = Console()
    console.print(_table(jobs, dollars))
    console.print()
    for (instance_type, region), price in prices.items():
        console.print(Text(f"{instance_type} in {region}: {price.described()}."), soft_wrap=True)
    disks = "" if options.usd_per_gb_month else "disks (--usd-per-gb-month; most GPU instances bring their own), "
    console.print(Text(f"Not counted: {disks}storage and requests of S3, logs."), soft_wrap=True)
    if missing:
        raise InputError(" ".join(missing))


def _kind(job: TrainingJob) -> tuple[str, str]:
    return job.instance_type, job.region


def _prices(jobs: list[TrainingJob]) -> tuple[dict[tuple[str, str], Price], list[str]]:
    """By instance type and region; and what there is to say of those that are missing."""
    prices, missing = {}, []
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
    for job, its_usd in zip(jobs, dollars, strict=True):
        trained, billable = job.training_s, job.billable_s
        saved = "-" if trained is None or billable is None else f"{saving(trained, billable):.0%}"
        times = duration(trained), duration(billable), saved, str(job.interruptions)
        table.add_row(job.name, instances(job), job.status, *times, "-" if its_usd is None else f"{its_usd:.2f}")
    if len(jobs) > 1:
        table.add_row(*_total(jobs, dollars), style="bold")
    return table


def _total(jobs: list[TrainingJob], dollars: list[float | None]) -> list[str]:
    """Of the jobs whose numbers are known."""
    trained = sum(job.training_s or 0 for job in jobs)
    billable = sum(job.billable_s or 0 for job in jobs)
    interruptions = sum(job.interruptions for job in jobs)
    times = duration(trained), duration(billable), f"{saving(trained, billable):.0%}", str(interruptions)
    return [f"{len(jobs)} jobs", "", "", *times, f"{sum(filter(None, dollars)):.2f}"]
