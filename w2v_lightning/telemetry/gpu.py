"""Utilisation, power, memory and energy of a GPU at work, from NVIDIA's management library (NVML)."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Protocol

import pynvml
import torch

SAMPLE_EVERY_S = 0.5


@dataclass(frozen=True)
class Reading:
    """State of a GPU at one moment; None where the GPU does not report a value."""

    time_s: float
    utilisation: float | None = None  # share of NVML's sampling period in which a kernel ran
    power_w: float | None = None
    memory_gib: float | None = None  # used by all processes
    energy_j: float | None = None  # since the driver was loaded


@dataclass
class GpuUse:
    """Sums over readings, to be divided once at the end."""

    utilisation: float = 0.0
    num_utilisation: int = 0
    power_s: float = 0.0  # seconds for which the power is known
    energy_j: float = 0.0
    most_memory_gib: float = 0.0

    def __add__(self, other: "GpuUse") -> "GpuUse":
        added = GpuUse(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))
        added.most_memory_gib = max(self.most_memory_gib, other.most_memory_gib)
        return added

    @property
    def mean_utilisation(self) -> float | None:
        return self.utilisation / self.num_utilisation if self.num_utilisation else None

    @property
    def mean_power_w(self) -> float | None:
        return self.energy_j / self.power_s if self.power_s else None


class Gpu(Protocol):
    """Source of readings for a GpuSampler."""

    def read(self) -> Reading: ...


class NvmlGpu:
    """GPU of a CUDA device, looked up by UUID because NVML's numbering ignores CUDA_VISIBLE_DEVICES.

    Raises:
        pynvml.NVMLError: NVML does not know the device, as can happen with MIG.
    """

    def __init__(self, device: torch.device) -> None:
        pynvml.nvmlInit()
        self._handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")

    def read(self) -> Reading:
        utilisation = self._query(pynvml.nvmlDeviceGetUtilizationRates)
        power_mw = self._query(pynvml.nvmlDeviceGetPowerUsage)
        memory = self._query(pynvml.nvmlDeviceGetMemoryInfo)
        energy_mj = self._query(pynvml.nvmlDeviceGetTotalEnergyConsumption)  # Volta and later
        return Reading(
            time.monotonic(),
            None if utilisation is None else utilisation.gpu / 100,
            None if power_mw is None else power_mw / 1000,
            None if memory is None else memory.used / 2**30,
            None if energy_mj is None else energy_mj / 1000,
        )

    def _query(self, query: Callable[[Any], Any]) -> Any:
        try:
            return query(self._handle)
        except pynvml.NVMLError:
            return None


class GpuSampler:
    """Thread that reads a GPU twice a second, without delaying training."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self._use = GpuUse()
        self._last: Reading | None = None
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gpu-sampler", daemon=True)

    @classmethod
    def for_device(cls, device: torch.device) -> "GpuSampler | None":
        """Return a sampler of a CUDA device; None for other devices and for those that NVML does not know."""
        if device.type != "cuda":
            return None
        try:
            return cls(NvmlGpu(device))
        except (pynvml.NVMLError, AttributeError):  # builds of torch for other vendors' GPUs have no UUID
            return None

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()

    def take(self) -> GpuUse:
        """Return the sums of the readings since the last call."""
        with self._lock:
            taken, self._use = self._use, GpuUse()
        return taken

    def _run(self) -> None:
        while not self._stopped.wait(SAMPLE_EVERY_S):
            self.sample()

    def sample(self) -> None:
        """Take one reading and add it to the sums."""
        now = self._gpu.read()
        use = GpuUse(now.utilisation or 0.0, int(now.utilisation is not None), most_memory_gib=now.memory_gib or 0.0)
        if self._last is not None and (energy_j := energy_between(self._last, now)) is not None:
            use.energy_j, use.power_s = energy_j, now.time_s - self._last.time_s
        with self._lock:
            self._use += use
        self._last = now


def energy_between(before: Reading, after: Reading) -> float | None:
    """Energy between two readings (J): from the GPU's counter, otherwise from its mean power; None without either."""
    if before.energy_j is not None and after.energy_j is not None:
        return after.energy_j - before.energy_j
    if before.power_w is not None and after.power_w is not None:
        return (before.power_w + after.power_w) / 2 * (after.time_s - before.time_s)
    return None
