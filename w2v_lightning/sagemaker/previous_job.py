"""What there is of a run already: its last job, as the Job that it was submitted as."""

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
    """What `name`, a run or one of its jobs, was submitted as, and whether it has completed.

    Raises:
        InputError: there is no such job, it still runs, or it was not submitted from here.
    """
    job = describe(boto.client("sagemaker"), name)
    if not job.has_ended:
        raise InputError(
            f"{job.name} is {job.status}: two jobs would write the same checkpoints. A spot job goes on by itself after"
            f" an interruption; to change it, `python -m w2v_lightning stop {job.name}` and wait until it has ended."
        )
    bucket, key = split_uri("code", _code(job))
    s3 = boto.client("s3")
    try:
        record = s3.get_object(Bucket=bucket, Key=f"{key}/{RECORD}")["Body"].read()
    except s3.exceptions.NoSuchKey:
        raise InputError(f"{job.name}: its code in s3://{bucket}/{key} has no {RECORD}: submit the run anew.") from None
    try:
        return Job(**json.loads(record)), job.status == "Completed"
    except TypeError:
        raise InputError(f"{job.name} was submitted by another version of this package: go on with that one.") from None


def check_trains_on(completed: Job, job: Job) -> None:
    """Of a run whose last job has completed: there is something left for the next one.

    Raises:
        InputError: training would end where it has ended.
    """
    from w2v_lightning.checkpoints.history import limits_of  # imports Lightning, which takes seconds

    limits = limits_of(completed.config["trainer"])
    if limits_of(job.config["trainer"]) == limits:
        found = ", ".join(f"trainer.{name} {value}" for name, value in limits.items() if value != "None")
        raise InputError(
            f"{job.run} has trained to its end ({found}): `python -m w2v_lightning download {job.run}` fetches the"
            " model. To train on, give a later end, such as --trainer.max_steps."
        )


def check_is_new(boto: "boto3.Session", run: Job) -> None:
    """Another run's checkpoints would be gone on from, or refused once the instances are there.

    Raises:
        InputError: the run's folder in S3 has something in it.
    """
    bucket, key = split_uri("--output", run.folder)
    if boto.client("s3").list_objects_v2(Bucket=bucket, Prefix=f"{key}/", MaxKeys=1).get("Contents"):
        raise InputError(
            f"--name: there is a run in {run.folder} already; `python -m w2v_lightning resubmit {run.run}` goes on"
            " with it, or give another name."
        )


def _code(job: TrainingJob) -> str:
    """S3 URI of the bundle."""
    for channel in job.description.get("InputDataConfig", []):
        if channel["ChannelName"] == "code":
            return channel["DataSource"]["S3DataSource"]["S3Uri"]
    raise InputError(f"{job.name} was not submitted by `python -m w2v_lightning`: there is nothing to go on with.")
