"""Types of SageMaker training instances that have GPUs, and what NCCL is told on each."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from w2v_lightning.errors import InputError


@dataclass(frozen=True)
class Instance:
    """What one instance of a type has.

    Args:
        name: such as "ml.g4dn.12xlarge".
        gpus: how many.
        gpu_name: such as "T4".
        gpu_gib: memory of each GPU.
        capability: CUDA's compute capability of each GPU.
        vcpus: virtual CPUs.
        gib: memory of the host.
        gbit_per_s: of the network, sustained.
        has_efa: the network has AWS's Elastic Fabric Adapter.
    """

    name: str
    gpus: int
    gpu_name: str
    gpu_gib: int
    capability: tuple[int, int]
    vcpus: int
    gib: int
    gbit_per_s: float
    has_efa: bool

    @property
    def precision(self) -> str:
        """What will be chosen on the GPU: bfloat16 where there is any."""
        from w2v_lightning.runtime.precision import of_capability  # imports torch

        return of_capability(self.capability)

    @property
    def loader_workers(self) -> int:
        """What the data module will start for each GPU, unless data.num_workers says how many."""
        from w2v_lightning.runtime.hardware import loader_workers  # imports torch

        return loader_workers(self.vcpus, self.gpus)


LONG_NAMES = {"32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}  # of precisions: Lightning takes both

# GiB and compute capability.
GPUS = {
    "T4": (16, (7, 5)),
    "V100": (16, (7, 0)),
    "V100 32 GB": (32, (7, 0)),
    "A10G": (24, (8, 6)),
    "L4": (24, (8, 9)),
    "L40S": (48, (8, 9)),
    "A100": (40, (8, 0)),
    "A100 80 GB": (80, (8, 0)),
    "H100": (80, (9, 0)),
    "H200": (141, (9, 0)),
}

# Type, GPUs, vCPUs, GiB, Gbit/s, EFA. As EC2's describe-instance-types has them; p3's from AWS's page.
TABLE = """
g4dn.xlarge    1 T4            4   16    5   -
g4dn.2xlarge   1 T4            8   32   10   -
g4dn.4xlarge   1 T4           16   64   20   -
g4dn.8xlarge   1 T4           32  128   50 EFA
g4dn.12xlarge  4 T4           48  192   50 EFA
g4dn.16xlarge  1 T4           64  256   50 EFA
g5.xlarge      1 A10G          4   16  2.5   -
g5.2xlarge     1 A10G          8   32    5   -
g5.4xlarge     1 A10G         16   64   10   -
g5.8xlarge     1 A10G         32  128   25 EFA
g5.12xlarge    4 A10G         48  192   40 EFA
g5.16xlarge    1 A10G         64  256   25 EFA
g5.24xlarge    4 A10G         96  384   50 EFA
g5.48xlarge    8 A10G        192  768  100 EFA
g6.xlarge      1 L4            4   16  2.5   -
g6.2xlarge     1 L4            8   32    5   -
g6.4xlarge     1 L4           16   64   10   -
g6.8xlarge     1 L4           32  128   25 EFA
g6.12xlarge    4 L4           48  192   40 EFA
g6.16xlarge    1 L4           64  256   25 EFA
g6.24xlarge    4 L4           96  384   50 EFA
g6.48xlarge    8 L4          192  768  100 EFA
g6e.xlarge     1 L40S          4   32  2.5   -
g6e.2xlarge    1 L40S          8   64    5   -
g6e.4xlarge    1 L40S         16  128   20   -
g6e.8xlarge    1 L40S         32  256   25 EFA
g6e.12xlarge   4 L40S         48  384  100 EFA
g6e.16xlarge   1 L40S         64  512   35 EFA
g6e.24xlarge   4 L40S         96  768  200 EFA
g6e.48xlarge   8 L40S        192 1536  400 EFA
p3.2xlarge     1 V100          8   61  2.5   -
p3.8xlarge     4 V100         32  244   10   -
p3.16xlarge    8 V100         64  488   25   -
p3dn.24xlarge  8 V100 32 GB   96  768  100 EFA
p4d.24xlarge   8 A100         96 1152  400 EFA
p4de.24xlarge  8 A100 80 GB   96 1152  400 EFA
p5.48xlarge    8 H100        192 2048 3200 EFA
p5e.48xlarge   8 H200        192 2048 3200 EFA
p5en.48xlarge  8 H200        192 2048 3200 EFA
"""
GPU_DIRECT = ("p4d", "p4de", "p5", "p5e", "p5en")  # the network reads and writes the memory of GPUs


def _parsed(line: str) -> Instance:
    name, gpus, *gpu, vcpus, gib, gbit_per_s, efa = line.split()
    gpu_gib, capability = GPUS[" ".join(gpu)]
    host = (int(vcpus), int(gib), float(gbit_per_s), efa == "EFA")
    return Instance(f"ml.{name}", int(gpus), gpu[0], gpu_gib, capability, *host)


INSTANCES = {known.name: known for known in map(_parsed, TABLE.strip().splitlines())}


def instance(name: str) -> Instance:
    """What an instance type has.

    Raises:
        InputError: no such type is known; names the nearest ones.
    """
    if name not in INSTANCES:
        near = difflib.get_close_matches(str(name), INSTANCES, n=3, cutoff=0.5)
        advice = f"did you mean {', '.join(near)}?" if near else f"such as {', '.join(list(INSTANCES)[:3])}."
        raise InputError(f"--instance-type: there is no {name!r} with GPUs for training in the table; {advice}")
    return INSTANCES[name]


def precision_of(config: Mapping[str, Any], machine: Instance) -> str:
    """What would be computed in: the config's, by the name that Lightning gives it, or what suits the GPU."""
    precision = config["trainer"].get("precision")
    return LONG_NAMES.get(str(precision), str(precision)) if precision else machine.precision


def nccl_environment(machine: Instance, count: int) -> dict[str, str]:
    """The variables by which NCCL finds its way between `count` instances.

    Its protocol is left to NCCL and AWS's plugin for EFA, which know the instance types; the SDK's own launcher sets it
    on all of them.
    """
    if count == 1:
        return {"NCCL_DEBUG": "WARN"}
    variables = {"NCCL_DEBUG": "WARN", "NCCL_SOCKET_IFNAME": "^lo,docker"}
    if machine.has_efa:
        variables |= {"FI_PROVIDER": "efa", "FI_EFA_FORK_SAFE": "1"}  # loader workers are forked
    if machine.name.split(".")[1] in GPU_DIRECT:
        variables["FI_EFA_USE_DEVICE_RDMA"] = "1"
    return variables
