"""Rates of GPUs, used only as ratios to predict unmeasured hardware from measured hardware."""

from dataclasses import dataclass
from functools import cache

from w2v_lightning.catalog.instances import GPUS as CATALOG
from w2v_lightning.errors import InputError


@dataclass(frozen=True)
class Gpu:
    """Rates of a GPU; dense, without sparsity.

    Args:
        names: names in w2v_lightning/catalog/instances.py and in torch.
        tflop_per_s: measured rate of matrix products by number format; unsupported formats are missing.
        memory_gb_per_s: memory bandwidth by the data sheet.
        peer_gb_per_s: one-way bandwidth to the other GPUs of the host by the data sheet, over NVLink or PCIe.
        is_estimated: whether the rates of 16 bits are not measured, but those of the data sheet times SUSTAINED.
    """

    names: tuple[str, ...]
    tflop_per_s: dict[str, float]
    memory_gb_per_s: float
    peer_gb_per_s: float
    is_estimated: bool = False


SUSTAINED = 0.7  # ratio of an L40S's measured rate to its data sheet's 362 TFLOP/s

# Rates of 16 bits are measured products of large matrices, not the data sheets' peaks, which T4 (70 W) and L4 (72 W)
# hold for moments only. T4: cuBLAS, mean of 100 products of 4096 x 4096 (forums.developer.nvidia.com, thread 264462;
# 42 in short runs). L4, V100: 8192 x 8192 (zzc0721/torch-performance-test-data, issues 120 and 140; 69 to 91 in short
# runs of an L4). A10G, L40S, A100 80 GB, H100, B200: best shape (mag-/gpu_benchmark, stas00/ml-engineering). A100, and
# half precision elsewhere: best size (zzc0721/torch-performance-test-data). All as of 2024-10 to 2026-08.
# Rates in float32 are those of NVIDIA's data sheets, except a T4's, measured. T4 and V100 do not support bfloat16.
GPUS = (
    Gpu(("T4", "Tesla T4"), {"fp32": 4.2, "fp16": 24}, 320, 16),
    Gpu(("V100", "Tesla V100-SXM2-16GB"), {"fp32": 15.7, "fp16": 97}, 900, 150),
    Gpu(("V100 32 GB", "Tesla V100-SXM2-32GB"), {"fp32": 15.7, "fp16": 97}, 900, 150),
    Gpu(("A10G", "NVIDIA A10G"), {"fp32": 35, "fp16": 70, "bf16": 70}, 600, 32),
    Gpu(("L4", "NVIDIA L4"), {"fp32": 30.3, "fp16": 54, "bf16": 59}, 300, 32),
    Gpu(("L40S", "NVIDIA L40S"), {"fp32": 91.6, "fp16": 252, "bf16": 252}, 864, 32),
    Gpu(("A100", "NVIDIA A100-SXM4-40GB"), {"fp32": 19.5, "fp16": 247, "bf16": 247}, 1555, 300),
    Gpu(("A100 80 GB", "NVIDIA A100-SXM4-80GB"), {"fp32": 19.5, "fp16": 259, "bf16": 265}, 2039, 300),
    Gpu(("A100 PCIe", "NVIDIA A100 80GB PCIe"), {"fp32": 19.5, "fp16": 241, "bf16": 253}, 1940, 32),
    Gpu(("H100", "NVIDIA H100 80GB HBM3"), {"fp32": 67, "fp16": 760, "bf16": 790}, 3350, 450),
    Gpu(("H100 PCIe", "NVIDIA H100 PCIe"), {"fp32": 51, "fp16": 458, "bf16": 496}, 2000, 64),
    Gpu(("H200", "NVIDIA H200"), {"fp32": 67, "fp16": 760, "bf16": 790}, 4800, 450),
    Gpu(("B200", "NVIDIA B200"), {"fp32": 75, "fp16": 1700, "bf16": 1700}, 8000, 900),
    Gpu(("B300", "NVIDIA B300 SXM6 AC"), {"fp32": 75, "fp16": 1700, "bf16": 1700}, 8000, 900, is_estimated=True),
    Gpu(
        ("RTX PRO 4500", "NVIDIA RTX PRO 4500 Blackwell Server Edition"),
        {"fp32": 55, "fp16": SUSTAINED * 220, "bf16": SUSTAINED * 220},
        *(800, 64),
        is_estimated=True,
    ),
    Gpu(
        ("RTX PRO Server 6000", "NVIDIA RTX PRO 6000 Blackwell Server Edition"),
        {"fp32": 125, "fp16": SUSTAINED * 504, "bf16": SUSTAINED * 504},
        *(1597, 64),
        is_estimated=True,
    ),
)
# Number format of matrix products by Lightning's precision. The package keeps torch's default, so float32 is not TF32.
FORMATS = {"32-true": "fp32", "16-mixed": "fp16", "16-true": "fp16", "bf16-mixed": "bf16", "bf16-true": "bf16"}
# Relative speed in half precision with only the kernels that GPUs before compute capability 8.0 support: 0.79 to 0.81
# on an H200 (docs/performance.md). It was not measured on such a GPU, nor in float32.
WITHOUT_KERNELS = 0.8

# Share of a step's time on an H200 that scales with memory bandwidth; the rest scales with matrix products. An H100 has
# 0.70 of the bandwidth, the same rate of products and 0.98 to 0.99 of the speed (docs/study.md), so the share is 2 to
# 5 %. MAX_MEMORY_SHARE is the upper bound of a 90 % interval.
MEMORY_SHARE = 0.05
MAX_MEMORY_SHARE = 0.35


@cache
def find(device: str) -> Gpu | None:
    """Return the GPU of this name; None for CPUs and unknown GPUs."""
    return next((gpu for gpu in GPUS if device in gpu.names), None)


def is_estimated(device: str) -> bool:
    """Return whether the rate of matrix products of this device is estimated, not measured."""
    gpu = find(device)
    return gpu is not None and gpu.is_estimated


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
    memory = h200.memory_gb_per_s / gpu.memory_gb_per_s * width(precision) / width("bf16-mixed")
    return (1 - memory_share) * products + memory_share * memory


def kernel_ratio(device: str, precision: str, to_device: str, to_precision: str) -> float:
    """Return the speed of one known GPU in a precision over another's, due only to the kernels that each supports."""
    return _speed_by_kernels(device, precision) / _speed_by_kernels(to_device, to_precision)


def _speed_by_kernels(device: str, precision: str) -> float:
    _, capability = CATALOG[short_name(device)]
    return WITHOUT_KERNELS if capability < (8, 0) and width(precision) == 2 else 1.0


def _tflop_per_s(gpu: Gpu, precision: str) -> float:
    number_format = FORMATS.get(precision)
    if number_format not in gpu.tflop_per_s:
        supported = ", ".join(name for name, kind in FORMATS.items() if kind in gpu.tflop_per_s)
        raise InputError(f"{gpu.names[0]}: its speed in {precision} is unknown; choose from {supported}.")
    return gpu.tflop_per_s[number_format]


def width(precision: str) -> int:
    """Return the bytes of a number in a precision."""
    return 4 if precision == "32-true" else 2
