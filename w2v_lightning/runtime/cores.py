"""CPU cores that this process may use, and threads that leave them to others. Imports no torch: it comes before it."""

import math
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
# Each of these says how long a waiting thread spins: who sets one has decided.
SPINNING = ("OMP_WAIT_POLICY", "KMP_BLOCKTIME", "GOMP_SPINCOUNT")


def share_cores() -> None:
    """Let waiting threads sleep, and start no more of them than this process has cores; call it before torch is loaded.

    OpenMP's threads spin while they wait for each other. If another process holds one of the cores, all the others spin
    until it is their turn again: training on a busy machine then stands almost still. OpenMP reads these environment
    variables when torch is loaded, and after that this function does nothing. What the user has set stays. Processes
    that this one starts inherit them.
    """
    if "torch" in sys.modules:
        return
    if not any(name in os.environ for name in SPINNING):
        os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
    if usable_cores() < _cores_by_affinity():  # OpenMP knows the affinity, but no quota
        os.environ.setdefault("OMP_NUM_THREADS", str(usable_cores()))


def usable_cores() -> int:
    """Number of CPU cores this process may use: those of its affinity, fewer if a cgroup's quota allows fewer."""
    quotas = [math.ceil(quota) for quota in _quotas()]
    return max(1, min([_cores_by_affinity(), *quotas]))


def _cores_by_affinity() -> int:
    has_affinity = hasattr(os, "sched_getaffinity")  # not on macOS
    return len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1


def _quotas() -> Iterator[float]:
    """Yield the CPU quotas, in cores, of this process' cgroup and of all that it lies in, of version 1 or 2."""
    try:
        lines = MEMBERSHIP.read_text().splitlines()
    except OSError:  # not on Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = CGROUPS / controllers if controllers else CGROUPS
        # In a container, the path may be the host's, and the container's own group is mounted at the root.
        for group in (PurePosixPath(path), *PurePosixPath(path).parents):
            with suppress(OSError, ValueError):  # no such file or no quota ("max")
                yield _quota(mount / group.relative_to("/"), is_unified=not controllers)


def _quota(folder: Path, is_unified: bool) -> float:
    """Return the quota in cores.

    Raises:
        OSError: the group has no quota file.
        ValueError: the group has no quota.
    """
    if is_unified:
        quota_us, period_us = map(int, (folder / "cpu.max").read_text().split())
    else:
        quota_us, period_us = (int((folder / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
    if quota_us <= 0:  # -1: none
        raise ValueError(f"{folder} has no quota")
    return quota_us / period_us
