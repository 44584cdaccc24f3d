"""Launcher of this process (torchrun, mpirun or none), and the rank and world size that it set."""

import os
from collections.abc import Mapping
from typing import Literal

Launcher = Literal["torchrun", "mpirun", "none"]

# Our name -> variables that hold the value: first that of torchrun and smddprun, then that of mpirun.
VARIABLES = {
    "world_size": ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE"),
    "global_rank": ("RANK", "OMPI_COMM_WORLD_RANK"),
    "local_rank": ("LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"),
    "processes_per_host": ("LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE"),
}


def launcher_of(environ: Mapping[str, str] = os.environ) -> Launcher:
    """Return the launcher of this process, judging by its environment variables; "none": a user, or Lightning."""
    if "TORCHELASTIC_RUN_ID" in environ:
        return "torchrun"
    return "mpirun" if "OMPI_COMM_WORLD_RANK" in environ else "none"


def obstacle_to_restarts(environ: Mapping[str, str] = os.environ) -> str | None:
    """Return why torchrun's --max-restarts cannot work here and what to do about it; None if it can or is not set."""
    is_requested = int(environ.get("TORCHELASTIC_MAX_RESTARTS", 0)) > 0 and int(environ.get("WORLD_SIZE", 1)) > 1
    if not is_requested or environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    # github.com/pytorch/pytorch/issues 135712 and 182221; torch 2.11 has both.
    return (
        "--max-restarts: torchrun would give restarted processes the addresses of the previous ones, which no longer"
        " exist. Set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun on each host, with --rdzv-backend=c10d."
    )


def launched(name: str, environ: Mapping[str, str] = os.environ) -> int | None:
    """Return the value of one of VARIABLES as set by a launcher; None if no launcher started this process."""
    # Only the rank tells: Lightning itself sets some of the other variables.
    if not any(variable in environ for variable in VARIABLES["global_rank"]):
        return None
    return next((int(environ[variable]) for variable in VARIABLES[name] if variable in environ), None)
