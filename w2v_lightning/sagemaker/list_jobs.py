"""Command `list`: the newest jobs with some tags."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice

from jsonargparse.typing import PositiveInt
from rich.console import Console
from rich.table import Table

from w2v_lightning.command_line import Parser, parse, parser_of
from w2v_lightning.reporting.units import duration
from w2v_lightning.sagemaker import aws_session
from w2v_lightning.sagemaker.aws_errors import explain_aws_errors
from w2v_lightning.sagemaker.job import PROJECT
from w2v_lightning.sagemaker.job_display import coloured_status, instances, local_time
from w2v_lightning.sagemaker.training_job import parse_tags, search


@dataclass(frozen=True)
class ListOptions:
    """List the newest jobs with some tags, the newest first.

    Args:
        tag: tag KEY=VALUE that the jobs have, such as run=base-100h; may be repeated; default:
            project=w2v_lightning, which all jobs submitted by this package have.
        last: largest number of jobs.
        region: AWS region; default: AWS_REGION or that of the AWS profile.
    """

    tag: list[str] = field(default_factory=list)
    last: PositiveInt = 20
    region: str | None = None


@explain_aws_errors()
def main(args: Sequence[str]) -> int:
    """Print a table of jobs; return the exit status."""
    options = parse(ListOptions, "list", args)
    tags = parse_tags(options.tag) or PROJECT
    sagemaker = aws_session.boto_session(options.region).client("sagemaker")
    jobs = list(islice(search(sagemaker, tags), options.last))
    if not jobs:
        print(f"No jobs with the tags {tags} in {sagemaker.meta.region_name}; --region selects another region.")
        return 0
    table = Table(box=None, pad_edge=False)
    for title in ("job", "status", "instances", "created", "trained", "interruptions"):
        table.add_column(title, overflow="fold")
    for job in jobs:
        cells = (instances(job), local_time(job.created), duration(job.training_s), str(job.interruptions))
        table.add_row(job.name, coloured_status(job), *cells)
    Console().print(table)
    return 0


def parser() -> Parser:
    """Return the parser of the options."""
    return parser_of(ListOptions, "list")
