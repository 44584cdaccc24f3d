"""Which library carries gradients between devices: SMDDP where it can work, NCCL everywhere else."""

from importlib.util import find_spec
from typing import Literal

from w2v_lightning.strategies.launcher import Launcher

Requested = Literal["auto", "smddp", "nccl"]

# All that AWS's library for data parallelism was ever made for: A100 or V100 with EFA. g4dn, g5, g6 and p5 are not.
SMDDP_INSTANCE_TYPES = ("ml.p3dn.24xlarge", "ml.p4d.24xlarge", "ml.p4de.24xlarge")
SMDDP_MODULE = "smdistributed.dataparallel.torch.torch_smddp"  # importing it registers the backend with torch


def choose_backend(
    instance_type: str | None, launcher: Launcher, library: bool, requested: Requested
) -> tuple[Literal["smddp", "nccl"], str]:
    """The backend, and why, in words that a user can act on.

    Args:
        instance_type: SageMaker's name, such as "ml.p4d.24xlarge"; None off SageMaker.
        launcher: what started the processes; smddprun is mpirun with settings.
        library: is SMDDP installed?
        requested: "auto" and "smddp" both take SMDDP where it can work.
    """
    if requested == "nccl":
        return "nccl", "NCCL was asked for"
    obstacles = _obstacles(instance_type, launcher, library)
    if obstacles:
        return "nccl", "; ".join(obstacles)
    return "smddp", f"{instance_type}, started with mpirun and with SMDDP installed"


def _obstacles(instance_type: str | None, launcher: Launcher, library: bool) -> list[str]:
    """What keeps SMDDP from working. Another instance type comes first: without it the rest is of no use."""
    if instance_type not in SMDDP_INSTANCE_TYPES:
        here = f"not on {instance_type}" if instance_type else "and this is no SageMaker instance"
        return [f"SMDDP works on {', '.join(SMDDP_INSTANCE_TYPES)} only, {here}"]
    obstacles = []
    if not library:
        obstacles.append(
            "SMDDP is not installed (no module smdistributed.dataparallel); AWS's PyTorch images have it up to 2.5.1"
        )
    if launcher == "torchrun":
        obstacles.append("under torchrun SMDDP leaves all-reduce to NCCL; start with mpirun (smddprun)")
    elif launcher == "none":
        obstacles.append("SMDDP wants its processes started with mpirun (smddprun)")
    return obstacles


def has_smddp() -> bool:
    """Is SMDDP installed? It is not imported: that would start it."""
    try:
        return find_spec(SMDDP_MODULE.rpartition(".torch.")[0]) is not None
    except ModuleNotFoundError:
        return False
