"""Earlier jobs of a run: the Job that was submitted last, and checks against it."""

import json
from typing import TYPE_CHECKING

from w2v_lightning.errors import InputError
from w2v_lightning.sagemaker.checks import split_uri
from w2v_lightning.sagemaker.job import Job
from w2v_lightning.sagemaker.request import RECORD
from w2v_lightning.sagemaker.training_job import TrainingJob, describe

if TYPE_CHECKING:
    import boto3


def previous_job(boto: "boto3.Session", name: str) -> tuple[Job, bool]:
    """Return the Job that was submitted, and whether it has completed.

    Args:
        boto: session for SageMaker and S3.
        name: name of a run (its newest job), or of one of its jobs.

    Raises:
        InputError: there is no such job, it has not ended, or this package did not submit it.
    """
    job = describe(boto.client("sagemaker"), name)
    if not job.has_ended:
        raise InputError(
            f"{job.name} is {job.status}: two jobs would write the same checkpoints. A spot job resumes by itself after"
            f" an interruption; to change it, `python -m w2v_lightning stop {job.name}` and wait until it has ended."
        )
    bucket, key = split_uri("code", _code(job))
    s3 = boto.client("s3")
    try:
        record = s3.get_object(Bucket=bucket, Key=f"{key}/{RECORD}")["Body"].read()
    except s3.exceptions.NoSuchKey:
        raise InputError(
            f"{job.name}: its code in s3://{bucket}/{key} has no {RECORD}: submit the run again."
        ) from None
    try:
        return Job(**json.loads(record)), job.status == "Completed"
    except TypeError:
        raise InputError(
            f"{job.name} was submitted by another version of this package: resubmit it with that version."
        ) from None


def check_trains_on(completed: Job, job: Job) -> None:
    """Check that a run whose last job has completed would train further.

    Raises:
        InputError: the limits of training are the same, so it would end at once.
    """
    from w2v_lightning.checkpoints.history import limits_of  # imports Lightning, which takes seconds

    limits = limits_of(completed.config["trainer"])
    if limits_of(job.config["trainer"]) == limits:
        reached = ", ".join(f"trainer.{name} {value}" for name, value in limits.items() if value != "None")
        raise InputError(
            f"{job.run} has trained to its end ({reached}): `python -m w2v_lightning download {job.run}` fetches the"
            " model. To train longer, raise the limit, such as --trainer.max_steps."
        )


def check_is_new(boto: "boto3.Session", run: Job) -> None:
    """Check that the run's folder in S3 is empty.

    Otherwise the job would resume from another run's checkpoints, or refuse them once its instances are paid for.

    Raises:
        InputError: the folder is not empty.
    """
    bucket, key = split_uri("--output", run.folder)
    if boto.client("s3").list_objects_v2(Bucket=bucket, Prefix=f"{key}/", MaxKeys=1).get("Contents"):
        raise InputError(
            f"--name: {run.folder} already has a run; `python -m w2v_lightning resubmit {run.run}` resumes it, or give"
            " another name."
        )


def _code(job: TrainingJob) -> str:
    """Return the S3 URI of the job's code."""
    for channel in job.description.get("InputDataConfig", []):
        if channel["ChannelName"] == "code":
            return channel["DataSource"]["S3DataSource"]["S3Uri"]
    raise InputError(f"{job.name} was not submitted by `python -m w2v_lightning`, so it cannot be resubmitted.")
