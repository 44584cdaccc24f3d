"""Checks of a job before it costs money. Each error names the option, its value and the remedy."""

import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from w2v_lightning.catalog import images
from w2v_lightning.catalog.cost import training_usd
from w2v_lightning.catalog.defaults import MAX_HOURS
from w2v_lightning.catalog.instances import Instance, instance, precision_of
from w2v_lightning.catalog.prices import on_demand
from w2v_lightning.data.manifest import MANIFEST_SUFFIXES
from w2v_lightning.errors import InputError, listed
from w2v_lightning.planner.memory import shards_weights
from w2v_lightning.sagemaker import config_checks
from w2v_lightning.sagemaker.aws_errors import explain_aws_errors
from w2v_lightning.sagemaker.job import Job

ROLE = re.compile(r"arn:aws(-[a-z-]+)?:iam::\d{12}:role/[\w+=,.@/-]+")
JOB_NAME = r"{run}-[0-9a-f]{{6}}-\d{{14}}"  # see request.py
S3_URI = re.compile(r"s3://(?P<bucket>[a-z0-9][a-z0-9.-]+)(?:/(?P<prefix>.*?))?/*")
NEEDS_NETWORK = "the regions of the buckets, the data in S3, whether they fit the disk, other jobs of the run"
# Room on the disk beside the data, in GB: the two latest checkpoints of a large model and its best one (3.8 GB each),
# and the exported model.
ROOM_GB = 20


def check(job: Job, clients: Callable[[str], Any], *, budget: float | None, is_dry_run: bool) -> None:
    """Run all checks, the cheapest first.

    Args:
        job: job that is about to be submitted.
        clients: function that returns the boto client of a service, such as "s3".
        budget: largest cost in USD; None: no limit.
        is_dry_run: use no network, and list the skipped checks on standard error.

    Raises:
        InputError: the job would fail, or may cost more than the budget.
    """
    check_offline(job, budget)
    if is_dry_run:
        print(f"Not checked, because a dry run uses no network: {NEEDS_NETWORK}.", file=sys.stderr)
    else:
        check_storage(job, clients("s3"))
        check_no_other_job(job, clients("sagemaker"))


def check_offline(job: Job, budget: float | None) -> None:
    """Run the checks that need no network: all but NEEDS_NETWORK."""
    check_role(job.role)
    split_uri("--data", job.data)
    check_image(job, instance(job.instance_type))
    check_hours(job)
    check_config(job.config, instance(job.instance_type), job.count, job.is_spot)
    check_budget(job, budget)
    config_checks.check(job.config)


def check_role(role: str) -> None:
    """Check that the role is an ARN."""
    if not ROLE.fullmatch(role or ""):
        problem = f"is {role!r}, which is not the ARN of a role" if role else "is missing"
        raise InputError(
            f"--role {problem}. Training runs as a role that may read the data and write the output"
            " (docs/sagemaker.md creates one); give its ARN, such as arn:aws:iam::123456789012:role/w2v-training."
        )


def check_image(job: Job, machine: Instance) -> None:
    """Check that the CUDA of the image supports the GPUs."""
    if reason := images.obstacle(job.image, machine):
        raise InputError(
            f"--instance_type {machine.name}: {reason}. Choose another type, such as ml.g4dn.xlarge or ml.g5.xlarge, or"
            " give the --image of a torch that was built with CUDA 12.6."
        )
    if job.uses_mpirun and (reason := images.obstacle_to_smddp(job.image)):
        raise InputError(
            f"--image: {reason} (docs/smddp.md). For SMDDP give"
            f" --image {images.image_uri(images.SMDDP_TORCH, job.region)}; for NCCL set trainer.strategy=ddp."
        )


def check_config(config: Mapping[str, Any], machine: Instance, count: int, is_spot: bool) -> None:
    """Check that `fit` can train with this config on these instances.

    Raises:
        InputError: an option of the config does not fit the instances.
    """
    check_gpus(config, machine, count)
    check_trainer_precision(config)
    check_sharing(config, machine)
    check_spot(config, is_spot)


def check_gpus(config: Mapping[str, Any], machine: Instance, count: int) -> None:
    """Check that the config's devices and hosts are those of the job, which starts one process for each GPU."""
    if count < 1:
        raise InputError(f"--count is {count}, must be at least 1.")
    trainer = config.get("trainer", {})
    devices, hosts, accelerator = (
        trainer.get(name, default) for name, default in (("devices", "auto"), ("num_nodes", 1), ("accelerator", "auto"))
    )
    if _device_count(devices) not in (None, machine.gpus):
        raise InputError(
            f"trainer.devices is {devices!r}, but {machine.name} has {machine.gpus} GPU(s): leave it out, or choose an"
            f" --instance_type with {_device_count(devices)}."
        )
    if hosts not in (1, count):
        raise InputError(f"trainer.num_nodes is {hosts}, but --count is {count}: leave it out, --count sets it.")
    if accelerator not in ("auto", "gpu", "cuda"):
        raise InputError(
            f"trainer.accelerator is {accelerator!r}: {machine.gpus * count} GPU(s) would be paid for but idle;"
            " leave it out."
        )


def _device_count(devices: int | str | Sequence[int]) -> int | None:
    """Return the number of devices that Lightning would use; None: all."""
    if devices in ("auto", -1, "-1"):
        return None
    if isinstance(devices, int):
        return devices
    if not isinstance(devices, str):
        return len(devices)
    parts = [part.strip() for part in devices.split(",") if part.strip()]
    if not all(part.isdigit() for part in parts):
        raise InputError(f"trainer.devices is {devices!r}: give a number of GPUs, or leave it out.")
    return len(parts) if "," in devices else int(devices)


def check_trainer_precision(config: Mapping[str, Any]) -> None:
    """Check a given trainer.precision as `fit` does, but before instances are paid for."""
    if precision := config.get("trainer", {}).get("precision"):
        from w2v_lightning.runtime.precision import check_precision  # imports torch

        check_precision(precision)


def check_sharing(config: Mapping[str, Any], machine: Instance) -> None:
    """Check the options that FSDP2 restricts as `fit` does, but before instances are paid for."""
    if not shards_weights(config):
        return
    from w2v_lightning.checkpoints.recent import Interval  # slow to import

    every = config.get("checkpoint_every")
    if precision_of(config, machine) == "16-mixed":
        is_given = config["trainer"].get("precision")
        source = "the value given" if is_given else f"the default on the {machine.gpu_name}s of {machine.name}"
        raise InputError(
            f"trainer.strategy fsdp2 does not support trainer.precision 16-mixed, {source}; set it to 32-true or"
            " bf16-mixed."
        )
    if every and Interval.parse(every).seconds:
        raise InputError(
            f"trainer.strategy fsdp2: checkpoint_every is {every}, a time, but ranks with sharded weights must save at"
            ' the same step: give steps, such as --checkpoint_every "500 steps".'
        )


def check_hours(job: Job) -> None:
    """Check the limits of the job's duration."""
    if not round(job.max_hours * 3600 if math.isfinite(job.max_hours) else 0) > 0:
        raise InputError(
            f"--max_hours is {job.max_hours:g}: give the hours after which training is stopped, at least 1 second."
        )
    if job.max_hours > MAX_HOURS:
        raise InputError(
            f"--max_hours is {job.max_hours:g}: SageMaker limits training jobs to {MAX_HOURS} h (28 days). Give at most"
            " that and resume with `resubmit`, or train on more or faster GPUs."
        )
    if job.max_wait_hours is None:
        return
    if not math.isfinite(job.max_wait_hours) or job.max_wait_hours < job.max_hours:
        raise InputError(
            f"--max_wait_hours is {job.max_wait_hours:g}, and --max_hours {job.max_hours:g}: the first includes the"
            " second and the wait for capacity, so it must be at least as large; give more, such as twice as much."
        )


def check_spot(config: Mapping[str, Any], is_spot: bool) -> None:
    """Check that a spot job saves checkpoints; without them each interruption restarts it at step 0."""
    if not is_spot:
        return
    every, is_enabled = config.get("checkpoint_every"), config.get("trainer", {}).get("enable_checkpointing")
    if every == "never" or is_enabled is False:
        option = "checkpoint_every is never" if every == "never" else "trainer.enable_checkpointing is false"
        raise InputError(
            f"--spot: {option}, so an interruption would lose all of the training; remove that option, or train on"
            " demand (without --spot)."
        )


def check_budget(job: Job, budget: float | None) -> None:
    """Check the budget against the upper bound: --max_hours at the on-demand price, also on spot, without disks."""
    if budget is None:
        return
    price = on_demand(job.instance_type, job.region)
    bound = training_usd(job.max_hours * 3600, job.count, price.most_usd_per_hour)
    if bound > budget:
        affordable = math.floor(100 * job.max_hours * budget / bound) / 100
        raise InputError(
            f"--budget is ${budget:g}, but the job may cost up to ${bound:.2f}: an upper bound, --max_hours"
            f" {job.max_hours:g} x {job.count} {job.instance_type} x {price.described()}; a job that ends earlier, or"
            f" runs on spot, costs less. Give --max_hours {affordable:g} or less, or a higher --budget."
        )


def check_no_other_job(job: Job, sagemaker: Any) -> None:
    """Check that no job of the same run is active; two jobs would write the same checkpoints."""
    paginator = sagemaker.get_paginator("list_training_jobs")
    for status in ("InProgress", "Stopping"):
        with explain_aws_errors():
            pages = list(paginator.paginate(NameContains=job.run, StatusEquals=status))
        for name in (summary["TrainingJobName"] for page in pages for summary in page["TrainingJobSummaries"]):
            if re.fullmatch(JOB_NAME.format(run=re.escape(job.run)), name):
                raise InputError(
                    f"--name: job {name} of run {job.run} is {status}, and two jobs would write the same checkpoints:"
                    f" give another --name, or `python -m w2v_lightning stop {name}` and wait until it has ended."
                )


# ---- buckets and data in S3 -----------------------------------------------------------------------------------------


def check_storage(job: Job, s3: Any) -> None:
    """Check that the buckets are in the job's region, the data are complete, and a copy fits the disk.

    Raises:
        InputError: a check fails, or S3 refuses a request.
    """
    for option, uri in (("--output", job.output), ("--data", job.data)):
        bucket, _ = split_uri(option, uri)
        with explain_aws_errors():
            region = s3.head_bucket(Bucket=bucket)["BucketRegion"]
        if region != job.region:
            raise InputError(
                f"{option}: the bucket {bucket} is in {region} and the job would run in {job.region}; SageMaker needs"
                f" both in one region. Give --region {region}, or a bucket in {job.region}."
            )
    sizes = _sizes(s3, job.data)
    check_data(job, sizes)
    check_volume(job, sum(sizes.values()))


def split_uri(option: str, uri: str) -> tuple[str, str]:
    """Return bucket and prefix of an S3 URI; the prefix may be empty and does not end in a slash.

    Raises:
        InputError: the value of `option` is not an S3 URI.
    """
    match = S3_URI.fullmatch(uri or "")
    if not match:
        raise InputError(f"{option} is {uri!r}, must be an S3 URI such as s3://bucket/folder.")
    return match["bucket"], match["prefix"] or ""


def _sizes(s3: Any, uri: str) -> dict[str, int]:
    """Return the bytes of every object below a URI, by its name relative to the URI."""
    bucket, prefix = split_uri("--data", uri)
    folder = f"{prefix}/" if prefix else ""
    with explain_aws_errors():
        pages = list(s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=folder))
    return {item["Key"].removeprefix(folder): item["Size"] for page in pages for item in page.get("Contents", [])}


def check_data(job: Job, sizes: Mapping[str, int]) -> None:
    """Check that the data have a manifest of each split for training and validation, and audio.

    Args:
        job: job that is about to be submitted.
        sizes: bytes of every object below job.data, by its name relative to it.

    Raises:
        InputError: something is missing.
    """
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
        manifests = sorted(name for name in sizes if "/" not in name and name.endswith(MANIFEST_SUFFIXES))
        raise InputError(
            f"--data: {job.data} has no manifest of {listed(missing)}, which the config names; its manifests are"
            f" {listed(manifests) or 'none'}. Prepare and upload these splits too, or change data.train_splits and"
            " data.val_splits."
        )
    if all(name.endswith(MANIFEST_SUFFIXES) for name in sizes):
        raise InputError(f"--data: {job.data} has manifests, but no audio: upload shards with `prepare ... --to`.")


def _manifest_names(split: str, is_streamed: bool) -> list[str]:
    """Return the file names that `data.manifest.find_manifest` accepts for a split; below a URL, only the first."""
    if split.endswith(MANIFEST_SUFFIXES):
        return [split]
    return [split + suffix for suffix in MANIFEST_SUFFIXES[: 1 if is_streamed else None]]


def check_volume(job: Job, data_bytes: int) -> None:
    """Check that all data fit the disk of each instance, to which the input mode File copies them."""
    needed_gb = data_bytes / 1e9 + ROOM_GB
    if job.input_mode == "File" and needed_gb > job.volume_gb:
        raise InputError(
            f"--volume_gb is {job.volume_gb}, but --input_mode File copies {data_bytes / 1e9:.1f} GB of data, and"
            f" models and checkpoints need {ROOM_GB} GB: give {needed_gb:.0f} or more, or --input_mode FastFile."
        )
