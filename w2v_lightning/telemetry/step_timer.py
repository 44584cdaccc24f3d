"""Where the time of training goes, read off the device's own clock without ever waiting for it."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Protocol, Self

import torch


class Event(Protocol):
    """A mark in the work that was handed to the device: what torch.cuda.Event is."""

    def record(self) -> None: ...
    def query(self) -> bool: ...
    def elapsed_time(self, end_event: Self) -> float: ...


class HostEvent:
    """The same for a CPU, which has done its work by the time it is asked."""

    def record(self) -> None:
        self.time_s = time.perf_counter()

    def query(self) -> bool:
        return True

    def elapsed_time(self, end_event: "HostEvent") -> float:
        return 1000 * (end_event.time_s - self.time_s)


def new_event(device: torch.device) -> Event:
    """An event of the device's own kind; on a GPU it belongs to the current stream."""
    return torch.cuda.Event(enable_timing=True) if device.type == "cuda" else HostEvent()


@dataclass
class Times:
    """Seconds of micro-batches that are done, from the end of each one's predecessor to its own end."""

    total_s: float = 0.0
    device_s: float = 0.0  # the device had the micro-batch in hand; gaps between its kernels are not seen
    data_wait_s: float = 0.0  # it had nothing in hand, and the next batch was being waited for

    def __add__(self, other: "Times") -> "Times":
        return Times(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass
class _MicroBatch:
    before: Event  # the end of the one before, or the start of the clock
    start: Event
    end: Event
    waited_s: float

    def times(self) -> Times:
        gap_s, device_s = self.before.elapsed_time(self.start) / 1000, self.start.elapsed_time(self.end) / 1000
        # While the host waited for data, the device may still have worked through what it had: that costs nothing.
        return Times(gap_s + device_s, device_s, min(self.waited_s, gap_s))


class StepTimer:
    """Events at the start and the end of each micro-batch, read once the device has passed them.

    Args:
        new_event: makes an Event.
    """

    def __init__(self, new_event: Callable[[], Event]) -> None:
        self._new_event = new_event
        self._pending: deque[_MicroBatch] = deque()
        self.restart()

    def restart(self) -> None:
        """The time since the last micro-batch is not training's: a validation, say."""
        self._before = self._mark()

    def start(self) -> None:
        """The next micro-batch is on the device and about to be computed."""
        self._start = self._mark()

    def end(self, waited_s: float) -> None:
        """All of the micro-batch was handed to the device; its data had been waited for this long (s)."""
        end = self._mark()
        self._pending.append(_MicroBatch(self._before, self._start, end, waited_s))
        self._before = end

    def take(self) -> Times:
        """Times of the micro-batches that the device has finished since the last call."""
        taken = Times()
        while self._pending and self._pending[0].end.query():
            taken += self._pending.popleft().times()
        return taken

    def _mark(self) -> Event:
        event = self._new_event()
        event.record()
        return event
