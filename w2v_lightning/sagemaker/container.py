"""Program of a training job: torchrun (or mpirun) on every host, and `fit` with SageMaker's folders in each process.

A preempted job must not exit with status 0, because SageMaker would take that for a trained model. The status does not
matter otherwise: after a spot interruption the service restarts the job anyway, and after a stop the job is Stopped.
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
from w2v_lightning.sagemaker import failure_file
from w2v_lightning.sagemaker.bundle import CONFIG
from w2v_lightning.sagemaker.job import CHANNEL, Job

CHECKPOINTS = "/opt/ml/checkpoints"  # restored from S3 when the container starts, and uploaded as it changes
TENSORBOARD = "/opt/ml/output/tensorboard"  # uploaded as it changes
PORT = 7777
SHUTDOWN_S = 100  # seconds from SIGTERM to SIGKILL; SageMaker itself kills after 120 s
CALLBACKS = ("MetricLines", "ModelHandover")


def command(job: Job) -> str:
    """Return the command that bash runs on every host, in the bundle's folder, with SageMaker's variables set.

    `exec` makes the launcher the container's first process, the only one that receives SIGTERM. torchrun kills its
    workers some time after SIGTERM. From torch 2.13 on this time can be set, by an option, which earlier versions
    reject, or by an environment variable, which earlier versions ignore; they kill after 30 s.
    """
    if job.uses_mpirun:
        return "exec $SM_PYTHON_CMD -m w2v_lightning.sagemaker.mpirun"
    # A single host need not resolve its own name.
    address = "$SM_MASTER_ADDR" if job.count > 1 else "127.0.0.1"
    return (
        f"TORCH_ELASTIC_SHUTDOWN_TIMEOUT={SHUTDOWN_S} exec torchrun"
        " --nnodes=$SM_HOST_COUNT --node_rank=$SM_CURRENT_HOST_RANK"
        f" --master_addr={address} --master_port={PORT}"
        " --nproc_per_node=${SM_NUM_GPUS/#0/1}"  # one process on a host without GPU
        " -m w2v_lightning.sagemaker.container"
    )


def main(environ: Mapping[str, str] = os.environ) -> int:
    """Train in this process; return its exit status. The failure file gets the reason of any other end."""
    who = f"{environ.get('SM_CURRENT_HOST', 'host')}, rank {environ.get('RANK', '0')}"
    try:
        signals.sigterm.start()
        _fit(environ)
    except BaseException as error:
        if reason := failure_file.reason(error, who):
            failure_file.write(reason, Path(environ["SM_OUTPUT_FAILURE"]))
        if not isinstance(error, InputError):
            raise
        print(f"error: {error.line}", file=sys.stderr)
        return 2
    signals.sigterm.stop()
    return 0


def _fit(environ: Mapping[str, str]) -> None:
    from w2v_lightning import cli  # takes seconds, so it must follow sigterm.start()

    check_gpus(environ)
    config = yaml.safe_load(Path(CONFIG).read_text(encoding="utf-8"))
    cli.main(fit_args(config, environ.get(f"SM_CHANNEL_{CHANNEL.upper()}"), resume_option(config, Path(CHECKPOINTS))))


def check_gpus(environ: Mapping[str, str]) -> None:
    """Check that torch sees all GPUs of the instance; otherwise `fit` would silently train on the CPU.

    Raises:
        InputError: torch sees fewer GPUs than the instance type has.
    """
    import torch

    name = environ.get("SM_CURRENT_INSTANCE_TYPE", "")
    promised = INSTANCES[name].gpus if name in INSTANCES else int(environ.get("SM_NUM_GPUS", 0))
    visible = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if visible < promised:
        raise InputError(
            f"{name} has {promised} GPU(s), torch {torch.__version__} sees {visible}: the CUDA of the image (--image)"
            " may be too new for the driver of the instance, or it is an image for CPUs."
        )


def fit_args(config: Mapping[str, Any], data: str | None, resume: str) -> list[str]:
    """Return the command line of `fit`; options after the config override it.

    Args:
        config: config of the run, as in the bundle.
        data: folder of the mounted or copied data; None: the loader reads config["data"]["root"] from S3.
        resume: value of the option `resume` of `fit`.
    """
    options = {"data.root": data or config["data"]["root"], "checkpoint.dirpath": CHECKPOINTS, "resume": resume}
    options |= {"ckpt_path": "null", "trainer.default_root_dir": TENSORBOARD}
    args = ["fit", "--config", CONFIG, *(f"--{name}={value}" for name, value in options.items())]
    return args + [f"--trainer.callbacks+=w2v_lightning.sagemaker.container_callbacks.{name}" for name in CALLBACKS]


def resume_option(config: Mapping[str, Any], folder: Path) -> str:
    """Return the value of the option `resume` of `fit`.

    If the run has ended but its container was lost before the model was uploaded, it is the newest checkpoint, so that
    the model is exported again. Otherwise it is the checkpoint that the config starts from, or "auto": with both, an
    interrupted run resumes from its own newest checkpoint, and a run that has ended would only report that.
    """
    from w2v_lightning.checkpoints.history import finished_segment, limits_of
    from w2v_lightning.checkpoints.resume import choose

    has_ended = finished_segment(str(folder), limits_of(config["trainer"]))
    given = config.get("ckpt_path") or config.get("resume")
    start = "auto" if given is None or given in ("last", "must", "never") else str(given)
    return (choose("auto", str(folder)) if has_ended else None) or start


if __name__ == "__main__":
    sys.exit(main())
