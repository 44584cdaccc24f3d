"""Description of a training job, and where its files are."""

from dataclasses import dataclass
from typing import Any, Literal

from w2v_lightning.strategies.backend import SMDDP_INSTANCE_TYPES

InputMode = Literal["FastFile", "File", "stream"]

CHANNEL = "data"  # name of the input channel of the training data; SM_CHANNEL_DATA is its folder in the container

PROJECT = {"project": "w2v_lightning"}  # tag of all jobs that this package submits

# Names of the metrics that rank 0 prints as NAME=VALUE, for SageMaker's regular expressions.
METRICS = ("val_wer", "val_cer", "val_loss", "val_accuracy", "train_loss_per_char", "audio_s_per_s")


@dataclass(frozen=True)
class Job:
    """Run of `fit` as a training job.

    A resubmission has the same `run`, and so the same checkpoints, but a new job name.

    Args:
        run: name of the run, as in its S3 folder; letters, digits and hyphens.
        config: all options of `fit`, resolved, as --print_config prints them.
        instance_type: SageMaker's name, such as "ml.g4dn.12xlarge".
        count: number of instances.
        is_spot: whether it is managed spot training.
        max_hours: hours after which training is stopped.
        max_wait_hours: largest number of hours of training and waiting for spot capacity; None on demand.
        region: AWS region, such as "us-east-1".
        role: ARN of the execution role.
        data: S3 URI of prepared data: manifests and shards.
        output: S3 URI under which every run has a folder.
        input_mode: access to the data: mounted ("FastFile"), copied ("File"), or read from S3 by the loader ("stream").
        image: URI of the training image.
        volume_gb: disk of each instance, in GB.
    """

    run: str
    config: dict[str, Any]
    instance_type: str
    count: int
    is_spot: bool
    max_hours: float
    max_wait_hours: float | None
    region: str
    role: str
    data: str
    output: str
    input_mode: InputMode
    image: str
    volume_gb: int

    @property
    def folder(self) -> str:
        """S3 URI of the run's folder."""
        return f"{self.output.rstrip('/')}/{self.run}"

    @property
    def checkpoints(self) -> str:
        """S3 URI of the checkpoints, which SageMaker synchronises with /opt/ml/checkpoints."""
        return f"{self.folder}/checkpoints"

    @property
    def tensorboard(self) -> str:
        """S3 URI of the TensorBoard logs."""
        return f"{self.folder}/tensorboard"

    @property
    def tags(self) -> dict[str, str]:
        """Tags of the run's jobs, for `list`, `cost` and cost allocation."""
        return PROJECT | {"run": self.run}

    @property
    def uses_mpirun(self) -> bool:
        """True if SMDDP is requested and works on this instance type; under torchrun, NCCL would do the all-reduce."""
        strategy = self.config.get("trainer", {}).get("strategy")
        if isinstance(strategy, dict):
            requested = strategy.get("init_args", {}).get("backend", "smddp")
            is_requested = strategy.get("class_path", "").endswith("SMDDPStrategy") and requested != "nccl"
        else:
            is_requested = strategy == "smddp"
        return is_requested and self.instance_type in SMDDP_INSTANCE_TYPES
