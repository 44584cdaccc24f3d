"""Runner of a study's cells as training jobs, each submitted like those of `submit`, and polled until it ends."""

import os
import re
import secrets
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
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
from w2v_lightning.sagemaker.aws_errors import explain_aws_errors, is_transient
from w2v_lightning.sagemaker.job import Job
from w2v_lightning.sagemaker.submission import bundled_request
from w2v_lightning.sagemaker.training_job import TrainingJob, describe
from w2v_lightning.study import collect
from w2v_lightning.study.cells import Cell, Study
from w2v_lightning.study.queue import LostError, NoCapacityError
from w2v_lightning.study.spec import fit_arguments

# Words of a FailureReason, in lower case, that mean a transient failure of AWS, not of the job.
TRANSIENT = ("capacityerror", "insufficientinstancecapacity", "unable to provision", "internalservererror")
# Examples for a dry run, which needs neither an account nor data.
STAND_INS = {
    "region": "us-east-1",
    "role": "arn:aws:iam::123456789012:role/w2v-lightning",
    "data": "s3://your-bucket/prepared",
    "output": "s3://your-bucket/runs",
}
TOKEN = 6  # hexadecimal digits at the end of a run's name, so that no two jobs share checkpoints
LOGS = re.compile(rf"{collect.LOGS}/version_\d+/(throughput\.json|config\.yaml|events\.out\.tfevents\.[\w.-]+)$")


class SageMaker:
    """Runner (queue.py) of cells as training jobs, which continue if the command ends."""

    poll_s = 30.0

    def __init__(self, study: Study, is_dry_run: bool = False) -> None:
        """Create a runner; in a dry run, `STAND_INS` are used for what only a submission needs."""
        given = {**_configured(), **study.jobs}
        self._stand_ins = {n: v for n, v in STAND_INS.items() if is_dry_run and not given.get(n)}
        self._study = replace(study, jobs={**study.jobs, **self._stand_ins})

    def obstacle(self, cell: Cell) -> None:
        """Return None: SageMaker has every instance type, so that only an invalid option is an obstacle.

        Raises:
            InputError: the job would be refused, or fail.
        """
        if cell.repetition > 1:
            return
        job = self._job(cell, _run_name(cell))
        checks.check_offline(job, budget=None)
        checks.split_uri("--data", job.data)
        bucket, _ = checks.split_uri("--output", job.output)
        bundled_request(job, _offline_session(job.region, bucket))

    def verdict(self, cells: Sequence[Cell]) -> str:
        lines = [
            f"The requests of all {len(cells)} jobs are valid by botocore's description of the service.",
            *self._missing(),
            f"Not checked, because a dry run uses no network: {checks.NEEDS_NETWORK}, quotas, capacity.",
            *self._costs(cells),
        ]
        return "\n".join(lines)

    def _missing(self) -> list[str]:
        if not self._stand_ins:
            return []
        examples = ", ".join(f"{name} {value}" for name, value in self._stand_ins.items())
        return [f"Examples are used for what is not given yet: {examples}."]

    # ---- calls by the queue -------------------------------------------------------------------------------------

    def plan(self, cell: Cell) -> dict[str, Any]:
        return {"run": _run_name(cell), "region": aws_session.region_of(self._study.jobs.get("region"))}

    def start(self, cell: Cell, folder: Path, handle: dict[str, Any]) -> dict[str, Any]:
        job = self._job(cell, handle["run"])
        checks.check(job, partial(_client, job.region), budget=None, is_dry_run=False)
        bucket, _ = checks.split_uri("--output", job.output)
        request = bundled_request(job, _session(job.region, bucket))
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
        if _had_no_capacity(job):
            raise NoCapacityError(job.failure_reason)
        logs = folder / collect.ROOT
        with explain_aws_errors():
            fetch(_client(handle["region"], "s3"), job, logs)
        return job_run(cell, logs, job, _outcome(job))

    def given_up(self, cell: Cell, folder: Path, outcome: str) -> Run:
        return collect.no_run(cell, "sagemaker", outcome)

    def _described(self, handle: dict[str, Any]) -> TrainingJob | None:
        """Return the job, by the run's name if the command ended while submitting it; None if AWS is unavailable."""
        sagemaker = _client(handle["region"], "sagemaker")
        try:
            return describe(sagemaker, handle.get("job") or handle["run"])
        except InputError as error:
            if "job" in handle:
                raise
            raise LostError("it had not been submitted when the command ended") from error
        except Exception as error:
            if not is_transient(error):
                raise
            print(f"{handle['run']}: {error}; trying again in {self.poll_s:g} s", file=sys.stderr)
            return None

    # ---- jobs ---------------------------------------------------------------------------------------------------

    def _job(self, cell: Cell, run: str) -> Job:
        """Return the job that `submit` makes of its options and the environment."""
        return submit.new_job(*submit.parse_options(self._submit_arguments(cell, run)))

    def _submit_arguments(self, cell: Cell, run: str) -> list[str]:
        jobs = dict(self._study.jobs) | {"input_mode": cell.storage}
        if not cell.is_spot:
            jobs.pop("max_wait_hours", None)
        given = {"name": run, "instance_type": cell.hardware, "count": cell.count, "max_hours": self._study.max_hours}
        arguments = [f"--config={file}" for file in self._study.config]
        arguments += [f"--{name}={value}" for name, value in (given | jobs).items()]
        return [*arguments, *(["--spot"] if cell.is_spot else []), *fit_arguments(cell.options)]

    def _costs(self, cells: Sequence[Cell]) -> list[str]:
        """Return an upper bound of the cost, and the prices, as lines."""
        region = aws_session.region_of(self._study.jobs.get("region"))
        seconds = self._study.max_hours * 3600
        try:
            prices = {cell.hardware: on_demand(cell.hardware, region) for cell in cells}
        except InputError as error:
            return [f"Cost: unknown: {error}"]
        most = sum(training_usd(seconds, cell.count, prices[cell.hardware].most_usd_per_hour) for cell in cells)
        lines = [f"{name} in {region}: {price.described()}." for name, price in prices.items()]
        return [f"Cost: ${most:.2f} at most, if each job takes max_hours {self._study.max_hours:g} on demand.", *lines]


def _configured() -> dict[str, str | None]:
    """Return what the environment gives to every submission."""
    return {"region": aws_session.configured_region()} | {n: os.environ.get(v) for n, v in submit.VARIABLES.items()}


# Sessions are cached, because each one reads botocore's descriptions of the services, which takes seconds.


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
    """Download the files that run.json is made from: logs and the run's history, to where a local run has them."""
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
    match = LOGS.search(key)
    return match[0] if match else None


def _had_no_capacity(job: TrainingJob) -> bool:
    """Return whether the job failed before training began, for a transient reason."""
    has_transient_reason = any(words in job.failure_reason.lower() for words in TRANSIENT)
    return job.status == "Failed" and not job.has_trained and has_transient_reason


def _outcome(job: TrainingJob) -> str:
    if job.status == "Completed":
        return collect.FINISHED
    return f"{job.secondary_status}: {job.failure_reason}".rstrip(": ")


def _run_name(cell: Cell) -> str:
    """Return a unique name that SageMaker accepts, such as "g4dn-2xlarge-x4-spot-r1-0a1b2c"."""
    words = re.sub(r"[^a-zA-Z0-9]+", "-", cell.name.removeprefix("ml.")).strip("-")
    suffix = f"-r{cell.repetition}-{secrets.token_hex(TOKEN // 2)}"
    return words[: submit.MAX_RUN_NAME - len(suffix)].strip("-") + suffix


def job_run(cell: Cell, folder: Path, job: TrainingJob, outcome: str) -> Run:
    """Return the Run of a training job that has ended, with the interruptions and seconds that SageMaker reports.

    Args:
        cell: cell that ran.
        folder: folder of the downloaded logs and run_history.json.
        job: SageMaker's description of the job.
        outcome: outcome of the Run.
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
