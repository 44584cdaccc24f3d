"""What a run is measured by: sums over its steps, divided once."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

from w2v_lightning.telemetry.gpu import GpuUse
from w2v_lightning.telemetry.step_timer import Times


@dataclass
class Tally:
    """Sums over steps, of all devices together where one device's are not the others'."""

    steps: int = 0
    seconds: float = 0.0  # wall-clock
    audio_s: float = 0.0  # real audio
    computed_s: float = 0.0  # and its padding
    utterances: int = 0
    flops: float = 0.0

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass
class Validations:
    """What a run does besides training."""

    count: int = 0
    seconds: float = 0.0

    def __add__(self, other: "Validations") -> "Validations":
        return Validations(self.count + other.count, self.seconds + other.seconds)


@dataclass
class Measured:
    """Everything that is summed, of a window or a run."""

    tally: Tally = field(default_factory=Tally)
    times: Times = field(default_factory=Times)
    gpu: GpuUse = field(default_factory=GpuUse)
    validations: Validations = field(default_factory=Validations)

    def __add__(self, other: "Measured") -> "Measured":
        return Measured(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def rates(self, peak_flops_per_s: float | None) -> dict[str, float | None]:
        """What is divided, once, under the names of the log; None where it is not known.

        Args:
            peak_flops_per_s: of all devices together.
        """
        tally, times, gpu = self.tally, self.times, self.gpu
        data_wait, device = (ratio(part_s, times.total_s) for part_s in (times.data_wait_s, times.device_s))
        return {
            "audio_s_per_s": ratio(tally.audio_s, tally.seconds),
            "utterances_per_s": ratio(tally.utterances, tally.seconds),
            "step_ms": ratio(1000 * tally.seconds, tally.steps),
            "mfu": ratio(tally.flops, tally.seconds * peak_flops_per_s) if peak_flops_per_s else None,
            "data_wait_share": data_wait,
            "host_share": None if device is None else max(0.0, 1 - data_wait - device),
            "device_share": device,
            "padding_share": None if not tally.computed_s else 1 - tally.audio_s / tally.computed_s,
            "gpu_utilisation": gpu.mean_utilisation,
            "gpu_power_w": gpu.mean_power_w,
            "gpu_memory_gib": gpu.most_memory_gib or None,
        }


def ratio(part: float, whole: float) -> float | None:
    """None where there is nothing to divide by."""
    return part / whole if whole else None


def condensed(windows: Sequence[Measured], most: int) -> list[Measured]:
    """At most so many: where there are more, neighbours become one, until there are not."""
    windows = list(windows)
    while len(windows) > most:
        windows = [sum(windows[i + 1 : i + 2], windows[i]) for i in range(0, len(windows), 2)]
    return windows
