"""Choice of the communication backend for gradients: SMDDP where it can work, NCCL everywhere else."""

from importlib.util import find_spec
from typing import Literal

from w2v_lightning.strategies.launcher import Launcher

Requested = Literal["auto", "smddp", "nccl"]

# The only instance types that AWS's data parallel library supports: A100 or V100 with EFA. g4dn, g5, g6 and p5 are not.
SMDDP_INSTANCE_TYPES = ("ml.p3dn.24xlarge", "ml.p4d.24xlarge", "ml.p4de.24xlarge")
SMDDP_MODULE = "smdistributed.dataparallel.torch.torch_smddp"  # importing it registers the backend with torch


def choose_backend(
    instance_type: str | None, launcher: Launcher, library: bool, requested: Requested
) -> tuple[Literal["smddp", "nccl"], str]:
    """Return the backend and a reason that tells the user what to change.

    Args:
        instance_type: SageMaker's name, such as "ml.p4d.24xlarge"; None outside SageMaker.
        launcher: program that started the processes; smddprun is mpirun with settings.
        library: True if SMDDP is installed.
        requested: "auto" and "smddp" both choose SMDDP where it can work.
    """
    if requested == "nccl":
        return "nccl", "NCCL was requested"
    obstacles = _obstacles(instance_type, launcher, library)
    if obstacles:
        return "nccl", "; ".join(obstacles)
    return "smddp", f"{instance_type}, started with mpirun and with SMDDP installed"


def _obstacles(instance_type: str | None, launcher: Launcher, library: bool) -> list[str]:
    """Reasons why SMDDP cannot work. An unsupported instance type is reported alone: nothing else would help."""
    if instance_type not in SMDDP_INSTANCE_TYPES:
        here = f"not on {instance_type}" if instance_type else "and this is not a SageMaker instance"
        return [f"SMDDP works on {', '.join(SMDDP_INSTANCE_TYPES)} only, {here}"]
    obstacles = []
    if not library:
        obstacles.append(
            "SMDDP is not installed (no module smdistributed.dataparallel); AWS's image of PyTorch 2.5.1 is the last"
            " that contains it (docs/smddp.md)"
        )
    if launcher == "torchrun":
        obstacles.append("under torchrun SMDDP leaves all-reduce to NCCL; start the processes with mpirun (smddprun)")
    elif launcher == "none":
        obstacles.append("SMDDP requires processes started with mpirun (smddprun)")
    return obstacles


def has_smddp() -> bool:
    """Return True if SMDDP is installed. It is not imported, because the import would start it."""
    try:
        return find_spec(SMDDP_MODULE.rpartition(".torch.")[0]) is not None
    except ModuleNotFoundError:
        return False
