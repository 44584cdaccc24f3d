"""Command `stop`: end a job, which then saves a checkpoint."""

from collections.abc import Sequence
from dataclasses import dataclass

from w2v_lightning.command_line import Parser, parse, parser_of
from w2v_lightning.sagemaker import aws_session
from w2v_lightning.sagemaker.aws_errors import explain_aws_errors
from w2v_lightning.sagemaker.training_job import describe


@dataclass(frozen=True)
class StopOptions:
    """Stop a job. It has 120 s to save a checkpoint, from which `resubmit` resumes.

    Args:
        name: name of a job, or of a run (its newest job).
        region: AWS region; default: AWS_REGION or that of the AWS profile.
    """

    name: str
    region: str | None = None


@explain_aws_errors()
def main(args: Sequence[str]) -> int:
    """Stop a job that has not ended; return the exit status."""
    options = parse(StopOptions, "stop", args, positional=["name"])
    sagemaker = aws_session.boto_session(options.region).client("sagemaker")
    job = describe(sagemaker, options.name)
    if job.has_ended:
        print(f"{job.name} has already ended: {job.status}.")
        return 0
    sagemaker.stop_training_job(TrainingJobName=job.name)
    print(f"Stopping {job.name}: it has 120 s to save a checkpoint, then its model is uploaded.")
    print(f"To resume later: python -m w2v_lightning resubmit {job.run}")
    return 0


def parser() -> Parser:
    """Return the parser of the options."""
    return parser_of(StopOptions, "stop", positional=["name"])
