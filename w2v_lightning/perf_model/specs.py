"""Specifications of GPUs, used only as ratios to predict unmeasured hardware from measured hardware."""

from dataclasses import dataclass

from w2v_lightning.catalog.instances import GPUS as INSTANCE_GPUS
from w2v_lightning.errors import InputError


@dataclass(frozen=True)
class Gpu:
    """Specifications of a GPU from its data sheet; rates are dense, without sparsity.

    Args:
        names: names in w2v_lightning/catalog/instances.py and in torch.
        tflop_per_s: rate of matrix products by number format; unsupported formats are missing.
        memory_gb_per_s: memory bandwidth.
        peer_gb_per_s: one-way bandwidth to the other GPUs of the host, over NVLink or 16 lanes of PCIe.
    """

    names: tuple[str, ...]
    tflop_per_s: dict[str, float]
    memory_gb_per_s: float
    peer_gb_per_s: float


# Source: NVIDIA's data sheets. T4 and V100 do not support bfloat16.
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
# Number format of matrix products by Lightning's precision. The package keeps torch's default, so float32 is not TF32.
FORMATS = {"32-true": "fp32", "16-mixed": "fp16", "16-true": "fp16", "bf16-mixed": "bf16", "bf16-true": "bf16"}
# Relative speed in half precision with only the kernels that GPUs before compute capability 8.0 support: 0.79 to 0.81
# on an H200 (docs/performance.md), whose ratio of arithmetic to memory bandwidth is that of a T4. It was not measured
# in float32.
WITHOUT_KERNELS = 0.8

# Share of a step's time on an H200 that scales with memory bandwidth; the rest scales with matrix products. An H100 has
# 0.70 of the bandwidth, the same rate of products and 0.98 to 0.99 of the speed (docs/study.md), so the share is 2 to
# 5 %. MAX_MEMORY_SHARE is the upper bound of a 90 % interval.
MEMORY_SHARE = 0.05
MAX_MEMORY_SHARE = 0.35


def find(device: str) -> Gpu | None:
    """Return the GPU of this name; None for CPUs and unknown GPUs."""
    return next((gpu for gpu in GPUS if device in gpu.names), None)


def short_name(device: str) -> str:
    """Return the short name of a GPU ("T4" for "Tesla T4" and "T4"); other names are returned unchanged."""
    gpu = find(device)
    return gpu.names[0] if gpu else device


def speed_ratio(
    device: str, precision: str, to_device: str, to_precision: str, memory_share: float = MEMORY_SHARE
) -> float | None:
    """Return the speed of one device in a precision over another's with the same kernels; None if one is unknown.

    Raises:
        InputError: a device does not support its precision.
    """
    gpu, to_gpu = find(device), find(to_device)
    if gpu is None or to_gpu is None:
        return None
    return _time(to_gpu, to_precision, memory_share) / _time(gpu, precision, memory_share)


def _time(gpu: Gpu, precision: str, memory_share: float) -> float:
    """Time for work that takes an H200 in half precision 1. Formats of 16 bits halve the memory traffic."""
    h200 = find("H200")
    assert h200 is not None
    products = _tflop_per_s(h200, "bf16-mixed") / _tflop_per_s(gpu, precision)
    memory = h200.memory_gb_per_s / gpu.memory_gb_per_s * _width(precision) / _width("bf16-mixed")
    return (1 - memory_share) * products + memory_share * memory


def kernel_ratio(device: str, precision: str, to_device: str, to_precision: str) -> float:
    """Return the speed of one known GPU in a precision over another's, due only to the kernels that each supports."""
    return _speed_by_kernels(device, precision) / _speed_by_kernels(to_device, to_precision)


def _speed_by_kernels(device: str, precision: str) -> float:
    _, capability = INSTANCE_GPUS[short_name(device)]
    return WITHOUT_KERNELS if capability < (8, 0) and _width(precision) == 2 else 1.0


def _tflop_per_s(gpu: Gpu, precision: str) -> float:
    number_format = FORMATS.get(precision)
    if number_format not in gpu.tflop_per_s:
        supported = ", ".join(name for name, kind in FORMATS.items() if kind in gpu.tflop_per_s)
        raise InputError(f"{gpu.names[0]}: its speed in {precision} is unknown; choose from {supported}.")
    return gpu.tflop_per_s[number_format]


def _width(precision: str) -> int:
    return 4 if precision == "32-true" else 2
