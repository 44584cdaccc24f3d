"""Measurements of a run: sums over its steps, divided once."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

from w2v_lightning.telemetry.gpu import GpuUse
from w2v_lightning.telemetry.step_timer import Times


@dataclass
class Tally:
    """Sums over steps, of all devices together for quantities that each device has its own share of."""

    steps: int = 0
    seconds: float = 0.0  # wall-clock
    audio_s: float = 0.0  # real audio
    computed_s: float = 0.0  # audio including padding
    utterances: int = 0
    flops: float = 0.0

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass
class Validations:
    """Number and duration of a run's validations."""

    count: int = 0
    seconds: float = 0.0

    def __add__(self, other: "Validations") -> "Validations":
        return Validations(self.count + other.count, self.seconds + other.seconds)


@dataclass
class Measurements:
    """Sums of a window or a run."""

    tally: Tally = field(default_factory=Tally)
    times: Times = field(default_factory=Times)
    gpu: GpuUse = field(default_factory=GpuUse)
    validations: Validations = field(default_factory=Validations)

    def __add__(self, other: "Measurements") -> "Measurements":
        return Measurements(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def rates(self, peak_flops_per_s: float | None) -> dict[str, float | None]:
        """Divide the sums. Keys are the names in the log; values are None if unknown.

        Args:
            peak_flops_per_s: peak of all devices together; None: unknown.
        """
        tally, times, gpu = self.tally, self.times, self.gpu
        data_wait, device = ratio(times.data_wait_s, times.total_s), ratio(times.device_s, times.total_s)
        return {
            "audio_s_per_s": ratio(tally.audio_s, tally.seconds),
            "utterances_per_s": ratio(tally.utterances, tally.seconds),
            "step_ms": ratio(1000 * tally.seconds, tally.steps),
            "mfu": ratio(tally.flops, tally.seconds * peak_flops_per_s) if peak_flops_per_s else None,
            "data_wait_share": data_wait,
            "host_share": None if data_wait is None or device is None else max(0.0, 1 - data_wait - device),
            "device_share": device,
            "padding_share": None if not tally.computed_s else 1 - tally.audio_s / tally.computed_s,
            "gpu_utilisation": gpu.mean_utilisation,
            "gpu_power_w": gpu.mean_power_w,
            "gpu_memory_gib": gpu.most_memory_gib or None,
        }


def ratio(part: float, whole: float) -> float | None:
    """Return part / whole; None if `whole` is 0."""
    return part / whole if whole else None


def merge_windows(windows: Sequence[Measurements], most: int) -> list[Measurements]:
    """Add up neighbouring windows, pairwise and repeatedly, until at most `most` are left."""
    windows = list(windows)
    while len(windows) > most:
        windows = [sum(windows[i + 1 : i + 2], windows[i]) for i in range(0, len(windows), 2)]
    return windows
