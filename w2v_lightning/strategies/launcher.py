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


def launched(name: str, environ: Mapping[str, str] = os.environ) -> int | None:
    """One of VARIABLES as a launcher has set it; None where none has started this process."""
    if not any(variable in environ for variable in VARIABLES["global_rank"]):  # Lightning sets some of the others
        return None
    return next((int(environ[variable]) for variable in VARIABLES[name] if variable in environ), None)
