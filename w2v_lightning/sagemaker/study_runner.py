"""Cells as training jobs: each is one that `submit` would send, watched until it has ended."""

import argparse
import re
import secrets
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from w2v_lightning.catalog.cost import training_usd
from w2v_lightning.catalog.prices import on_demand
from w2v_lightning.checkpoints import history
from w2v_lightning.errors import InputError
from w2v_lightning.perf_model.runs import Run
from w2v_lightning.sagemaker import aws_session, checks, submit
from w2v_lightning.sagemaker.aws_errors import explained, is_passing
from w2v_lightning.sagemaker.job import Job
from w2v_lightning.sagemaker.training_job import TrainingJob, describe
from w2v_lightning.study import collect
from w2v_lightning.study.matrix import Cell, Study, fit_arguments
from w2v_lightning.study.queue import LostError, NoCapacityError

# In small letters, what a FailureReason has where AWS, and not the job, has failed.
PASSING = ("capacityerror", "insufficientinstancecapacity", "unable to provision", "internalservererror")
TOKEN = 6  # hexadecimal digits at the end of a run's name, so that no two starts share checkpoints
LOGS = re.compile(rf"{collect.LOGS}/version_\d+/(throughput\.json|config\.yaml|events\.out\.tfevents\.[\w.-]+)$")


class SageMaker:
    """A Runner (queue.py). Jobs go on where the command ends."""

    poll_s = 30.0

    def __init__(self, study: Study) -> None:
        self._study = study

    def obstacle(self, cell: Cell) -> None:
        """There is none but a wrong option: the service has every instance type.

        Raises:
            InputError: the job would be refused, or fail.
        """
        if cell.repetition > 1:
            return
        job = self._job(cell, _run_name(cell))
        checks.check_alone(job, budget=None)
        checks.split_uri("--data", job.data)
        bucket, _ = checks.split_uri("--output", job.output)
        submit.bundled_request(job, _offline_session(job.region, bucket))

    def verdict(self, cells: Sequence[Cell]) -> str:
        lines = [
            f"The requests of all {len(cells)} jobs are valid by the service's own description of them.",
            f"Not checked, because a dry run uses no network: {checks.NEEDS_NETWORK}, quotas, capacity.",
            *self._costs(cells),
        ]
        return "\n".join(lines)

    # ---- what the queue asks ------------------------------------------------------------------------------------

    def plan(self, cell: Cell) -> dict[str, Any]:
        return {"run": _run_name(cell), "region": aws_session.region_of(self._study.jobs.get("region"))}

    def start(self, cell: Cell, folder: Path, handle: dict[str, Any]) -> dict[str, Any]:
        job = self._job(cell, handle["run"])
        checks.check(job, partial(_client, job.region), budget=None, is_dry_run=False)
        bucket, _ = checks.split_uri("--output", job.output)
        request = submit.bundled_request(job, _session(job.region, bucket))
        sagemaker = _client(job.region, "sagemaker")
        try:
            sagemaker.create_training_job(**request)
        except sagemaker.exceptions.ResourceLimitExceeded as error:
            raise NoCapacityError(error.response["Error"]["Message"]) from error
        return handle | {"job": request["TrainingJobName"]}

    def poll(self, cell: Cell, folder: Path, handle: dict[str, Any]) -> Run | None:
        job = self._described(handle)
        if job is None or not job.has_ended:
            return None
        if _has_found_nothing(job):
            raise NoCapacityError(job.failure_reason)
        logs = folder / collect.ROOT
        with explained():
            fetch(_client(handle["region"], "s3"), job, logs)
        return job_run(cell, logs, job, _outcome(job))

    def given_up(self, cell: Cell, folder: Path, outcome: str) -> Run:
        return collect.no_run(cell, "sagemaker", outcome)

    def _described(self, handle: dict[str, Any]) -> TrainingJob | None:
        """None: not to be known at the moment. A start that was cut short is looked for by its run."""
        sagemaker = _client(handle["region"], "sagemaker")
        try:
            return describe(sagemaker, handle.get("job") or handle["run"])
        except InputError as error:
            if "job" in handle:
                raise
            raise LostError("it had not been submitted when the command was ended") from error
        except Exception as error:
            if not is_passing(error):
                raise
            print(f"{handle['run']}: {error}; asked again in {self.poll_s:g} s", file=sys.stderr)
            return None

    # ---- what is submitted --------------------------------------------------------------------------------------

    def _job(self, cell: Cell, run: str) -> Job:
        """As `submit` makes it of its options and the environment."""
        parser = argparse.ArgumentParser(prog="python -m w2v_lightning", allow_abbrev=False)
        submit.add_parser(parser.add_subparsers())
        options, overrides = parser.parse_known_args(["submit", *self._submit_arguments(cell, run)])
        options.overrides = overrides
        return submit.new_job(options)

    def _submit_arguments(self, cell: Cell, run: str) -> list[str]:
        jobs = dict(self._study.jobs) | {"input_mode": cell.storage}
        if not cell.is_spot:
            jobs.pop("max_wait_hours", None)
        given = {"name": run, "instance_type": cell.hardware, "count": cell.count, "max_hours": self._study.max_hours}
        arguments = [f"--config={file}" for file in self._study.config]
        arguments += [f"--{name.replace('_', '-')}={value}" for name, value in (given | jobs).items()]
        return [*arguments, *(["--spot"] if cell.is_spot else []), *fit_arguments(cell.options)]

    def _costs(self, cells: Sequence[Cell]) -> list[str]:
        """Upper bounds, and the prices behind them."""
        region = aws_session.region_of(self._study.jobs.get("region"))
        seconds = self._study.max_hours * 3600
        try:
            prices = {cell.hardware: on_demand(cell.hardware, region) for cell in cells}
        except InputError as error:
            return [f"Cost: not known: {error}"]
        most = sum(training_usd(seconds, cell.count, prices[cell.hardware].usd_per_hour) for cell in cells)
        lines = [f"{name} in {region}: {price.described()}." for name, price in prices.items()]
        return [f"Cost: ${most:.2f} at most, if all took max_hours {self._study.max_hours:g} on demand.", *lines]


# Kept, because botocore reads its descriptions of services for each session anew, which takes seconds.


@cache
def _boto_session(region: str) -> Any:
    return aws_session.boto_session(region)


@cache
def _client(region: str, service: str) -> Any:
    return _boto_session(region).client(service)


@cache
def _session(region: str, bucket: str) -> Any:
    return aws_session.sdk_session(_boto_session(region), bucket)


@cache
def _offline_session(region: str, bucket: str) -> Any:
    return aws_session.offline_sdk_session(aws_session.offline_boto_session(region), bucket)


def fetch(s3: Any, job: TrainingJob, folder: Path) -> None:
    """What run.json is made of, as a run on this host has it: the logs, and the history beside the checkpoints."""
    for uri in filter(None, (job.tensorboard, job.checkpoints)):
        bucket, prefix = urlsplit(uri).netloc, urlsplit(uri).path.strip("/")
        for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/"):
            for key in (item["Key"] for item in page.get("Contents", [])):
                if name := _local_name(key):
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                    s3.download_file(bucket, key, str(folder / name))


def _local_name(key: str) -> str | None:
    if key.endswith(f"/{history.FILE}"):
        return f"{collect.HISTORY}/{history.FILE}"
    found = LOGS.search(key)
    return found[0] if found else None


def _has_found_nothing(job: TrainingJob) -> bool:
    """It has failed before training began, for a reason that may pass."""
    is_passing_reason = any(word in job.failure_reason.lower() for word in PASSING)
    return job.status == "Failed" and not job.has_trained and is_passing_reason


def _outcome(job: TrainingJob) -> str:
    if job.status == "Completed":
        return collect.FINISHED
    return f"{job.secondary_status}: {job.failure_reason}".rstrip(": ")


def _run_name(cell: Cell) -> str:
    """Such as "g4dn-2xlarge-x4-spot-r1-0a1b2c", of characters that SageMaker takes, and never the same again."""
    words = re.sub(r"[^a-zA-Z0-9]+", "-", cell.name.removeprefix("ml.")).strip("-")
    number = f"-r{cell.repetition}-{secrets.token_hex(TOKEN // 2)}"
    return words[: submit.MAX_RUN_NAME - len(number)].strip("-") + number


def job_run(cell: Cell, folder: Path, job: TrainingJob, outcome: str) -> Run:
    """Of a training job that has ended; interruptions and seconds are the service's own.

    Args:
        cell: what ran.
        folder: what was fetched of its logs, and its run_history.json.
        job: as the service describes it.
        outcome: see Run.
    """
    began = job.description.get("TrainingStartTime", job.created)
    throughput = collect.read_throughput(folder)
    return Run(
        name=cell.run,
        cell=asdict(cell),
        where="sagemaker",
        date=collect.iso_time(began),
        environment=collect.instance_environment(cell) | {"job": job.name, "versions": throughput.get("versions", {})},
        throughput=throughput,
        wer=collect.read_wer(folder, began),
        segments=collect.read_segments(folder),
        interruptions=job.interruptions,
        training_s=float(job.training_s or 0),
        billable_s=None if job.billable_s is None else float(job.billable_s),
        price=collect.price_of(cell.hardware, job.region),
        outcome=outcome,
    )
