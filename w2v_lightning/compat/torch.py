"""Private names of torch."""

import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Variable
from torch.nn.utils.parametrizations import _WeightNorm

try:
    from torch.distributed.fsdp import FSDPModule as FSDPModule
    from torch.distributed.fsdp import fully_shard as fully_shard
    from torch.distributed.fsdp import register_fsdp_forward_method as register_fsdp_forward_method
except ImportError:  # a private module of torch 2.5, for the names only: FSDP2Strategy refuses that release
    from torch.distributed._composable.fsdp import FSDPModule as FSDPModule
    from torch.distributed._composable.fsdp import fully_shard as fully_shard
    from torch.distributed._composable.fsdp import register_fsdp_forward_method as register_fsdp_forward_method

WeightNorm = _WeightNorm  # the parametrisation of wav2vec2's positional convolution, computed by a kernel of our own


def multiply_(tensors: Sequence[Tensor], factor: Tensor) -> None:
    """Multiply all tensors in place, by one kernel launch for many of them."""
    torch._foreach_mul_(list(tensors), factor)


def zero_(tensors: Sequence[Tensor]) -> None:
    """Fill all tensors with zeros, by few kernel launches."""
    torch._foreach_zero_(list(tensors))


def add_(tensors: Sequence[Tensor], others: Sequence[Tensor]) -> None:
    """Add to each tensor in place the other one of its number, by few kernel launches."""
    torch._foreach_add_(list(tensors), list(others))


def total_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Return the norm of all tensors together; sharded ones give a sharded norm."""
    if hasattr(torch.nn.utils, "get_total_norm"):
        return torch.nn.utils.get_total_norm(tensors)
    # torch 2.5 computes this only inside clip_grad_norm_.
    if not tensors:
        return torch.tensor(0.0)
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(tensors))))


def memory_fraction(device: torch.device) -> float:
    """Return the share of a GPU's memory that this process may allocate; torch 2.5 cannot tell, which counts as 1."""
    if not hasattr(torch.cuda, "get_per_process_memory_fraction"):
        return 1.0
    return torch.cuda.get_per_process_memory_fraction(device)


def queue_backward_callback(callback: Callable[[], None]) -> None:
    """Run `callback` at the end of the backward pass that is in progress, before callbacks that are queued later."""
    Variable._execution_engine.queue_callback(callback)


def clone_default_store() -> Any:
    """Return a new connection to the store of the default process group; requests on one connection wait in line."""
    store: Any = dist.distributed_c10d._get_default_store()
    if hasattr(store, "clone"):
        return store.clone()
    # torch 2.5 cannot clone a store: open another connection to its server. A prefix cannot be read back, so the ranks
    # agree on a new one. A store without a server is used as it is.
    server = store._underlying_non_prefix_store
    if not isinstance(server, dist.TCPStore):
        return store
    prefix = store.compare_set("w2v_lightning/clone", "", secrets.token_hex(8)).decode()
    connection = dist.TCPStore(server.host, server.port, is_master=False, wait_for_workers=False)
    return dist.PrefixStore(prefix, connection)


def ddp_buckets(gradients: Sequence[Tensor], bucket_bytes: int) -> list[list[int]]:
    """Return the indices of the gradients in each bucket, as DDP forms them."""
    limits = [dist._DEFAULT_FIRST_BUCKET_BYTES, bucket_bytes]
    buckets, _ = dist._compute_bucket_assignment_by_size(list(gradients), limits)
    return buckets


def allow_clipping(optimizer: torch.optim.Optimizer) -> None:
    """Let Lightning clip gradients: it does not, for an optimiser that could unscale them itself, as fused ones can."""
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]


def compile_whole_graphs_under_ddp() -> None:
    """Keep dynamo from splitting graphs at DDP's bucket boundaries: layers are compiled one by one."""
    torch._dynamo.config.optimize_ddp = False


def recompile_limit(limit: int) -> AbstractContextManager[None]:
    """Raise the number of graphs that torch.compile keeps for one function."""
    name = "recompile_limit" if hasattr(torch._dynamo.config, "recompile_limit") else "cache_size_limit"  # torch 2.5
    return torch._dynamo.config.patch({name: limit})


@contextmanager
def allocating_in(pool: Any, device: torch.device) -> Iterator[None]:
    """Let this thread allocate from the pool of a CUDA graph that still exists, without recording; as torch._inductor.

    torch.cuda.use_mem_pool would need a MemPool, which ends the process if it is collected before the graphs. torch 2.5
    cannot do this, and allocates as usual.
    """
    if not hasattr(torch._C, "_cuda_beginAllocateCurrentThreadToPool"):
        yield
        return
    index = torch.cuda.current_device() if device.index is None else device.index
    torch._C._cuda_beginAllocateCurrentThreadToPool(index, pool)
    try:
        yield
    finally:
        torch._C._cuda_endAllocateToPool(index, pool)
        torch._C._cuda_releasePool(index, pool)
