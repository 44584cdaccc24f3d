"""Submission of a Job: checkpoint interval, checks, summary, and the request, which is sent or only shown."""

import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from w2v_lightning.catalog.defaults import defaults
from w2v_lightning.config import DEFAULT_CHECKPOINT_EVERY
from w2v_lightning.errors import InputError
from w2v_lightning.planner import checkpoint_interval
from w2v_lightning.sagemaker import aws_session, bundle, checks, job_summary, logs
from w2v_lightning.sagemaker.job import Job
from w2v_lightning.sagemaker.request import create_training_job


def with_interval(job: Job) -> Job:
    """Return the job with the checkpoint interval that suits spot interruptions, unless it has one of its own."""
    if not job.is_spot or job.config["checkpoint_every"] != DEFAULT_CHECKPOINT_EVERY or job.count < 1:
        return job
    every = checkpoint_interval.checkpoint_every(job.config, job.count, defaults()["interruptions_per_instance_hour"])
    return replace(job, config=job.config | {"checkpoint_every": every})


def max_wait_hours(given: float | None, is_spot: bool, default: float) -> float | None:
    """Return the hours that a spot job may take with its waiting; None on demand.

    Raises:
        InputError: hours are given for an on-demand job.
    """
    if is_spot:
        return default if given is None else given
    if given is not None:
        raise InputError(f"--max_wait_hours is {given:g}, but only a spot job waits: add --spot.")
    return None


def submit_job(job: Job, *, budget: float | None, is_dry_run: bool, is_followed: bool) -> int:
    """Check a job, print its summary, and send its request; return the exit status.

    Args:
        job: job to submit.
        budget: largest cost in USD; None: no limit.
        is_dry_run: print the request instead of sending it, without credentials or network.
        is_followed: print what the job logs until it ends; the status is then 1 unless it completes.

    Raises:
        InputError: a check fails.
    """
    bucket, _ = checks.split_uri("--output", job.output)
    boto = aws_session.offline_boto_session(job.region) if is_dry_run else aws_session.boto_session(job.region)
    checks.check(job, boto.client, budget=budget, is_dry_run=is_dry_run)
    print(job_summary.summary(job, defaults()["interruptions_per_instance_hour"]), file=sys.stderr)
    sdk = aws_session.offline_sdk_session(boto, bucket) if is_dry_run else aws_session.sdk_session(boto, bucket)
    request = bundled_request(job, sdk)
    if is_dry_run:
        print(json.dumps(request, indent=2))
        return 0
    boto.client("sagemaker").create_training_job(**request)
    return _report(request["TrainingJobName"], boto, is_followed)


def bundled_request(job: Job, sdk: Any) -> dict[str, Any]:
    """Upload the job's code through a session of the SDK, perhaps an offline one; return the request."""
    with tempfile.TemporaryDirectory() as folder:
        bundle.write(job, Path(folder))
        return create_training_job(job, Path(folder), sdk)


def _report(name: str, boto: Any, is_followed: bool) -> int:
    print(name)
    if not is_followed:
        print(f"Submitted. To follow it: python -m w2v_lightning logs {name} --follow", file=sys.stderr)
        return 0
    return 0 if logs.follow(boto, name).status == "Completed" else 1
