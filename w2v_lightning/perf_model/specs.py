"""What the makers say of GPUs: only for hardware that was never measured, and only in ratios to what was."""

from dataclasses import dataclass

from w2v_lightning.catalog.instances import GPUS as INSTANCE_GPUS
from w2v_lightning.errors import InputError


@dataclass(frozen=True)
class Gpu:
    """One GPU by its data sheet; arithmetic is dense, no sparsity counted.

    Args:
        names: as torch has it, and as w2v_lightning/catalog/instances.py has it.
        tflop_per_s: of matrix products, by what is multiplied; what is missing, the GPU cannot do.
        memory_gb_per_s: bandwidth.
        peer_gb_per_s: to the other GPUs of its host, one way: NVLink, or PCIe's 16 lanes.
    """

    names: tuple[str, ...]
    tflop_per_s: dict[str, float]
    memory_gb_per_s: float
    peer_gb_per_s: float


# Of NVIDIA's data sheets. T4s and V100s have no bfloat16.
GPUS = (
    Gpu(("T4", "Tesla T4"), {"fp32": 8.1, "fp16": 65}, 320, 16),
    Gpu(("V100", "Tesla V100-SXM2-16GB"), {"fp32": 15.7, "fp16": 125}, 900, 150),
    Gpu(("V100 32 GB", "Tesla V100-SXM2-32GB"), {"fp32": 15.7, "fp16": 125}, 900, 150),
    Gpu(("A10G", "NVIDIA A10G"), {"fp32": 35, "fp16": 70, "bf16": 70}, 600, 32),
    Gpu(("L4", "NVIDIA L4"), {"fp32": 30.3, "fp16": 121, "bf16": 121}, 300, 32),
    Gpu(("L40S", "NVIDIA L40S"), {"fp32": 91.6, "fp16": 362, "bf16": 362}, 864, 32),
    Gpu(("A100", "NVIDIA A100-SXM4-40GB"), {"fp32": 19.5, "fp16": 312, "bf16": 312}, 1555, 300),
    Gpu(("A100 80 GB", "NVIDIA A100-SXM4-80GB"), {"fp32": 19.5, "fp16": 312, "bf16": 312}, 2039, 300),
    Gpu(("H100", "NVIDIA H100 80GB HBM3"), {"fp32": 67, "fp16": 989, "bf16": 989}, 3350, 450),
    Gpu(("H200", "NVIDIA H200"), {"fp32": 67, "fp16": 989, "bf16": 989}, 4800, 450),
)
# What Lightning's precision multiplies in. float32 stays float32: torch's default, which the package leaves alone.
MULTIPLIED = {"32-true": "fp32", "16-mixed": "fp16", "16-true": "fp16", "bf16-mixed": "bf16", "bf16-true": "bf16"}
# What is left of the speed in half precision with nothing but the ways that GPUs before compute capability 8.0 have:
# 0.79 to 0.81 on an H200 (docs/performance.md), whose arithmetic is to its memory's bandwidth what a T4's is. In
# float32 it was not measured.
WITHOUT_KERNELS = 0.8

# What of a step's time goes with the memory's bandwidth on an H200; the rest goes with matrix products. An H100 has
# 0.70 of the bandwidth and the same products, and 0.98 to 0.99 of the speed (docs/study.md): 2 to 5 %. MOST is an end
# of the 90 % interval.
MEMORY_SHARE = 0.05
MOST_MEMORY_SHARE = 0.35


def find(device: str) -> Gpu | None:
    """By either name; None for what is not in the table, CPUs among it."""
    return next((gpu for gpu in GPUS if device in gpu.names), None)


def short_name(device: str) -> str:
    """One name for a device, whoever names it: "Tesla T4" and "T4" are "T4". Of others as it is."""
    gpu = find(device)
    return gpu.names[0] if gpu else device


def speed_ratio(
    device: str, precision: str, to_device: str, to_precision: str, memory_share: float = MEMORY_SHARE
) -> float | None:
    """Speed of one device in a precision over another's, all ways of computing being alike; None where either is not in
    the table.

    Raises:
        InputError: the first device cannot compute in that precision.
    """
    gpu, to_gpu = find(device), find(to_device)
    if gpu is None or to_gpu is None:
        return None
    return _time(to_gpu, to_precision, memory_share) / _time(gpu, precision, memory_share)


def _time(gpu: Gpu, precision: str, memory_share: float) -> float:
    """For what an H200 does in half precision in 1. Memory moves half the bytes where 16 bits are used."""
    h200 = find("H200")
    products = _tflop_per_s(h200, "bf16-mixed") / _tflop_per_s(gpu, precision)
    memory = h200.memory_gb_per_s / gpu.memory_gb_per_s * _width(precision) / _width("bf16-mixed")
    return (1 - memory_share) * products + memory_share * memory


def of_kernels(device: str, precision: str, to_device: str, to_precision: str) -> float:
    """Speed of one device of the table in a precision over another's, by the ways of computing that each has."""
    return _left_without_kernels(device, precision) / _left_without_kernels(to_device, to_precision)


def _left_without_kernels(device: str, precision: str) -> float:
    _, capability = INSTANCE_GPUS[short_name(device)]
    return WITHOUT_KERNELS if capability < (8, 0) and _width(precision) == 2 else 1.0


def _tflop_per_s(gpu: Gpu, precision: str) -> float:
    multiplied = MULTIPLIED.get(precision)
    if multiplied not in gpu.tflop_per_s:
        known = ", ".join(name for name, kind in MULTIPLIED.items() if kind in gpu.tflop_per_s)
        raise InputError(f"{gpu.names[0]}: nothing is known of it in {precision}; choose from {known}.")
    return gpu.tflop_per_s[multiplied]


def _width(precision: str) -> int:
    return 4 if precision == "32-true" else 2
