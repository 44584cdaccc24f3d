"""Timing of micro-batches by events on the device's own clock, without ever waiting for the device."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Protocol, Self

import torch


class Event(Protocol):
    """A mark in the device's queue of work, as torch.cuda.Event."""

    def record(self) -> None: ...
    def query(self) -> bool: ...
    def elapsed_time(self, end_event: Self) -> float: ...


class HostEvent:
    """An Event for a CPU, which has always finished its work when the event is queried."""

    def record(self) -> None:
        self.time_s = time.perf_counter()

    def query(self) -> bool:
        return True

    def elapsed_time(self, end_event: "HostEvent") -> float:
        return 1000 * (end_event.time_s - self.time_s)


def new_event(device: torch.device) -> Event:
    """Create an event for a device; on a GPU it belongs to the current stream."""
    return torch.cuda.Event(enable_timing=True) if device.type == "cuda" else HostEvent()


@dataclass
class Times:
    """Times of finished micro-batches (s), each from the end of the previous one to its own end."""

    total_s: float = 0.0
    device_s: float = 0.0  # the device was processing the micro-batch, gaps between its kernels included
    data_wait_s: float = 0.0  # the device was idle while the host waited for the next batch

    def __add__(self, other: "Times") -> "Times":
        return Times(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass
class _MicroBatch:
    before: Event  # end of the previous micro-batch, or the start of the timer
    start: Event
    end: Event
    waited_s: float

    def times(self) -> Times:
        gap_s, device_s = self.before.elapsed_time(self.start) / 1000, self.start.elapsed_time(self.end) / 1000
        # While the host waited for data, the device may still have been working on its queue: that part costs nothing.
        return Times(gap_s + device_s, device_s, min(self.waited_s, gap_s))


class StepTimer:
    """Timer that marks the start and end of each micro-batch, and reads the marks once the device has passed them.

    Args:
        new_event: creates an Event.
    """

    def __init__(self, new_event: Callable[[], Event]) -> None:
        self._new_event = new_event
        self._pending: deque[_MicroBatch] = deque()
        self.restart()

    def restart(self) -> None:
        """Leave out the time since the last micro-batch, such as that of a validation."""
        self._before = self._mark()

    def start(self) -> None:
        """Mark that the next micro-batch is on the device and about to be computed."""
        self._start = self._mark()

    def end(self, waited_s: float) -> None:
        """Mark that all work of the micro-batch is queued; the host had waited `waited_s` seconds for its data."""
        end = self._mark()
        self._pending.append(_MicroBatch(self._before, self._start, end, waited_s))
        self._before = end

    def take(self) -> Times:
        """Return the times of the micro-batches that the device has finished since the last call."""
        taken = Times()
        while self._pending and self._pending[0].end.query():
            taken += self._pending.popleft().times()
        return taken

    def _mark(self) -> Event:
        event = self._new_event()
        event.record()
        return event
