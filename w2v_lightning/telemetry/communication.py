"""What the exchange of gradients costs a run, as it trains: no profiler, no waiting for the device, no clocks compared.

DDP sends gradients while the backward pass goes on. What it cannot hide is exposed: behind the last gradient the device
waits for the buckets that are still under way. Autograd calls back between the two, so two events see it.

All ranks leave an all-reduce together, but come to it one by one. On the last one the exposed time is what the network
takes; what another rank has more than that, it has waited for the slowest.

Shapes: R ranks, S steps.
"""

import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import Strategy
from torch import Tensor
from torch.autograd import Variable
from torch.nn.parallel import DistributedDataParallel

from w2v_lightning.telemetry.step_timer import Event, new_event


class ExposedTime:
    """Of each step of this process, for how long gradients were on their way with nothing left to compute (s)."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._last_gradient: Event | None = None  # of this backward pass, where gradients are exchanged
        self._pending: deque[tuple[Event, Event]] = deque()
        self._exposed_s_S: list[float] = []

    def before_backward(self, strategy: Strategy, loss: Tensor) -> None:
        """The micro-batch whose backward pass begins exchanges gradients, or it is left out."""
        self._last_gradient = None
        model = strategy.model
        if isinstance(model, DistributedDataParallel) and model.require_backward_grad_sync:
            # Queued as the backward pass begins, it is called before DDP's own, which waits for the buckets.
            loss.register_hook(lambda _: Variable._execution_engine.queue_callback(self._mark_last_gradient))

    def after_backward(self) -> None:
        if self._last_gradient:
            end = new_event(self._device)
            end.record()
            self._pending.append((self._last_gradient, end))
        self._take()

    def report(self, strategy: Strategy) -> dict[str, Any] | None:
        """Milliseconds per step, over all ranks, which must all ask; None where no gradients were exchanged."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self._take()
        if not self._exposed_s_S:
            return None
        exposed_ms_RS = torch.zeros(strategy.world_size, len(self._exposed_s_S), device=strategy.root_device)
        exposed_ms_RS[strategy.global_rank] = 1000 * torch.tensor(self._exposed_s_S)
        return summary(strategy.reduce(exposed_ms_RS, reduce_op="sum").cpu())

    def _mark_last_gradient(self) -> None:
        self._last_gradient = new_event(self._device)
        self._last_gradient.record()

    def _take(self) -> None:
        """What the device has passed by now."""
        while self._pending and self._pending[0][1].query():
            last_gradient, end = self._pending.popleft()
            self._exposed_s_S.append(last_gradient.elapsed_time(end) / 1000)


def summary(exposed_ms_RS: Tensor) -> dict[str, Any]:
    """Means and medians; the median leaves out the first steps, in which kernels are compiled and memory is found."""
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
    """Bytes over this host's network interfaces but the loopback, as the kernel counts them; EFA passes it by."""

    received: int
    sent: int
    time_s: float

    @classmethod
    def now(cls, interfaces: Path = Path("/sys/class/net")) -> "Traffic | None":
        """None where the kernel does not say. What has a master, such as a bridge, is counted there."""
        counted = [i for i in interfaces.glob("*") if i.name != "lo" and not (i / "master").exists()]
        try:
            received, sent = (
                sum(int((i / "statistics" / f"{way}_bytes").read_text()) for i in counted) for way in ("rx", "tx")
            )
        except OSError:  # an interface has gone
            return None
        return cls(received, sent, time.perf_counter()) if counted else None

    def rates_until(self, end: "Traffic") -> dict[str, float]:
        seconds = end.time_s - self.time_s
        return {
            "network_received_bytes_per_s": (end.received - self.received) / seconds,
            "network_sent_bytes_per_s": (end.sent - self.sent) / seconds,
        }
