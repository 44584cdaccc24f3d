"""The commands `status`, `list` and `stop`; and `add_parser` for all commands about jobs that were submitted."""

import argparse
from itertools import islice
from typing import Any

from rich.console import Console
from rich.table import Table

from w2v_lightning.reporting.units import duration
from w2v_lightning.sagemaker import aws_session, download, job_cost, logs
from w2v_lightning.sagemaker.job import PROJECT
from w2v_lightning.sagemaker.status_text import coloured_status, instances, local_time, show
from w2v_lightning.sagemaker.training_job import add_options, add_region_option, describe, key_and_value, search


def add_parser(commands: Any) -> None:
    """All commands about jobs that have been submitted."""
    status = commands.add_parser("status", help="how a job stands, what interrupted it, why it failed, what to do")
    add_options(status)
    status.set_defaults(run=_status)
    logs.add_parser(commands)
    stop = commands.add_parser("stop", help="end a job; it has 120 s to save a checkpoint")
    add_options(stop)
    stop.set_defaults(run=_stop)
    of_all = commands.add_parser("list", help="the newest jobs")
    tags = " ".join(f"{key}={value}" for key, value in PROJECT.items())
    of_all.add_argument("--tag", action="append", type=key_and_value, metavar="KEY=VALUE", help=f"default: {tags}")
    of_all.add_argument("--last", type=_positive, default=20, metavar="N", help="how many at most; default: 20")
    add_region_option(of_all)
    of_all.set_defaults(run=_list)
    download.add_parser(commands)
    job_cost.add_parser(commands)


def _status(options: argparse.Namespace) -> None:
    sagemaker = aws_session.boto_session(options.region).client("sagemaker")
    show(describe(sagemaker, options.name), Console())


def _stop(options: argparse.Namespace) -> None:
    sagemaker = aws_session.boto_session(options.region).client("sagemaker")
    job = describe(sagemaker, options.name)
    if job.has_ended:
        print(f"{job.name} has ended already: {job.status}.")
        return
    sagemaker.stop_training_job(TrainingJobName=job.name)
    print(f"{job.name} is being stopped: it has 120 s to save a checkpoint, then its model is uploaded.")
    print(f"To go on later: python -m w2v_lightning resubmit {job.run}")


def _list(options: argparse.Namespace) -> None:
    sagemaker = aws_session.boto_session(options.region).client("sagemaker")
    tags = dict(options.tag or PROJECT)
    jobs = list(islice(search(sagemaker, tags), options.last))
    if not jobs:
        print(f"{sagemaker.meta.region_name} has no jobs with {tags}; --region looks elsewhere.")
        return
    table = Table(box=None, pad_edge=False)
    for title in ("job", "status", "instances", "created", "trained", "interruptions"):
        table.add_column(title, overflow="fold")
    for job in jobs:
        cells = (instances(job), local_time(job.created), duration(job.training_s), str(job.interruptions))
        table.add_row(job.name, coloured_status(job), *cells)
    Console().print(table)


def _positive(option: str) -> int:
    number = int(option)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number
