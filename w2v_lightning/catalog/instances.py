"""SageMaker training instance types with GPUs, and the NCCL environment for each."""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from w2v_lightning.errors import InputError


@dataclass(frozen=True)
class Instance:
    """Hardware of one instance type.

    Args:
        name: instance type, such as "ml.g4dn.12xlarge".
        gpus: number of GPUs.
        gpu: name of the GPU in GPUS, such as "T4" or "A100 80 GB".
        gpu_gib: memory of each GPU, in GiB.
        capability: CUDA compute capability of each GPU.
        vcpus: number of virtual CPUs.
        gib: memory of the host, in GiB.
        gbit_per_s: sustained bandwidth of the network, in Gbit/s.
        has_efa: whether the network has AWS's Elastic Fabric Adapter.
    """

    name: str
    gpus: int
    gpu: str
    gpu_gib: int
    capability: tuple[int, int]
    vcpus: int
    gib: int
    gbit_per_s: float
    has_efa: bool

    @property
    def gpu_name(self) -> str:
        """Name of the GPU without its memory size, such as "A100"."""
        return re.sub(r" \d+ GB$", "", self.gpu)

    @property
    def precision(self) -> str:
        """Default precision on these GPUs: "bf16-mixed" where the hardware supports it."""
        from w2v_lightning.runtime.precision import precision_for_capability  # imports torch

        return precision_for_capability(self.capability)

    @property
    def loader_workers(self) -> int:
        """Number of loader workers per GPU that the data module starts if data.num_workers is null."""
        from w2v_lightning.runtime.hardware import loader_workers  # imports torch

        return loader_workers(self.vcpus, self.gpus)


# Short names of precisions that Lightning also accepts.
LONG_NAMES = {"32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}

# Memory in GiB and CUDA compute capability.
GPUS = {
    "T4": (16, (7, 5)),
    "V100": (16, (7, 0)),
    "V100 32 GB": (32, (7, 0)),
    "A10G": (24, (8, 6)),
    "L4": (24, (8, 9)),
    "L40S": (48, (8, 9)),
    "A100": (40, (8, 0)),
    "A100 80 GB": (80, (8, 0)),
    "A100 PCIe": (80, (8, 0)),
    "H100": (80, (9, 0)),
    "H100 PCIe": (80, (9, 0)),
    "H200": (141, (9, 0)),
    "B200": (179, (10, 0)),
    "B300": (268, (10, 3)),
    "RTX PRO 4500": (32, (12, 0)),
    "RTX PRO Server 6000": (96, (12, 0)),
}

# Columns: type, GPUs and their name, vCPUs, GiB, Gbit/s, EFA. Source: EC2's describe-instance-types; for p3, AWS's
# product page.
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
g7.2xlarge     1 RTX PRO 4500   8  32   40   -
g7.4xlarge     1 RTX PRO 4500  16  64   80   -
g7.8xlarge     1 RTX PRO 4500  32 128  100 EFA
g7.12xlarge    2 RTX PRO 4500  48 192  175 EFA
g7.24xlarge    4 RTX PRO 4500  96 384  350 EFA
g7.48xlarge    8 RTX PRO 4500 192 768  700 EFA
g7e.2xlarge    1 RTX PRO Server 6000   8   64   50   -
g7e.4xlarge    1 RTX PRO Server 6000  16  128   50   -
g7e.8xlarge    1 RTX PRO Server 6000  32  256  100 EFA
g7e.12xlarge   2 RTX PRO Server 6000  48  512  400 EFA
g7e.24xlarge   4 RTX PRO Server 6000  96 1024  800 EFA
g7e.48xlarge   8 RTX PRO Server 6000 192 2048 1600 EFA
p3.2xlarge     1 V100          8   61  2.5   -
p3.8xlarge     4 V100         32  244   10   -
p3.16xlarge    8 V100         64  488   25   -
p3dn.24xlarge  8 V100 32 GB   96  768  100 EFA
p4d.24xlarge   8 A100         96 1152  400 EFA
p4de.24xlarge  8 A100 80 GB   96 1152  400 EFA
p5.4xlarge     1 H100         16  256  100 EFA
p5.48xlarge    8 H100        192 2048 3200 EFA
p5e.48xlarge   8 H200        192 2048 3200 EFA
p5en.48xlarge  8 H200        192 2048 3200 EFA
p6-b200.48xlarge 8 B200      192 2048 3200 EFA
p6-b300.48xlarge 8 B300      192 4096 6400 EFA
"""
# Families of GPU instances that SageMaker trains on and this package does not, each with the reason.
EXCLUDED = {
    "p2": "its K80 GPUs (compute capability 3.7) are too old for torch 2",
    "p6e-gb200": "its hosts are Arm, and AWS's training images are for x86",
}
# Families with GPUDirect RDMA: the network adapter reads and writes GPU memory.
GPU_DIRECT = ("p4d", "p4de", "p5", "p5e", "p5en", "p6-b200", "p6-b300")


def _parsed(line: str) -> Instance:
    name, gpus, *gpu, vcpus, gib, gbit_per_s, efa = line.split()
    gpu_gib, capability = GPUS[" ".join(gpu)]
    host = (int(vcpus), int(gib), float(gbit_per_s), efa == "EFA")
    return Instance(f"ml.{name}", int(gpus), " ".join(gpu), gpu_gib, capability, *host)


INSTANCES = {machine.name: machine for machine in map(_parsed, TABLE.strip().splitlines())}


def instance(name: str) -> Instance:
    """Return the hardware of an instance type.

    Raises:
        InputError: the type is excluded, or unknown; the message suggests similar names.
    """
    if name not in INSTANCES:
        family = str(name).removeprefix("ml.").partition(".")[0]
        if family in EXCLUDED:
            raise InputError(f"--instance_type: {name} cannot be used: {EXCLUDED[family]}. Choose another type.")
        near = difflib.get_close_matches(str(name), INSTANCES, n=3, cutoff=0.5)
        advice = f"Did you mean {', '.join(near)}?" if near else f"Examples: {', '.join(list(INSTANCES)[:3])}."
        raise InputError(
            f"--instance_type: {name!r} is not a known training instance type with GPUs"
            f" (w2v_lightning/catalog/instances.py). {advice}"
        )
    return INSTANCES[name]


def precision_of(config: Mapping[str, Any], machine: Instance) -> str:
    """Return the precision by Lightning's full name: the config's, or else the default of the GPU."""
    precision = config["trainer"].get("precision")
    return LONG_NAMES.get(str(precision), str(precision)) if precision else machine.precision


def nccl_environment(machine: Instance, count: int) -> dict[str, str]:
    """Return the environment variables with which NCCL connects `count` instances.

    NCCL_PROTO is left unset, so that NCCL and AWS's EFA plugin choose the protocol by instance type. (The launcher of
    the SageMaker SDK sets it on all types.)
    """
    if count == 1:
        return {"NCCL_DEBUG": "WARN"}
    variables = {"NCCL_DEBUG": "WARN", "NCCL_SOCKET_IFNAME": "^lo,docker"}
    if machine.has_efa:
        variables |= {"FI_PROVIDER": "efa", "FI_EFA_FORK_SAFE": "1"}  # because loader workers are forked
    if machine.name.split(".")[1] in GPU_DIRECT:
        variables["FI_EFA_USE_DEVICE_RDMA"] = "1"
    return variables
