"""Cost of exchanging gradients, measured while training, without profiler, device synchronisation or clock comparison.

DDP sends gradients during the backward pass. The exposed time is what this cannot hide: after the last gradient is
computed, the device waits for the buckets that are still on their way. Autograd calls back in between, so that two
events measure the wait.

All ranks leave an all-reduce together, but enter it one by one. On the last rank to enter, the exposed time is the
network's; the additional time on any other rank was spent waiting for the slowest one.

Shapes: R ranks, S steps.
"""

import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import ParallelStrategy, Strategy
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from w2v_lightning.compat.torch import queue_backward_callback
from w2v_lightning.telemetry.step_timer import Event, new_event


class ExposedTime:
    """Seconds per step of this process in which gradients were on their way and nothing was left to compute."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._last_gradient: Event | None = None  # None while the current backward pass exchanges no gradients
        self._pending: deque[tuple[Event, Event]] = deque()
        self._exposed_s_S: list[float] = []

    def before_backward(self, strategy: Strategy, loss: Tensor) -> None:
        """Prepare to measure the backward pass that begins now, if it exchanges gradients."""
        self._last_gradient = None
        model = strategy.model
        if isinstance(model, DistributedDataParallel) and model.require_backward_grad_sync:
            # Queued at the start of the backward pass, so that it runs before DDP's callback, which waits for the
            # buckets.
            loss.register_hook(lambda _: queue_backward_callback(self._mark_last_gradient))

    def after_backward(self) -> None:
        if self._last_gradient:
            end = new_event(self._device)
            end.record()
            self._pending.append((self._last_gradient, end))
        self._take()

    def report(self, strategy: Strategy) -> dict[str, Any] | None:
        """Milliseconds per step over all ranks; None if no gradients were exchanged. Every rank must call this."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self._take()
        if not self._exposed_s_S:
            return None
        assert isinstance(strategy, ParallelStrategy)  # gradients are measured under DDP only
        exposed_ms_RS = torch.zeros(strategy.world_size, len(self._exposed_s_S), device=strategy.root_device)
        exposed_ms_RS[strategy.global_rank] = 1000 * torch.tensor(self._exposed_s_S)
        return summary(strategy.reduce(exposed_ms_RS, reduce_op="sum").cpu())

    def _mark_last_gradient(self) -> None:
        self._last_gradient = new_event(self._device)
        self._last_gradient.record()

    def _take(self) -> None:
        """Read the events that the device has passed by now."""
        while self._pending and self._pending[0][1].query():
            last_gradient, end = self._pending.popleft()
            self._exposed_s_S.append(last_gradient.elapsed_time(end) / 1000)


def summary(exposed_ms_RS: Tensor) -> dict[str, Any]:
    """Return means and medians of the exposed time; medians ignore the slow first steps (compilation, allocation)."""
    waiting_ms_RS = exposed_ms_RS - exposed_ms_RS.min(dim=0).values
    return {
        "steps": exposed_ms_RS.shape[1],
        "exposed_ms_per_step": float(exposed_ms_RS.mean()),
        "exposed_ms_median": float(exposed_ms_RS.mean(dim=0).median()),
        "waiting_ms_per_step": float(waiting_ms_RS.mean()),
        "waiting_ms_median": float(waiting_ms_RS.mean(dim=0).median()),
        "waiting_ms_per_step_of_ranks": [round(ms, 3) for ms in waiting_ms_RS.mean(dim=1).tolist()],
    }


@dataclass(frozen=True)
class Traffic:
    """Bytes over this host's network interfaces except loopback, by the kernel's counters, which do not see EFA."""

    received: int
    sent: int
    time_s: float

    @classmethod
    def now(cls, interfaces: Path = Path("/sys/class/net")) -> "Traffic | None":
        """Read the counters; None if there are none. An interface with a master, such as a bridge, counts there."""
        counted = [i for i in interfaces.glob("*") if i.name != "lo" and not (i / "master").exists()]
        try:
            received, sent = (
                sum(int((i / "statistics" / f"{direction}_bytes").read_text()) for i in counted)
                for direction in ("rx", "tx")
            )
        except OSError:  # an interface was removed meanwhile
            return None
        return cls(received, sent, time.perf_counter()) if counted else None

    def rates_until(self, end: "Traffic") -> dict[str, float]:
        seconds = end.time_s - self.time_s
        return {
            "network_received_bytes_per_s": (end.received - self.received) / seconds,
            "network_sent_bytes_per_s": (end.sent - self.sent) / seconds,
        }
