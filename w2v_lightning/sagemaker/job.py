"""What a training job is made of, and where its things lie."""

from dataclasses import dataclass
from typing import Any, Literal

from w2v_lightning.strategies.backend import SMDDP_INSTANCE_TYPES

InputMode = Literal["FastFile", "File", "stream"]

CHANNEL = "data"  # of the training data, where it is mounted or copied: SM_CHANNEL_DATA in the container

PROJECT = {"project": "w2v_lightning"}  # the tag of all jobs that were submitted from here

# What the first rank prints as NAME=VALUE, for SageMaker's regular expressions.
METRICS = ("val_wer", "val_cer", "val_loss", "val_accuracy", "train_loss_per_char", "audio_s_per_s")


@dataclass(frozen=True)
class Job:
    """One run of `fit` on SageMaker. A resubmission has the same `run`, so it finds the checkpoints, and a new name.

    Args:
        run: name of the run, as in its S3 folder; letters, digits and hyphens.
        config: all options of `fit`, resolved, as --print_config prints them.
        instance_type: such as "ml.g4dn.12xlarge".
        count: instances.
        is_spot: managed spot training.
        max_hours: training is stopped after so long.
        max_wait_hours: waiting for spot capacity included; None on demand.
        region: such as "us-east-1".
        role: ARN of the execution role.
        data: S3 URI of prepared data, its manifests and shards.
        output: S3 URI under which every run has a folder.
        input_mode: how the data comes to the container: mounted, copied, or read from S3 by the loader.
        image: URI of the training image.
        volume_gb: disk of each instance.
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
        """S3 URI of all that belongs to the run."""
        return f"{self.output.rstrip('/')}/{self.run}"

    @property
    def checkpoints(self) -> str:
        """S3 URI that SageMaker keeps equal to /opt/ml/checkpoints, and restores it from."""
        return f"{self.folder}/checkpoints"

    @property
    def tensorboard(self) -> str:
        """S3 URI of the logs."""
        return f"{self.folder}/tensorboard"

    @property
    def tags(self) -> dict[str, str]:
        """What `list` and `cost` find the run's jobs by, and bills can be split by."""
        return PROJECT | {"run": self.run}

    @property
    def uses_mpirun(self) -> bool:
        """SMDDP was asked for, and works on this type of instance; torchrun would leave all-reduce to NCCL."""
        strategy = self.config.get("trainer", {}).get("strategy")
        if isinstance(strategy, dict):
            requested = strategy.get("init_args", {}).get("backend", "smddp")
            is_asked_for = strategy.get("class_path", "").endswith("SMDDPStrategy") and requested != "nccl"
        else:
            is_asked_for = strategy == "smddp"
        return is_asked_for and self.instance_type in SMDDP_INSTANCE_TYPES
