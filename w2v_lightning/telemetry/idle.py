"""Idle time of the device in profiled steps, by the part of the host's work that it waited for."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent

from w2v_lightning.telemetry.attribution import BACKWARD, FORWARD, group_of

LAUNCH = re.compile(r"(cuda|cu|hip)[A-Z]")  # calls of the driver; a call and the kernel that it launches share an id
PARTS = {FORWARD: FORWARD, BACKWARD: BACKWARD, "optimiser": "optimiser and clipping", "data wait": "data wait"}
BETWEEN = "between steps"
QUEUED = "with work in its queue"  # gaps between short kernels, or a stream that waits for another


@dataclass(frozen=True)
class Range:
    """A part of the host's work."""

    name: str
    start_us: float
    end_us: float


@dataclass(frozen=True)
class Kernel:
    """A kernel or a copy on the device."""

    start_us: float
    end_us: float
    launch_us: float | None  # when the host launched it; None: not recorded
    is_communication: bool = False


@dataclass(frozen=True)
class Idle:
    """Idle time of the device over some steps (s)."""

    communication_alone_s: float  # busy, but only with communication
    waits_s: dict[str, float]  # by what the host was doing, the longest first

    @property
    def total_s(self) -> float:
        return sum(self.waits_s.values())


def idle_time(kernels: Iterable[Kernel], ranges: Sequence[Range]) -> Idle:
    """Attribute the gaps between kernels.

    If the kernel after a gap was launched during the gap, the device had been waiting for the host: the gap counts
    towards the innermost of `ranges` at the time of the launch.
    """
    in_order = sorted(kernels, key=lambda kernel: kernel.start_us)
    waits_us: dict[str, float] = {}
    reached_us = in_order[0].start_us if in_order else 0.0
    for kernel in in_order:
        if (gap_us := kernel.start_us - reached_us) > 0:
            launch_us = kernel.launch_us
            name = QUEUED if launch_us is None or launch_us <= reached_us else _innermost(ranges, launch_us)
            waits_us[name] = waits_us.get(name, 0.0) + gap_us
        reached_us = max(reached_us, kernel.end_us)
    busy_s, computing_s = (
        covered_s((kernel.start_us, kernel.end_us) for kernel in selected)
        for selected in (in_order, [kernel for kernel in in_order if not kernel.is_communication])
    )
    longest_first = sorted(waits_us.items(), key=lambda wait: -wait[1])
    return Idle(busy_s - computing_s, {name: wait_us / 1e6 for name, wait_us in longest_first})


def ranges_of(events: Iterable[FunctionEvent]) -> list[Range]:
    """Return the parts of a step on the host, as marked by `fit --profile` and PyTorch."""
    marks = [event for event in events if event.is_user_annotation and is_on_host(event)]
    named = [(mark.name if mark.name in PARTS else group_of(mark.name, ()), mark.time_range) for mark in marks]
    return [Range(PARTS[name], time.start, time.end) for name, time in named if name in PARTS]


def kernels_of(events: Iterable[FunctionEvent]) -> list[Kernel]:
    """Return the device's kernels, each with the time of its launch."""
    events = list(events)
    launches_us = {e.id: e.time_range.start for e in events if is_on_host(e) and LAUNCH.match(e.name)}
    return [
        Kernel(e.time_range.start, e.time_range.end, launches_us.get(e.id), group_of(e.name, ()) == "communication")
        for e in events
        if is_on_device(e)
    ]


def is_on_host(event: FunctionEvent) -> bool:
    return event.device_type == DeviceType.CPU and not event.is_async


def is_on_device(event: FunctionEvent) -> bool:
    """True for work of the device, False for ranges on its timeline."""
    return event.device_type == DeviceType.CUDA and not event.is_user_annotation


def covered_s(intervals_us: Iterable[tuple[float, float]]) -> float:
    """Time covered by at least one interval (s)."""
    covered_us, reached_us = 0.0, float("-inf")
    for start_us, end_us in sorted(intervals_us):
        covered_us += max(0.0, end_us - max(start_us, reached_us))
        reached_us = max(reached_us, end_us)
    return covered_us / 1e6


def _innermost(ranges: Sequence[Range], at_us: float) -> str:
    around = [range_ for range_ in ranges if range_.start_us <= at_us <= range_.end_us]
    return min(around, key=lambda range_: range_.end_us - range_.start_us).name if around else BETWEEN
