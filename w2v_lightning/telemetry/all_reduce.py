"""How long all-reduces take with nothing else going on.

A message's time is the median over repetitions, on the slowest rank.
"""

import statistics
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy, Strategy
from torch.nn import Parameter

from w2v_lightning.telemetry.step_timer import new_event

LEAST_BYTES = 4 * 2**10  # a message of which the time is all latency
BUCKET_BYTES = 25 * 2**20  # torch's default, which PlannedDDPStrategy keeps
WARM_UP = 3
# A repetition is so many in a row, as in nccl-tests, that the clock sees more than itself; large ones need no company.
MOST_IN_A_ROW, BYTES_IN_A_ROW = 20, 64 * 2**20
REPETITIONS, MEASURE_FOR_S = 5, 1.0  # as a run begins


def bucket_bytes(parameters: Iterable[Parameter]) -> list[int]:
    """Of each of the buckets in which DDP sends the gradients of a module with these parameters."""
    gradients = [p for p in reversed(list(parameters)) if p.requires_grad]
    limits = [dist._DEFAULT_FIRST_BUCKET_BYTES, BUCKET_BYTES]
    buckets, _ = dist._compute_bucket_assignment_by_size(gradients, limits)
    return [sum(gradients[i].numel() * gradients[i].element_size() for i in bucket) for bucket in buckets]


def exchange_s(messages: Sequence[int], device: torch.device, repetitions: int, warm_up: int = WARM_UP) -> float:
    """Seconds of all-reduces of so many bytes each, all at once. Every rank has to call this.

    Args:
        messages: bytes.
        device: where they lie.
        repetitions: of which the median counts.
        warm_up: repetitions before those.
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


def measured(strategy: Strategy, parameters: Iterable[Parameter]) -> dict[str, Any] | None:
    """What the network of a run does: latency, and all gradients at once; in about a second, or one exchange of them.

    Returns:
        `latency_ms` of 4 KiB, `gradients_ms` of `gradient_bytes`; None where no gradients are exchanged by DDP.
    """
    if not isinstance(strategy, DDPStrategy) or strategy.world_size == 1:
        return None
    device, buckets = strategy.root_device, bucket_bytes(parameters)
    latency_s = exchange_s([LEAST_BYTES], device, REPETITIONS, warm_up=1)
    once_s = exchange_s(buckets, device, repetitions=1, warm_up=0)  # slow, where connections are made: the same for all
    repetitions = min(REPETITIONS, int(MEASURE_FOR_S / once_s))
    gradients_s = exchange_s(buckets, device, repetitions, warm_up=0) if repetitions else once_s
    if device.type == "cuda":
        torch.cuda.empty_cache()  # for the micro-batches, which want it in other pieces
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
