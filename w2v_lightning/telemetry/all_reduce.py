"""Duration of all-reduces on an otherwise idle machine.

The time of a message is the median over repetitions, on the slowest rank.
"""

import statistics
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy, Strategy
from torch import Tensor
from torch.nn import Parameter

from w2v_lightning.compat.torch import ddp_buckets
from w2v_lightning.telemetry.step_timer import new_event

LATENCY_BYTES = 4 * 2**10  # so small that latency is all of its time
BUCKET_BYTES = 25 * 2**20  # torch's default, which PlannedDDPStrategy keeps
WARM_UP = 3
# A repetition runs several exchanges in a row, as nccl-tests does, to exceed the clock's resolution. Large messages are
# slow enough alone: a repetition sends at most BYTES_IN_A_ROW.
MOST_IN_A_ROW, BYTES_IN_A_ROW = 20, 64 * 2**20
REPETITIONS, MEASURE_FOR_S = 5, 1.0  # at the start of a training run


def bucket_bytes(parameters: Iterable[Parameter]) -> list[int]:
    """Return the size of each bucket in which DDP sends the gradients of a module with these parameters."""
    gradients: list[Tensor] = [p for p in reversed(list(parameters)) if p.requires_grad]
    buckets = ddp_buckets(gradients, BUCKET_BYTES)
    return [sum(gradients[i].numel() * gradients[i].element_size() for i in bucket) for bucket in buckets]


def exchange_s(messages: Sequence[int], device: torch.device, repetitions: int, warm_up: int = WARM_UP) -> float:
    """Measure how long all-reduces of these sizes take (s) when started together. Every rank must call this.

    Args:
        messages: size of each message (bytes).
        device: device of the messages.
        repetitions: number of timed repetitions; their median is returned.
        warm_up: number of repetitions before the timed ones.
    """
    tensors = [torch.zeros(num_bytes // 4, device=device) for num_bytes in messages]
    in_a_row = max(1, min(MOST_IN_A_ROW, BYTES_IN_A_ROW // sum(messages)))

    def exchange() -> None:
        for _ in range(in_a_row):
            for work in [dist.all_reduce(tensor, async_op=True) for tensor in tensors]:
                work.wait()

    for _ in range(warm_up):
        exchange()
    seconds = torch.tensor(_median_s(exchange, device, repetitions) / in_a_row, device=device)
    dist.all_reduce(seconds, dist.ReduceOp.MAX)
    return float(seconds)


def measure(strategy: Strategy, parameters: Iterable[Parameter]) -> dict[str, Any] | None:
    """Measure the network of a run: its latency, and the exchange of all gradients.

    Takes about a second, or as long as one exchange of the gradients if that is slower.

    Returns:
        `latency_ms` of 4 KiB, `gradients_ms` of `gradient_bytes`; None if DDP exchanges no gradients.
    """
    if not isinstance(strategy, DDPStrategy) or strategy.world_size == 1:
        return None
    device, buckets = strategy.root_device, bucket_bytes(parameters)
    latency_s = exchange_s([LATENCY_BYTES], device, REPETITIONS, warm_up=1)
    # The first exchange also opens connections, so it is slow. It is the same on all ranks, so they choose alike below.
    once_s = exchange_s(buckets, device, repetitions=1, warm_up=0)
    repetitions = min(REPETITIONS, int(MEASURE_FOR_S / once_s))
    gradients_s = exchange_s(buckets, device, repetitions, warm_up=0) if repetitions else once_s
    if device.type == "cuda":
        torch.cuda.empty_cache()  # micro-batches need blocks of other sizes
    return {
        "latency_ms": 1000 * latency_s,
        "gradients_ms": 1000 * gradients_s,
        "gradient_bytes": sum(buckets),
    }


def _median_s(exchange: Callable[[], None], device: torch.device, repetitions: int) -> float:
    marks = [new_event(device) for _ in range(repetitions + 1)]
    marks[0].record()
    for mark in marks[1:]:
        exchange()
        mark.record()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return statistics.median(a.elapsed_time(b) / 1000 for a, b in pairwise(marks))
