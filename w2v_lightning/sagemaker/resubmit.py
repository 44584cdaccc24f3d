"""Command `resubmit`: resume a run from its checkpoints, in a new job."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from jsonargparse.typing import PositiveFloat

from w2v_lightning.catalog.defaults import defaults
from w2v_lightning.catalog.instances import instance
from w2v_lightning.command_line import Parser, parse_known, parser_of
from w2v_lightning.config import DEFAULT_CHECKPOINT_EVERY, resolve
from w2v_lightning.sagemaker import aws_session
from w2v_lightning.sagemaker.aws_errors import explain_aws_errors
from w2v_lightning.sagemaker.job import InputMode, Job
from w2v_lightning.sagemaker.previous_job import check_trains_on, previous_job
from w2v_lightning.sagemaker.submission import max_wait_hours, submit_job, with_interval

# Options that replace the value of the previous job; --spot and --max_wait_hours do, too.
CHANGEABLE = ("instance_type", "count", "max_hours", "role", "data", "input_mode", "image", "volume_gb")


@dataclass(frozen=True, kw_only=True)
class ResubmitOptions:
    """Resume a run from its checkpoints in a new job, perhaps on other instances.

    Options that are not given keep the value of the previous job. Other options are those of `python -m w2v_lightning
    fit`, such as --trainer.max_steps 1000.

    Args:
        name: name of a run or of one of its jobs.
        instance_type: instance type, such as ml.g4dn.12xlarge.
        count: number of instances.
        spot: managed spot training, which is cheaper, but may be interrupted.
        max_hours: duration in hours after which training is stopped.
        max_wait_hours: duration of training and waiting for spot capacity, in hours.
        budget: largest possible cost in USD; a job that may cost more is refused.
        region: AWS region of the run; default: AWS_REGION or that of the AWS profile.
        role: ARN of the role that the job runs as.
        data: S3 URI of the prepared data.
        input_mode: access to the data: FastFile (mounted), File (copied), or stream (read by the loader itself).
        image: URI of the training image.
        volume_gb: disk of each instance, in GB.
        dry_run: output of the request (JSON) and a summary instead of a submission; the previous job is read.
        wait: continuous output of what the job prints, until it ends.
    """

    name: str
    instance_type: str | None = None
    count: int | None = None
    spot: bool | None = None
    max_hours: float | None = None
    max_wait_hours: float | None = None
    budget: PositiveFloat | None = None
    region: str | None = None
    role: str | None = None
    data: str | None = None
    input_mode: InputMode | None = None
    image: str | None = None
    volume_gb: int | None = None
    dry_run: bool = False
    wait: bool = False


@explain_aws_errors()
def main(args: Sequence[str]) -> int:
    """Submit a job that resumes a run; return the exit status."""
    options, overrides = parse_options(args)
    previous, has_completed = previous_job(aws_session.boto_session(options.region), options.name)
    job = changed_job(previous, options, overrides)
    if has_completed:
        check_trains_on(previous, job)
    return submit_job(job, budget=options.budget, is_dry_run=options.dry_run, is_followed=options.wait)


def parser() -> Parser:
    """Return the parser of the options, without those of `fit`."""
    return parser_of(ResubmitOptions, "resubmit", positional=["name"], has_config=False)


def parse_options(args: Sequence[str]) -> tuple[ResubmitOptions, list[str]]:
    """Return the options of `resubmit`, and those of `fit`."""
    return parse_known(ResubmitOptions, "resubmit", args, positional=["name"])


def changed_job(previous: Job, options: ResubmitOptions, overrides: Sequence[str]) -> Job:
    """Return the previous job of a run with the given options changed.

    Args:
        previous: job that was submitted last.
        options: options of `resubmit`.
        overrides: options of `fit`, which override those of the previous job.

    Raises:
        InputError: an option is invalid.
    """
    given = {name: getattr(options, name) for name in CHANGEABLE if getattr(options, name) is not None}
    job = replace(previous, **given)
    instance(job.instance_type)  # reports a misspelt type before resolving the config, which takes seconds
    is_spot = previous.is_spot if options.spot is None else options.spot
    wait_hours = max_wait_hours(options.max_wait_hours, is_spot, job.max_hours + _waiting_hours(previous))
    job = replace(job, is_spot=is_spot, max_wait_hours=wait_hours)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "config.yaml")
        file.write_text(yaml.safe_dump(_without_interval(previous), sort_keys=False), encoding="utf-8")
        return with_interval(replace(job, config=resolve([str(file)], overrides)))


def _waiting_hours(previous: Job) -> float:
    """Return the hours that a job may wait for spot capacity: those of the previous job, or the default."""
    if previous.max_wait_hours is None:
        return defaults()["spot_wait_hours"]
    return previous.max_wait_hours - previous.max_hours


def _without_interval(job: Job) -> dict[str, Any]:
    """Return the job's config, with a checkpoint interval that `submit` chose for its instances set to the default."""
    default = job.config | {"checkpoint_every": DEFAULT_CHECKPOINT_EVERY}
    return default if with_interval(replace(job, config=default)) == job else job.config
