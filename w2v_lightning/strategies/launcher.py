"""What started this process, and as which of how many: torchrun, mpirun, or nobody but the user."""

import os
from collections.abc import Mapping
from typing import Literal

Launcher = Literal["torchrun", "mpirun", "none"]

# Our name: what torchrun and smddprun set, or else what mpirun does.
VARIABLES = {
    "world_size": ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE"),
    "global_rank": ("RANK", "OMPI_COMM_WORLD_RANK"),
    "local_rank": ("LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"),
    "processes_per_host": ("LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE"),
}


def launcher_of(environ: Mapping[str, str] = os.environ) -> Launcher:
    """What started this process, by the variables it leaves. "none": a user, or Lightning, which starts some itself."""
    if "TORCHELASTIC_RUN_ID" in environ:
        return "torchrun"
    return "mpirun" if "OMPI_COMM_WORLD_RANK" in environ else "none"


def obstacle_to_restarts(environ: Mapping[str, str] = os.environ) -> str | None:
    """Why torchrun cannot start the processes again, as it was asked to, in words that a user can act on."""
    is_asked_to = int(environ.get("TORCHELASTIC_MAX_RESTARTS", 0)) > 0 and int(environ.get("WORLD_SIZE", 1)) > 1
    if not is_asked_to or environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    # github.com/pytorch/pytorch/issues 135712 and 182221; torch 2.11 has both.
    return (
        "--max-restarts: torchrun would give new processes the addresses of those before, which are gone. Set"
        " TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun on each host, with --rdzv-backend=c10d."
    )


def launched(name: str, environ: Mapping[str, str] = os.environ) -> int | None:
    """One of VARIABLES as a launcher has set it; None where none has started this process."""
    if not any(variable in environ for variable in VARIABLES["global_rank"]):  # Lightning sets some of the others
        return None
    return next((int(environ[variable]) for variable in VARIABLES[name] if variable in environ), None)
