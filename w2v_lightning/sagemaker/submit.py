"""Command `submit`: from a config of `fit` to a training job."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

from jsonargparse.typing import PositiveFloat

from w2v_lightning.catalog.defaults import defaults
from w2v_lightning.catalog.images import SMDDP_TORCH, image_uri
from w2v_lightning.catalog.instances import instance
from w2v_lightning.command_line import Parser, parse_known, parser_of
from w2v_lightning.config import resolve
from w2v_lightning.errors import InputError
from w2v_lightning.sagemaker import aws_session
from w2v_lightning.sagemaker.aws_errors import explain_aws_errors
from w2v_lightning.sagemaker.job import InputMode, Job
from w2v_lightning.sagemaker.previous_job import check_is_new
from w2v_lightning.sagemaker.submission import max_wait_hours, submit_job, with_interval

RUN_NAME = re.compile(r"[a-zA-Z0-9](-?[a-zA-Z0-9])*")
MAX_RUN_NAME = 40  # SageMaker limits job names to 63 characters, and 22 follow the run's name
VARIABLES = {name: f"W2V_LIGHTNING_{name.upper()}" for name in ("role", "data", "output")}


@dataclass(frozen=True, kw_only=True)
class SubmitOptions:
    """Start a run as a SageMaker training job.

    Other options are those of `python -m w2v_lightning fit`, such as --trainer.max_steps 1000.

    Args:
        config: config file of `fit`; may be repeated, later files win.
        instance_type: instance type, such as ml.g4dn.12xlarge.
        count: number of instances.
        name: name of the run; default: the name of the last config with date and time.
        spot: managed spot training, which is cheaper, but may be interrupted.
        max_hours: duration in hours after which training is stopped.
        max_wait_hours: duration of training and waiting for spot capacity, in hours; default: 24 more than max_hours.
        budget: largest possible cost in USD; a job that may cost more is refused.
        region: AWS region; default: AWS_REGION or that of the AWS profile.
        role: ARN of the role that the job runs as; default: W2V_LIGHTNING_ROLE.
        data: S3 URI of the prepared data; default: W2V_LIGHTNING_DATA.
        output: S3 URI below which each run has a folder; default: W2V_LIGHTNING_OUTPUT.
        input_mode: access to the data: FastFile (mounted), File (copied), or stream (read by the loader itself).
        image: URI of the training image; default: AWS's image for PyTorch.
        volume_gb: disk of each instance, in GB.
        dry_run: output of the request (JSON) and a summary instead of a submission, without credentials or network.
        wait: continuous output of what the job prints, until it ends.
    """

    config: list[str]
    instance_type: str
    count: int = field(default_factory=lambda: defaults()["count"])
    name: str | None = None
    spot: bool = False
    max_hours: float = field(default_factory=lambda: defaults()["max_hours"])
    max_wait_hours: float | None = None
    budget: PositiveFloat | None = None
    region: str | None = None
    role: str | None = field(default_factory=lambda: os.environ.get(VARIABLES["role"]))
    data: str | None = field(default_factory=lambda: os.environ.get(VARIABLES["data"]))
    output: str | None = field(default_factory=lambda: os.environ.get(VARIABLES["output"]))
    input_mode: InputMode = field(default_factory=lambda: defaults()["input_mode"])
    image: str | None = None
    volume_gb: int = field(default_factory=lambda: defaults()["volume_gb"])
    dry_run: bool = False
    wait: bool = False


@explain_aws_errors()
def main(args: Sequence[str]) -> int:
    """Submit a new run; return the exit status."""
    options, overrides = parse_options(args)
    job = new_job(options, overrides)
    if not options.dry_run:
        check_is_new(aws_session.boto_session(job.region), job)
    return submit_job(job, budget=options.budget, is_dry_run=options.dry_run, is_followed=options.wait)


def parser() -> Parser:
    """Return the parser of the options, without those of `fit`."""
    return parser_of(SubmitOptions, "submit", has_config=False)


def parse_options(args: Sequence[str]) -> tuple[SubmitOptions, list[str]]:
    """Return the options of `submit`, and those of `fit`."""
    return parse_known(SubmitOptions, "submit", args)


def new_job(options: SubmitOptions, overrides: Sequence[str]) -> Job:
    """Return the job that the options describe.

    Args:
        options: options of `submit`.
        overrides: options of `fit`, which override those of the config files.

    Raises:
        InputError: an option is missing or invalid.
    """
    instance(options.instance_type)  # reports a misspelt type before resolving the config, which takes seconds
    region = aws_session.region_of(options.region)
    default_wait_hours = options.max_hours + defaults()["spot_wait_hours"]
    job = Job(
        run=_run_name(options),
        config={},
        instance_type=options.instance_type,
        count=options.count,
        is_spot=options.spot,
        max_hours=options.max_hours,
        max_wait_hours=max_wait_hours(options.max_wait_hours, options.spot, default_wait_hours),
        region=region,
        role=_required("role", options.role),
        data=_required("data", options.data).rstrip("/"),
        output=_required("output", options.output).rstrip("/"),
        input_mode=options.input_mode,
        image=options.image or image_uri(defaults()["torch"], region),
        volume_gb=options.volume_gb,
    )
    job = replace(job, config=resolve(options.config, overrides))
    if job.uses_mpirun and not options.image:
        job = replace(job, image=image_uri(SMDDP_TORCH, region))  # the images of later releases lack SMDDP
    return with_interval(job)


def _required(name: str, value: str | None) -> str:
    if not value:
        raise InputError(f"--{name} is missing: give it, or set {VARIABLES[name]} (docs/sagemaker.md).")
    return value


def _run_name(options: SubmitOptions) -> str:
    if options.name is None:
        stem = re.sub(r"[^a-zA-Z0-9]+", "-", Path(options.config[-1]).stem).strip("-")[: MAX_RUN_NAME - 16].strip("-")
        return f"{stem or 'run'}-{datetime.now():%Y%m%d-%H%M%S}"
    if len(options.name) > MAX_RUN_NAME or not RUN_NAME.fullmatch(options.name):
        raise InputError(
            f"--name is {options.name!r}: give letters, digits and single hyphens between them, at most"
            f" {MAX_RUN_NAME} characters; SageMaker allows no others."
        )
    return options.name
