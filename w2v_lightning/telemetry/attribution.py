"""Which part of training a profiled piece of work belongs to, in our vocabulary."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile

# Ranges that the model opens around its parts (torch.profiler.record_function), and PyTorch around its own.
MODEL_RANGES = ("feature encoder", "positional convolution", "attention", "feed-forward", "CTC")
OTHER_RANGES = (
    (re.compile(r"enumerate\(DataLoader\)"), "data wait"),
    (re.compile(r"nccl|gloo|c10d::|DistributedDataParallel\.reducer", re.IGNORECASE), "communication"),
    (re.compile(r"Optimizer\."), "optimiser"),
)
# Lightning computes forward and backward inside the optimiser's step: what has one of these around it is not its own.
FORWARD, BACKWARD = "forward", "backward"

# By the name of a kernel or an operator, where no range says more: those of compiled code are without.
NAMES = tuple(
    (re.compile(pattern, re.IGNORECASE), group)
    for pattern, group in (
        (r"nccl|gloo", "communication"),
        (r"flash|fmha|sdpa|scaled_dot_product", "attention"),
        (r"ctc", "CTC"),
        (r"adam|multi_tensor|_foreach", "optimiser"),
        (r"fft|cgemm|spectra", "positional convolution"),
        (r"memcpy|memset", "copies"),
        (r"gemm|nvjet|cutlass|\b(mm|addmm|bmm|baddbmm)\b", "layer matrix products"),
        (r"gelu", "feed-forward"),
        (r"triton_|layer_norm", "layer pointwise"),
        (r"conv", "feature encoder"),
    )
)


@dataclass(frozen=True)
class Work:
    """A kernel, or on the CPU an operator without what it calls."""

    name: str
    ancestors: Sequence[str]  # operators and ranges around it, the innermost first
    time_s: float


def group_of(name: str, ancestors: Sequence[str]) -> str:
    """The part of training that this belongs to: by the innermost range that says so, or else by name."""
    inside = list(takewhile(lambda called: called not in (FORWARD, BACKWARD), (name, *ancestors)))
    for called in inside:
        if called in MODEL_RANGES:
            return called
        for pattern, group in OTHER_RANGES:
            if pattern.search(called):
                return group
    for pattern, group in NAMES:
        if any(pattern.search(called) for called in inside):
            return group
    return "other"


def time_by_group(works: Iterable[Work]) -> dict[str, float]:
    """Seconds of each group, the costliest first."""
    seconds: dict[str, float] = {}
    for work in works:
        group = group_of(work.name, work.ancestors)
        seconds[group] = seconds.get(group, 0.0) + work.time_s
    return dict(sorted(seconds.items(), key=lambda item: -item[1]))
