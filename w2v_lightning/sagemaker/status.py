"""Command `status`: a job's state, its history, and what to do next."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console

from w2v_lightning.command_line import Parser, parse, parser_of
from w2v_lightning.sagemaker import aws_session
from w2v_lightning.sagemaker.aws_errors import explain_aws_errors
from w2v_lightning.sagemaker.job_display import show
from w2v_lightning.sagemaker.training_job import describe


@dataclass(frozen=True)
class StatusOptions:
    """Show the state of a job, its interruptions, why it failed, and what to do next.

    Args:
        name: name of a job, or of a run (its newest job).
        region: AWS region; default: AWS_REGION or that of the AWS profile.
    """

    name: str
    region: str | None = None


@explain_aws_errors()
def main(args: Sequence[str]) -> int:
    """Print a job's state; return the exit status."""
    options = parse(StatusOptions, "status", args, positional=["name"])
    sagemaker = aws_session.boto_session(options.region).client("sagemaker")
    show(describe(sagemaker, options.name), Console())
    return 0


def parser() -> Parser:
    """Return the parser of the options."""
    return parser_of(StatusOptions, "status", positional=["name"])
