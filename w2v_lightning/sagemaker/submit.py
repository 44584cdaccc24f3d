"""The commands `submit` and `resubmit`: options to a Job, checked, planned, and sent or only shown."""

import argparse
import json
import os
import re
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, get_args

import yaml

from w2v_lightning.catalog.defaults import defaults
from w2v_lightning.catalog.images import image_uri
from w2v_lightning.catalog.instances import instance
from w2v_lightning.config import DEFAULT_CHECKPOINT_EVERY, resolve
from w2v_lightning.errors import InputError
from w2v_lightning.planner import checkpoint_interval
from w2v_lightning.sagemaker import aws_session, bundle, checks, job_summary, logs
from w2v_lightning.sagemaker.job import InputMode, Job
from w2v_lightning.sagemaker.options import positive
from w2v_lightning.sagemaker.previous_job import check_is_new, check_trains_on, previous_job
from w2v_lightning.sagemaker.request import create_training_job

RUN_NAME = re.compile(r"[a-zA-Z0-9](-?[a-zA-Z0-9])*")
MAX_RUN_NAME = 40  # a job's name, of 63 characters at most, adds 22
# What a resubmission may change; and --spot with --max-wait-hours.
CHANGEABLE = ("instance_type", "count", "max_hours", "role", "data", "input_mode", "image", "volume_gb")
VARIABLES = {name: f"W2V_LIGHTNING_{name.upper()}" for name in ("role", "data", "output")}


def add_parser(commands: Any) -> None:
    """`submit` and `resubmit`. What is no option of theirs is one of `fit`'s, and comes as `overrides`."""
    text = "Other options are those of `python -m w2v_lightning fit`, such as --trainer.max_steps 1000."
    new = commands.add_parser("submit", help="start a run as a training job", epilog=text, allow_abbrev=False)
    default = defaults() | {name: os.environ.get(variable) for name, variable in VARIABLES.items()}
    new.add_argument("--config", action="append", required=True, metavar="YAML", help="of fit; several are merged")
    new.add_argument("--output", default=default["output"], help=f"s3://... of runs, each a folder {_or('output')}")
    new.add_argument("--name", help="of the run; default: the config's, with date and time")
    new.set_defaults(run=submit, overrides=[])
    again = commands.add_parser(
        "resubmit",
        help="go on with a run from its checkpoints, also on other instances",
        epilog=f"What is not given stays as it was. {text}",
        allow_abbrev=False,
    )
    again.add_argument("name", metavar="NAME", help="of a run, or of one of its jobs")
    again.set_defaults(run=resubmit, overrides=[])
    _add_job_options(new, default)
    _add_job_options(again, {})


def _add_job_options(parser: argparse.ArgumentParser, default: Mapping[str, Any]) -> None:
    """What has no default stays None; a resubmission has none."""

    def add(option: str, **settings: Any) -> None:
        value = default.get(option.lstrip("-").replace("-", "_"))
        parser.add_argument(option, **{"default": value} | settings)

    is_new = bool(default)
    add("--instance-type", required=is_new, help="such as ml.g4dn.12xlarge")
    add("--count", type=int, help="of instances")
    add("--spot", action=argparse.BooleanOptionalAction, help="managed spot: cheaper, and may be interrupted")
    add("--max-hours", type=float, metavar="H", help="training is stopped after so long")
    add("--max-wait-hours", type=float, metavar="H", help="of a spot job: training and waiting for capacity")
    add("--region", help="default: AWS_REGION, or that of the AWS profile")
    add("--role", metavar="ARN", help=f"that training runs as {_or('role')}")
    add("--data", help=f"s3://... of prepared data {_or('data')}")
    add("--input-mode", choices=get_args(InputMode), help="mounted, copied, or read by the loader itself")
    add("--image", metavar="URI", help="of the training image; default: AWS's for PyTorch")
    add("--volume-gb", type=int, help="disk of each instance")
    add("--budget", type=positive, metavar="USD", help="refuse a job that may cost more")
    needs = "no credentials and no network needed" if is_new else "reads the run's last job, sends nothing"
    add("--dry-run", action="store_true", help=f"print the request (JSON) and the plan; {needs}", default=False)
    add("--wait", action="store_true", help="print what the job prints until it ends", default=False)


def _or(name: str) -> str:
    return f"(or set {VARIABLES[name]})"


def submit(options: argparse.Namespace) -> int:
    """Start a run."""
    job = new_job(options)
    if not options.dry_run:
        check_is_new(aws_session.boto_session(job.region), job)
    return _start(job, options)


def resubmit(options: argparse.Namespace) -> int:
    """Go on with one."""
    previous, is_complete = previous_job(aws_session.boto_session(options.region), options.name)
    job = changed_job(previous, options)
    if is_complete:
        check_trains_on(previous, job)
    return _start(job, options)


def new_job(options: argparse.Namespace) -> Job:
    """What the options ask for, completed by the environment and defaults.yaml.

    Raises:
        InputError: something is missing or cannot be.
    """
    instance(options.instance_type)  # a misspelt one before the seconds that a config takes
    region = aws_session.region_of(options.region)
    job = Job(
        run=_run_name(options),
        config={},
        instance_type=options.instance_type,
        count=options.count,
        is_spot=bool(options.spot),
        max_hours=options.max_hours,
        max_wait_hours=_max_wait_hours(options, bool(options.spot), options.max_hours + defaults()["spot_wait_hours"]),
        region=region,
        role=_needed(options, "role"),
        data=_needed(options, "data").rstrip("/"),
        output=_needed(options, "output").rstrip("/"),
        input_mode=options.input_mode,
        image=options.image or image_uri(defaults()["torch"], region),
        volume_gb=options.volume_gb,
    )
    return _with_interval(replace(job, config=resolve(options.config, options.overrides)))


def changed_job(previous: Job, options: argparse.Namespace) -> Job:
    """The same run, with what the options change; the rest is as it was.

    Raises:
        InputError: something cannot be.
    """
    job = replace(
        previous, **{name: getattr(options, name) for name in CHANGEABLE if getattr(options, name) is not None}
    )
    instance(job.instance_type)
    is_spot = previous.is_spot if options.spot is None else options.spot
    waiting = previous.max_wait_hours - previous.max_hours if previous.is_spot else defaults()["spot_wait_hours"]
    job = replace(job, is_spot=is_spot, max_wait_hours=_max_wait_hours(options, is_spot, job.max_hours + waiting))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "config.yaml")
        file.write_text(yaml.safe_dump(_without_interval(previous), sort_keys=False), encoding="utf-8")
        return _with_interval(replace(job, config=resolve([str(file)], options.overrides)))


def _without_interval(job: Job) -> dict[str, Any]:
    """The job's config; a time between checkpoints that was chosen here, for the instances that it had, is unset."""
    unset = job.config | {"checkpoint_every": DEFAULT_CHECKPOINT_EVERY}
    return unset if _with_interval(replace(job, config=unset)) == job else job.config


def _with_interval(job: Job) -> Job:
    """On spot, checkpoints as often as interruptions make worthwhile, unless the config has a time of its own."""
    if not job.is_spot or job.config["checkpoint_every"] != DEFAULT_CHECKPOINT_EVERY or job.count < 1:
        return job
    every = checkpoint_interval.checkpoint_every(job.config, job.count, defaults()["interruptions_per_instance_hour"])
    return replace(job, config=job.config | {"checkpoint_every": every})


def _max_wait_hours(options: argparse.Namespace, is_spot: bool, default: float) -> float | None:
    given = options.max_wait_hours
    if is_spot:
        return default if given is None else given
    if given is not None:
        raise InputError(f"--max-wait-hours is {given:g}, but only a spot job waits: add --spot.")
    return None


def _needed(options: argparse.Namespace, name: str) -> str:
    if not getattr(options, name):
        raise InputError(f"--{name}: it is needed; give it, or set {VARIABLES[name]} (docs/sagemaker.md).")
    return getattr(options, name)


def _run_name(options: argparse.Namespace) -> str:
    if options.name is None:
        stem = re.sub(r"[^a-zA-Z0-9]+", "-", Path(options.config[-1]).stem).strip("-")[: MAX_RUN_NAME - 16].strip("-")
        return f"{stem or 'run'}-{datetime.now():%Y%m%d-%H%M%S}"
    if len(options.name) > MAX_RUN_NAME or not RUN_NAME.fullmatch(options.name):
        raise InputError(
            f"--name is {options.name!r}: give letters, digits and single hyphens between them, at most"
            f" {MAX_RUN_NAME} characters; SageMaker takes no others."
        )
    return options.name


# ---- a job that is complete -----------------------------------------------------------------------------------------


def _start(job: Job, options: argparse.Namespace) -> int:
    """Check, plan, and send or show; returns the exit status."""
    bucket, _ = checks.split_uri("--output", job.output)
    is_dry_run = options.dry_run
    boto = aws_session.offline_boto_session(job.region) if is_dry_run else aws_session.boto_session(job.region)
    checks.check(job, boto.client, budget=options.budget, is_dry_run=is_dry_run)
    print(job_summary.words(job, defaults()["interruptions_per_instance_hour"]), file=sys.stderr)
    sdk = aws_session.offline_sdk_session(boto, bucket) if is_dry_run else aws_session.sdk_session(boto, bucket)
    request = bundled_request(job, sdk)
    if is_dry_run:
        print(json.dumps(request, indent=2))
        return 0
    boto.client("sagemaker").create_training_job(**request)
    return _report(request["TrainingJobName"], boto, is_awaited=options.wait)


def bundled_request(job: Job, sdk: Any) -> dict[str, Any]:
    """The CreateTrainingJob request, its code uploaded through the SDK's session, which may be an offline one."""
    with tempfile.TemporaryDirectory() as folder:
        bundle.write(job, Path(folder))
        return create_training_job(job, Path(folder), sdk)


def _report(name: str, boto: Any, is_awaited: bool) -> int:
    print(name)
    if not is_awaited:
        print(f"Submitted. To watch it: python -m w2v_lightning logs {name} --follow", file=sys.stderr)
        return 0
    return 0 if logs.follow(boto, name).status == "Completed" else 1
