"""Attribution of profiled kernels and operators to parts of training."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile

# Ranges that the model opens around its parts (torch.profiler.record_function), and those that PyTorch opens itself.
MODEL_RANGES = ("feature encoder", "positional convolution", "attention", "feed-forward", "CTC")
OTHER_RANGES = (
    (re.compile(r"enumerate\(DataLoader\)"), "data wait"),
    (re.compile(r"nccl|gloo|c10d::|DistributedDataParallel\.reducer", re.IGNORECASE), "communication"),
    (re.compile(r"Optimizer\."), "optimiser"),
)
# Lightning runs forward and backward inside the optimiser's step: work within these ranges is not the optimiser's.
FORWARD, BACKWARD = "forward", "backward"

# Fallback by the name of a kernel or an operator: compiled code runs outside the model's ranges.
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
    """A kernel, or an operator on the CPU without the operators that it calls."""

    name: str
    ancestors: Sequence[str]  # operators and ranges around it, the innermost first
    time_s: float


def group_of(name: str, ancestors: Sequence[str]) -> str:
    """Return the part of training that this work belongs to: by its innermost known range, otherwise by name."""
    scopes = list(takewhile(lambda scope: scope not in (FORWARD, BACKWARD), (name, *ancestors)))
    for scope in scopes:
        if scope in MODEL_RANGES:
            return scope
        for pattern, group in OTHER_RANGES:
            if pattern.search(scope):
                return group
    for pattern, group in NAMES:
        if any(pattern.search(scope) for scope in scopes):
            return group
    return "other"


def time_by_group(works: Iterable[Work]) -> dict[str, float]:
    """Sum the time of each group (s), the costliest group first."""
    seconds: dict[str, float] = {}
    for work in works:
        group = group_of(work.name, work.ancestors)
        seconds[group] = seconds.get(group, 0.0) + work.time_s
    return dict(sorted(seconds.items(), key=lambda item: -item[1]))
