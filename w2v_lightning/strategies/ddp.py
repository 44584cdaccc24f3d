"""DDP strategy for PlannedModule: every parameter has a gradient in every step, and buffers differ between ranks."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any, Literal

import torch
from lightning.fabric.plugins.collectives.torch_collective import default_pg_timeout
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.distributed import ReduceOp
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook, fp16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from w2v_lightning.compat.torch import compile_whole_graphs_under_ddp
from w2v_lightning.errors import InputError

Compression = Literal["none", "bf16", "fp16"]
HOOKS: dict[str, Callable[..., Any] | None] = {"none": None, "bf16": bf16_compress_hook, "fp16": fp16_compress_hook}


class PlannedDDPStrategy(DDPStrategy):
    """Lightning's DDPStrategy with settings for PlannedModule; docs/distributed.md explains the gradient exchange.

    Settings and their reasons:

    - `gradient_as_bucket_view`: gradients are views of the communication buckets, which saves a copy and its memory.
    - No search for unused parameters: there are none, because a dropped or frozen layer has gradients of zero.
    - No broadcast of buffers: those of our modules are sums that differ between ranks.
    - torch's default bucket sizes: the first bucket is sent once it holds 1 MiB, that is after the CTC head and one
      matrix of the last layer; the others once they hold 25 MiB. Any `bucket_cap_mb`, even 25, applies to the first
      bucket as well and delays it.
    - No `static_graph`, although every step uses the same parameters: it saves nothing without the search for unused
      ones, and with accumulated micro-batches torch fails in the first step (2.11: expect_autograd_hooks_).

    Args:
        gradient_compression: data type in which gradients are exchanged: bf16 and fp16 halve the bytes, but sums are
            rounded, so that results depend on the number of devices. fp16 may overflow. none (default) is exact.
        timeout: time after which ranks stop waiting for a missing rank, where NCCL does not notice by itself.
        options: as for Lightning's DDPStrategy, including those of torch's DistributedDataParallel.

    Raises:
        InputError: the compression is not supported.
    """

    def __init__(
        self, gradient_compression: Compression = "none", timeout: timedelta = default_pg_timeout, **options: Any
    ) -> None:
        if gradient_compression not in HOOKS:
            raise InputError(
                f"trainer.strategy: gradient_compression is {gradient_compression!r}; choose from {', '.join(HOOKS)}."
            )
        settings = {"gradient_as_bucket_view": True, "broadcast_buffers": False, "find_unused_parameters": False}
        super().__init__(ddp_comm_hook=HOOKS[gradient_compression], timeout=timeout, **(settings | options))

    def configure_ddp(self) -> None:
        # Layers are compiled one by one (model/layers.py), so dynamo need not split graphs at bucket boundaries.
        compile_whole_graphs_under_ddp()
        super().configure_ddp()

    def _setup_model(self, model: nn.Module) -> DistributedDataParallel:
        """Wrap `model` on the current stream.

        Lightning does it on a side stream. Gradients would then be accumulated there, parameter by parameter, with the
        two streams waiting for each other; torch warns about that.
        """
        return DistributedDataParallel(model, device_ids=self.determine_ddp_device_ids(), **self._ddp_kwargs)

    def _register_ddp_hooks(self) -> None:
        super()._register_ddp_hooks()
        if self._ddp_comm_hook and self.root_device.type != "cuda":  # Lightning registers hooks on CUDA only
            assert isinstance(self.model, DistributedDataParallel)
            self.model.register_comm_hook(self._ddp_comm_state, self._ddp_comm_hook)

    def reduce(self, tensor: Any, group: Any = None, reduce_op: ReduceOp | str | None = "mean") -> Any:
        """Reduce `tensor` over all ranks in place; anything but a tensor is returned unchanged.

        Unlike Lightning's, without a barrier before it, in which the host would wait for the device. Means are computed
        as a sum and a division, because not every backend has an average.
        """
        if not isinstance(tensor, Tensor) or not torch.distributed.is_initialized():
            return tensor
        # mypy: torch's stubs separate ReduceOp from the type of its members.
        is_mean = reduce_op in ("mean", "avg") if isinstance(reduce_op, str) else reduce_op == ReduceOp.AVG  # type: ignore[comparison-overlap]
        named = getattr(ReduceOp, reduce_op.upper()) if isinstance(reduce_op, str) and not is_mean else reduce_op
        torch.distributed.all_reduce(tensor, op=ReduceOp.SUM if is_mean else named, group=group)
        return tensor.copy_(tensor / torch.distributed.get_world_size(group)) if is_mean else tensor
