"""Checks before money is spent. Each is an InputError that names the option, what was found and the remedy."""

import math
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

from w2v_lightning.catalog import images
from w2v_lightning.catalog.cost import training_usd
from w2v_lightning.catalog.defaults import MAX_HOURS
from w2v_lightning.catalog.instances import Instance, instance, precision_of
from w2v_lightning.catalog.prices import on_demand
from w2v_lightning.data.manifest import MANIFEST_SUFFIXES
from w2v_lightning.errors import InputError, listed
from w2v_lightning.planner.memory import shares_weights
from w2v_lightning.sagemaker import config_checks
from w2v_lightning.sagemaker.aws_errors import explained
from w2v_lightning.sagemaker.job import Job

ROLE = re.compile(r"arn:aws(-[a-z-]+)?:iam::\d{12}:role/[\w+=,.@/-]+")
JOB_NAME = r"{run}-[0-9a-f]{{6}}-\d{{14}}"  # see request.py
S3_URI = re.compile(r"s3://(?P<bucket>[a-z0-9][a-z0-9.-]+)(?:/(?P<prefix>.*?))?/*")
NEEDS_NETWORK = "the regions of the buckets, the data in S3, whether they fit the disk, other jobs of the run"
# On the disk beside the data: two checkpoints of a large model and its best one (3.8 GB each), and the exported model.
ROOM_GB = 20


def check(job: Job, clients: Callable[[str], Any], *, budget: float | None, is_dry_run: bool) -> None:
    """All of them, the cheapest first.

    Args:
        job: what is about to be submitted.
        clients: makes a boto client of a service, such as "s3".
        budget: in USD; None: no limit.
        is_dry_run: without network; what needs one is named on standard error instead.

    Raises:
        InputError: the job would fail, or may cost more than it should.
    """
    check_alone(job, budget)
    if is_dry_run:
        print(f"Not checked, because a dry run uses no network: {NEEDS_NETWORK}.", file=sys.stderr)
    else:
        check_storage(job, clients("s3"))
        check_no_other_job(job, clients("sagemaker"))


def check_alone(job: Job, budget: float | None) -> None:
    """Without network: all but NEEDS_NETWORK."""
    check_role(job.role)
    split_uri("--data", job.data)
    check_image(job, instance(job.instance_type))
    check_hours(job)
    check_config(job.config, instance(job.instance_type), job.count, job.is_spot)
    check_budget(job, budget)
    config_checks.check(job.config)


def check_role(role: str) -> None:
    if not ROLE.fullmatch(role or ""):
        found = f"{role!r} is no ARN of a role" if role else "there is none"
        raise InputError(
            f"--role: {found}. Training runs as a role that may read the data and write the output"
            " (docs/sagemaker.md makes one); give its ARN, such as arn:aws:iam::123456789012:role/w2v-training."
        )


def check_image(job: Job, machine: Instance) -> None:
    if reason := images.obstacle(job.image, machine):
        raise InputError(
            f"--instance-type {machine.name}: {reason}. Choose another type, such as ml.g4dn.xlarge or ml.g5.xlarge, or"
            " give the --image of a torch that was built with CUDA 12.6."
        )


def check_config(config: Mapping[str, Any], machine: Instance, count: int, is_spot: bool) -> None:
    """Whether `fit` can train so on these instances.

    Raises:
        InputError: an option of the config does not go with them.
    """
    check_gpus(config, machine, count)
    check_trainer_precision(config)
    check_sharing(config, machine)
    check_spot(config, is_spot)


def check_gpus(config: Mapping[str, Any], machine: Instance, count: int) -> None:
    """One process is started for each GPU: a config that counts on another number ends once instances are paid for."""
    if count < 1:
        raise InputError(f"--count is {count}; a job has at least 1 instance.")
    trainer = config.get("trainer", {})
    devices, hosts, accelerator = (
        trainer.get(name, default) for name, default in (("devices", "auto"), ("num_nodes", 1), ("accelerator", "auto"))
    )
    if _number_of(devices) not in (None, machine.gpus):
        raise InputError(
            f"trainer.devices is {devices!r}, but {machine.name} has {machine.gpus} GPU(s): leave it out, or choose an"
            f" --instance-type with {_number_of(devices)}."
        )
    if hosts not in (1, count):
        raise InputError(f"trainer.num_nodes is {hosts}, but --count is {count}: leave it out, it follows from it.")
    if accelerator not in ("auto", "gpu", "cuda"):
        raise InputError(
            f"trainer.accelerator is {accelerator!r}: {machine.gpus * count} GPU(s) would be paid for and idle;"
            " leave it out."
        )


def _number_of(devices: int | str | list[int]) -> int | None:
    """How many Lightning takes this option for; None: all there are."""
    if devices in ("auto", -1, "-1"):
        return None
    if isinstance(devices, str):
        parts = [part.strip() for part in devices.split(",") if part.strip()]
        if not all(part.isdigit() for part in parts):
            raise InputError(f"trainer.devices is {devices!r}: give a number of GPUs, or leave it out.")
        devices = parts if "," in devices else int(devices)
    return len(devices) if isinstance(devices, list) else devices


def check_trainer_precision(config: Mapping[str, Any]) -> None:
    """What `fit` refuses, once instances are paid for."""
    if precision := config.get("trainer", {}).get("precision"):
        from w2v_lightning.runtime.precision import check_precision  # imports torch

        check_precision(precision)


def check_sharing(config: Mapping[str, Any], machine: Instance) -> None:
    """What `fit` refuses with FSDP2, once instances are paid for."""
    if not shares_weights(config):
        return
    from w2v_lightning.checkpoints.recent import Interval  # slow to import

    every = config.get("checkpoint_every")
    if precision_of(config, machine) == "16-mixed":
        of = (
            "trainer.precision is"
            if config["trainer"].get("precision")
            else f"the {machine.gpu_name}s of {machine.name} would compute in"
        )
        raise InputError(
            f"trainer.strategy fsdp2: {of} 16-mixed, with which it does not go; take 32-true or bf16-mixed."
        )
    if every and Interval.parse(every).seconds:
        raise InputError(
            f"trainer.strategy fsdp2: checkpoint_every is {every}, a time, at which devices that share a model out"
            ' would not save at the same step; give steps, such as --checkpoint_every "500 steps".'
        )


def check_hours(job: Job) -> None:
    if not round(job.max_hours * 3600 if math.isfinite(job.max_hours) else 0) > 0:
        raise InputError(f"--max-hours is {job.max_hours:g}: give the hours after which training is stopped.")
    if job.max_hours > MAX_HOURS:
        raise InputError(
            f"--max-hours is {job.max_hours:g}: SageMaker runs no training job for more than {MAX_HOURS} h (28 days)."
            " Give at most that, and go on with `resubmit`, or train on more or faster GPUs."
        )
    if job.max_wait_hours is None:
        return
    if not math.isfinite(job.max_wait_hours) or job.max_wait_hours < job.max_hours:
        raise InputError(
            f"--max-wait-hours is {job.max_wait_hours:g}, and --max-hours {job.max_hours:g}: it counts from the"
            " submission, training included; give more, such as twice as much."
        )


def check_spot(config: Mapping[str, Any], is_spot: bool) -> None:
    """An interrupted job without checkpoints begins at step 0, as often as it is interrupted."""
    if not is_spot:
        return
    every, is_enabled = config.get("checkpoint_every"), config.get("trainer", {}).get("enable_checkpointing")
    if every == "never" or is_enabled is False:
        option = "checkpoint_every is never" if every == "never" else "trainer.enable_checkpointing is false"
        raise InputError(
            f"--spot: {option}, so an interruption would lose all of the training; leave that out, or train on demand"
            " (without --spot)."
        )


def check_budget(job: Job, budget: float | None) -> None:
    """Against the most that it can cost: all of --max-hours, at the on-demand price also on spot. Disks are extra."""
    if budget is None:
        return
    price = on_demand(job.instance_type, job.region)
    bound = training_usd(job.max_hours * 3600, job.count, price.usd_per_hour)
    if bound > budget:
        affordable = math.floor(100 * job.max_hours * budget / bound) / 100
        raise InputError(
            f"--budget is ${budget:g}, but the job may cost up to ${bound:.2f}: an upper bound, --max-hours"
            f" {job.max_hours:g} x {job.count} {job.instance_type} x {price.described()}; one that ends earlier, or"
            f" runs on spot, costs less. Give --max-hours {affordable:g} or less, or a higher --budget."
        )


def check_no_other_job(job: Job, sagemaker: Any) -> None:
    """Two jobs of a run would write the same checkpoints."""
    pages = sagemaker.get_paginator("list_training_jobs")
    for status in ("InProgress", "Stopping"):
        with explained():
            found = list(pages.paginate(NameContains=job.run, StatusEquals=status))
        for other in (summary["TrainingJobName"] for page in found for summary in page["TrainingJobSummaries"]):
            if re.fullmatch(JOB_NAME.format(run=re.escape(job.run)), other):
                raise InputError(
                    f"--name: {other} of the run {job.run} is {status}, and two jobs would write the same checkpoints:"
                    f" give another --name, or `python -m w2v_lightning stop {other}` and wait until it has ended."
                )


# ---- what lies in S3 ------------------------------------------------------------------------------------------------


def check_storage(job: Job, s3: Any) -> None:
    """Buckets where SageMaker can use them, the data complete, and room for a copy.

    Raises:
        InputError: see above, or S3 refuses to say.
    """
    for option, uri in (("--output", job.output), ("--data", job.data)):
        bucket, _ = split_uri(option, uri)
        with explained():
            region = s3.head_bucket(Bucket=bucket)["BucketRegion"]
        if region != job.region:
            raise InputError(
                f"{option}: the bucket {bucket} is in {region} and the job would run in {job.region}; SageMaker wants"
                f" both in one region. Give --region {region}, or a bucket in {job.region}."
            )
    sizes = _sizes(s3, job.data)
    check_data(job, sizes)
    check_volume(job, sum(sizes.values()))


def split_uri(option: str, uri: str) -> tuple[str, str]:
    """Bucket and prefix, which may be empty and does not end in a slash."""
    found = S3_URI.fullmatch(uri or "")
    if not found:
        raise InputError(f"{option} must be an S3 URI such as s3://bucket/folder, found {uri!r}.")
    return found["bucket"], found["prefix"] or ""


def _sizes(s3: Any, uri: str) -> dict[str, int]:
    """Bytes of every object below a URI, by its name there."""
    bucket, prefix = split_uri("--data", uri)
    folder = f"{prefix}/" if prefix else ""
    with explained():
        pages = list(s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=folder))
    return {found["Key"].removeprefix(folder): found["Size"] for page in pages for found in page.get("Contents", [])}


def check_data(job: Job, sizes: Mapping[str, int]) -> None:
    """`sizes`: see `_sizes`. A manifest of every split that training reads has to be there, and more than manifests."""
    if not sizes:
        raise InputError(
            f"--data: there is nothing below {job.data}. Upload with `python -m w2v_lightning prepare CORPUS --out DIR"
            f" --to {job.data}`, or correct the URI."
        )
    data = job.config.get("data", {})
    missing = [
        split
        for split in (*data.get("train_splits", ()), *data.get("val_splits", ()))
        if not any(sizes.get(name) for name in _manifest_names(split, is_streamed=job.input_mode == "stream"))
    ]
    if missing:
        there = sorted(name for name in sizes if "/" not in name and name.endswith(MANIFEST_SUFFIXES))
        raise InputError(
            f"--data: {job.data} has no manifest of {listed(missing)}, which the config names; it has"
            f" {listed(there) or 'none at all'}. Prepare and upload these splits too, or change data.train_splits and"
            " data.val_splits."
        )
    if all(name.endswith(MANIFEST_SUFFIXES) for name in sizes):
        raise InputError(f"--data: {job.data} has manifests, but no audio: upload shards with `prepare ... --to`.")


def _manifest_names(split: str, is_streamed: bool) -> list[str]:
    """What `data.manifest.find_manifest` takes for a split; below a URL it does not look around."""
    if split.endswith(MANIFEST_SUFFIXES):
        return [split]
    return [split + suffix for suffix in MANIFEST_SUFFIXES[: 1 if is_streamed else None]]


def check_volume(job: Job, data_bytes: int) -> None:
    """File mode copies all data to the disk of every instance before training begins."""
    needed_gb = data_bytes / 1e9 + ROOM_GB
    if job.input_mode == "File" and needed_gb > job.volume_gb:
        raise InputError(
            f"--volume-gb is {job.volume_gb}, but the data are {data_bytes / 1e9:.1f} GB, copied in --input-mode File,"
            f" and models and checkpoints want {ROOM_GB}: give {needed_gb:.0f} or more, or --input-mode FastFile."
        )
