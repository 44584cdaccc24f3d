"""Hardware and software of a measurement: the device, its peak matrix rate, CPU cores, package versions."""

import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pynvml
import torch

from w2v_lightning import __version__

# Size of square matrices: large enough to reach the peak rate, small enough for the time limit below.
MATRIX_SIZE = {"cuda": 8192, "cpu": 512}
MEASURE_FOR_S = 0.15
MOST_PRODUCTS = 30


def device_name(device: torch.device | str) -> str:
    """Return the model name of a device, such as "NVIDIA H200" or "AMD EPYC 7763 64-Core Processor"."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return _cpu_name()


def matrix_flops_per_s(device: torch.device | str, dtype: torch.dtype) -> float:
    """Measure the floating-point operations per second of square matrix products; a multiply-add counts as two.

    The result is the median of several products after a warm-up. It takes less than 0.3 s, unless a single product
    takes longer. float32 on a GPU has the precision that torch.set_float32_matmul_precision allows at the time.
    """
    device = torch.device(device)
    size = MATRIX_SIZE.get(device.type, MATRIX_SIZE["cpu"])
    # Random numbers: a GPU that multiplies zeros draws less power, and clocks higher than it ever will in training.
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    product = torch.empty_like(left)
    seconds = [_elapsed_s(lambda: torch.mm(left, right, out=product), device) for _ in range(2)][-1:]
    while sum(seconds) < MEASURE_FOR_S and len(seconds) < MOST_PRODUCTS:
        seconds.append(_elapsed_s(lambda: torch.mm(left, right, out=product), device))
    return 2 * size**3 / statistics.median(seconds)


def loader_workers(cores: int, devices: int) -> int:
    """Default number of loader workers per device: the cores of a host that its processes leave free, from 1 to 8."""
    return max(1, min(8, cores // devices - 1))


def versions() -> dict[str, str]:
    """Versions of the software that a speed depends on, by name; software that is missing here is left out."""
    versions_or_none = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "driver": _driver_version(),
        "lightning": installed_version("lightning"),
        "transformers": installed_version("transformers"),
        "flash-attn-4": installed_version("flash-attn-4"),
        "w2v_lightning": __version__,
    }
    return {name: str(value) for name, value in versions_or_none.items() if value is not None}


def installed_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _elapsed_s(function: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        with torch.cuda.device(device):
            start.record()
            function()
            end.record()
            end.synchronize()
        return start.elapsed_time(end) / 1000
    start_s = time.perf_counter()
    function()
    return time.perf_counter() - start_s


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")  # Linux; on Arm, it names no model
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _driver_version() -> str | None:
    """Version of the NVIDIA driver; None if there is no driver."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        return pynvml.nvmlSystemGetDriverVersion()
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()
