"""Summary of a job before it is submitted: instances, precision, data, checkpoints, time and cost."""

from w2v_lightning.catalog.cost import SPOT_SAVING_RANGE, training_usd
from w2v_lightning.catalog.images import SMDDP_TORCH
from w2v_lightning.catalog.instances import Instance, instance, nccl_environment
from w2v_lightning.catalog.model_sizes import size_warning
from w2v_lightning.catalog.prices import on_demand
from w2v_lightning.errors import InputError
from w2v_lightning.planner.checkpoint_interval import save_s
from w2v_lightning.sagemaker.expected_duration import expected_duration
from w2v_lightning.sagemaker.job import Job
from w2v_lightning.strategies.backend import Requested, choose_backend
from w2v_lightning.strategies.launcher import Launcher

MODES = {
    "FastFile": "mounted: read from S3 on demand",
    "File": "copied to each instance before training begins",
    "stream": "read from S3 by the loader itself",
}


def summary(job: Job, interruptions_per_instance_hour: float) -> str:
    """Return the summary, one line per topic."""
    machine = instance(job.instance_type)
    lines = {
        "run": f"{job.run}, in {job.folder}",
        "instances": _instances(job, machine),
        "model": size_warning(job.config["model"]),
        "precision": _precision(job, machine),
        "gradients": _gradients(job, machine),
        "NCCL": ", ".join(f"{name}={value}" for name, value in nccl_environment(machine, job.count).items()),
        "data": f"{job.data}, {MODES[job.input_mode]} ({job.input_mode})",
        "image": job.image,
        "checkpoints": _checkpoints(job, interruptions_per_instance_hour),
        "time": _time(job),
        "cost": _cost(job),
    }
    return "\n".join(f"{name:<12} {text}" for name, text in lines.items() if text)


def _instances(job: Job, machine: Instance) -> str:
    network = f"{machine.gbit_per_s:g} Gbit/s{' (EFA)' if machine.has_efa else ''}"
    gpus = f"{machine.gpus * job.count} x {machine.gpu_name} with {machine.gpu_gib} GiB"
    pricing = "managed spot" if job.is_spot else "on demand"
    return f"{job.count} x {machine.name}, {pricing}: {gpus}, {machine.vcpus} vCPUs and {network} each"


def _precision(job: Job, machine: Instance) -> str:
    if precision := job.config["trainer"].get("precision"):
        return f"{precision}, set by trainer.precision"
    gpu = f"{machine.gpu_name} (compute capability {machine.capability[0]}.{machine.capability[1]})"
    has_bfloat16 = "computes in" if machine.precision.startswith("bf16") else "has no"
    return f"{machine.precision}: {gpu} {has_bfloat16} bfloat16"


def _gradients(job: Job, machine: Instance) -> str:
    if machine.gpus * job.count == 1:
        return "one GPU: no exchange"
    launcher: Launcher = "mpirun" if job.uses_mpirun else "torchrun"
    requested: Requested = "nccl" if job.config["trainer"].get("strategy") == "ddp" else "auto"
    backend, reason = choose_backend(job.instance_type, launcher, job.uses_mpirun, requested)
    if job.uses_mpirun:
        reason = f"if the image has SMDDP, otherwise NCCL; AWS's images have it up to torch {SMDDP_TORCH}"
    return f"{backend}, processes started by {launcher}: {reason}"


def _checkpoints(job: Job, rate: float) -> str:
    text = f"every {job.config['checkpoint_every']}, to {job.checkpoints}"
    if not job.is_spot:
        return text
    every_h = 1 / (rate * job.count)
    return f"{text}; a save takes about {save_s(job.config):.0f} s, and one interruption in {every_h:g} h is assumed"


def _time(job: Job) -> str:
    waiting = f", {job.max_wait_hours:g} h including the wait for spot capacity" if job.is_spot else ""
    return f"at most {job.max_hours:g} h of training{waiting}; {_expected(job)}"


def _expected(job: Job) -> str:
    try:
        expected = expected_duration(job)
    except InputError as error:
        return f"expected duration unknown: {str(error).rstrip('.')}"
    too_long = "; MORE THAN --max_hours" if expected.p90_h > job.max_hours else ""
    return f"expected: {expected}{too_long}"


def _cost(job: Job) -> str:
    try:
        price = on_demand(job.instance_type, job.region)
    except InputError as error:
        return f"unknown: {error}"
    most = training_usd(job.max_hours * 3600, job.count, price.most_usd_per_hour)
    if not job.is_spot:
        return f"${most:.2f} at most, at {price.described()}"
    low, high = (most * (1 - saving) for saving in reversed(SPOT_SAVING_RANGE))
    return f"${low:.2f} to ${high:.2f} on spot for all of --max_hours, ${most:.2f} at most, at {price.described()}"
