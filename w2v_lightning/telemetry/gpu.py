"""What NVIDIA's management library (NVML) says of a GPU as it works: utilisation, power, memory, energy."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Protocol

import pynvml
import torch

SAMPLE_EVERY_S = 0.5


@dataclass(frozen=True)
class Reading:
    """One look at a GPU; None where it does not say."""

    time_s: float
    utilisation: float | None = None  # share of the last moments in which a kernel ran
    power_w: float | None = None
    memory_gib: float | None = None  # of all processes
    energy_j: float | None = None  # since the driver was loaded


@dataclass
class GpuUse:
    """Sums over readings: divided once, at the end."""

    utilisation: float = 0.0
    num_utilisation: int = 0
    power_s: float = 0.0  # seconds that the power is known of
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
    """What GpuSampler reads from."""

    def read(self) -> Reading: ...


class NvmlGpu:
    """The GPU of a CUDA device, found by its UUID: NVML numbers GPUs without regard to CUDA_VISIBLE_DEVICES.

    Raises:
        pynvml.NVMLError: NVML does not know it, as may be with MIG.
    """

    def __init__(self, device: torch.device) -> None:
        pynvml.nvmlInit()
        self._handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")

    def read(self) -> Reading:
        utilisation = self._ask(pynvml.nvmlDeviceGetUtilizationRates)
        power_mw = self._ask(pynvml.nvmlDeviceGetPowerUsage)
        memory = self._ask(pynvml.nvmlDeviceGetMemoryInfo)
        energy_mj = self._ask(pynvml.nvmlDeviceGetTotalEnergyConsumption)  # Volta and later
        return Reading(
            time.monotonic(),
            None if utilisation is None else utilisation.gpu / 100,
            None if power_mw is None else power_mw / 1000,
            None if memory is None else memory.used / 2**30,
            None if energy_mj is None else energy_mj / 1000,
        )

    def _ask(self, question: Callable):
        try:
            return question(self._handle)
        except pynvml.NVMLError:
            return None


class GpuSampler:
    """Reads a GPU twice a second in a thread of its own, which holds nobody up.

    Args:
        gpu: what is read.
    """

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self._use = GpuUse()
        self._last: Reading | None = None
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gpu-sampler", daemon=True)

    @classmethod
    def of(cls, device: torch.device) -> "GpuSampler | None":
        """A sampler of a CUDA device; None for another device, or where NVML does not know it."""
        if device.type != "cuda":
            return None
        try:
            return cls(NvmlGpu(device))
        except (pynvml.NVMLError, AttributeError):  # a torch for other GPUs gives no UUID
            return None

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()

    def take(self) -> GpuUse:
        """What was read since the last call."""
        with self._lock:
            taken, self._use = self._use, GpuUse()
        return taken

    def _run(self) -> None:
        while not self._stopped.wait(SAMPLE_EVERY_S):
            self.sample()

    def sample(self) -> None:
        """Read once."""
        now = self._gpu.read()
        use = GpuUse(now.utilisation or 0.0, int(now.utilisation is not None), most_memory_gib=now.memory_gib or 0.0)
        if self._last is not None and (energy_j := energy_between(self._last, now)) is not None:
            use.energy_j, use.power_s = energy_j, now.time_s - self._last.time_s
        with self._lock:
            self._use += use
        self._last = now


def energy_between(before: Reading, after: Reading) -> float | None:
    """Joules, by the GPU's own counter, or else by its power at the two readings; None where it says neither."""
    if before.energy_j is not None and after.energy_j is not None:
        return after.energy_j - before.energy_j
    if before.power_w is not None and after.power_w is not None:
        return (before.power_w + after.power_w) / 2 * (after.time_s - before.time_s)
    return None
