"""What a training job runs: torchrun (or mpirun) on every host, and `fit` in each process, told where SageMaker has
its things.

A job that is preempted does not end with status 0, which to SageMaker means that there is a model: after a spot
interruption the service starts it again whatever the status was, and after a stop the job is Stopped.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from w2v_lightning.catalog.instances import INSTANCES
from w2v_lightning.errors import InputError
from w2v_lightning.runtime import signals
from w2v_lightning.sagemaker import failure
from w2v_lightning.sagemaker.bundle import CONFIG
from w2v_lightning.sagemaker.job import CHANNEL, Job

CHECKPOINTS = "/opt/ml/checkpoints"  # restored from S3 when the container starts, and uploaded as it changes
TENSORBOARD = "/opt/ml/output/tensorboard"  # uploaded as it changes
PORT = 7777
SHUTDOWN_S = 100  # from SIGTERM to SIGKILL; SageMaker itself kills after 120 s
CALLBACKS = ("MetricLines", "ModelHandover")


def command(job: Job) -> str:
    """What bash runs on every host, in the bundle's folder, after SageMaker's variables are set.

    By `exec`, so that the launcher becomes the container's first process, the only one that is sent SIGTERM. torch
    has an option for the time until SIGKILL from 2.13 on, and refuses it before; the variable is heard or ignored.
    Before 2.13 it is 30 s.
    """
    if job.uses_mpirun:
        return "exec $SM_PYTHON_CMD -m w2v_lightning.sagemaker.mpirun"
    # A single host need not resolve its own name.
    address = "$SM_MASTER_ADDR" if job.count > 1 else "127.0.0.1"
    return (
        f"TORCH_ELASTIC_SHUTDOWN_TIMEOUT={SHUTDOWN_S} exec torchrun"
        " --nnodes=$SM_HOST_COUNT --node_rank=$SM_CURRENT_HOST_RANK"
        f" --master_addr={address} --master_port={PORT}"
        " --nproc_per_node=${SM_NUM_GPUS/#0/1}"  # one process where there is no GPU
        " -m w2v_lightning.sagemaker.container"
    )


def main(environ: Mapping[str, str] = os.environ) -> int:
    """Train in this process; returns its exit status. What ends it otherwise is written to the failure file."""
    who = f"{environ.get('SM_CURRENT_HOST', 'host')}, rank {environ.get('RANK', '0')}"
    try:
        signals.watch.start()
        _fit(environ)
    except BaseException as error:
        if reason := failure.reason(error, who):
            failure.write(reason, Path(environ["SM_OUTPUT_FAILURE"]))
        if not isinstance(error, InputError):
            raise
        print(f"error: {error.line}", file=sys.stderr)
        return 2
    signals.watch.stop()
    return 0


def _fit(environ: Mapping[str, str]) -> None:
    from w2v_lightning import cli  # not before SIGTERM is listened to: it takes seconds

    check_gpus(environ)
    config = yaml.safe_load(Path(CONFIG).read_text(encoding="utf-8"))
    cli.main(fit_args(config, environ.get(f"SM_CHANNEL_{CHANNEL.upper()}"), resume(config, Path(CHECKPOINTS))))


def check_gpus(environ: Mapping[str, str]) -> None:
    """All GPUs that are paid for can be used; otherwise `fit` would take the CPU without a word.

    Raises:
        InputError: torch sees fewer than the instance type has.
    """
    import torch

    name = environ.get("SM_CURRENT_INSTANCE_TYPE", "")
    promised = INSTANCES[name].gpus if name in INSTANCES else int(environ.get("SM_NUM_GPUS", 0))
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if found < promised:
        raise InputError(
            f"{name} has {promised} GPU(s), torch {torch.__version__} sees {found}: the CUDA of the image (--image) may"
            " be too new for the driver of the instance, or it is an image for CPUs."
        )


def fit_args(config: Mapping[str, Any], data: str | None, resume: str) -> list[str]:
    """The options of `fit`, of which the last of a name counts.

    Args:
        config: of the run, as in the bundle.
        data: where the data is mounted; None where it is read from S3, as config says.
        resume: as of `fit`.
    """
    options = {"data.root": data or config["data"]["root"], "checkpoint.dirpath": CHECKPOINTS, "resume": resume}
    options |= {"ckpt_path": "null", "trainer.default_root_dir": TENSORBOARD}
    args = ["fit", "--config", CONFIG, *(f"--{name}={value}" for name, value in options.items())]
    return args + [f"--trainer.callbacks+=w2v_lightning.sagemaker.container_callbacks.{name}" for name in CALLBACKS]


def resume(config: Mapping[str, Any], folder: Path) -> str:
    """The newest checkpoint where the run has ended but its container was lost with the model: then that is exported
    again. Otherwise the one that the config begins from, or "auto": under both, such a run would only say that it has
    ended, and one that was interrupted goes on.
    """
    from w2v_lightning.checkpoints.history import finished, limits_of
    from w2v_lightning.checkpoints.resume import choose

    has_ended = finished(str(folder), limits_of(config["trainer"]))
    asked = config.get("ckpt_path") or config.get("resume")
    begins_from = "auto" if asked in (None, "last", "must", "never") else asked
    return (has_ended and choose("auto", str(folder), {})) or begins_from


if __name__ == "__main__":
    sys.exit(main())
