"""DDP for a module that follows the plan: every parameter has a gradient in every step, buffers are each rank's own."""

from datetime import timedelta
from typing import Any, Literal

import torch
from lightning.fabric.plugins.collectives.torch_collective import default_pg_timeout
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.distributed import ReduceOp
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook, fp16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from w2v_lightning.errors import InputError

Compression = Literal["none", "bf16", "fp16"]
HOOKS = {"none": None, "bf16": bf16_compress_hook, "fp16": fp16_compress_hook}


class PlannedDDPStrategy(DDPStrategy):
    """Lightning's DDPStrategy, set for PlannedModule; docs/distributed.md says how gradients travel.

    What is set, and why:

    - `gradient_as_bucket_view`: gradients live in the buckets that travel, which saves a copy and the memory of it.
    - No search for unused parameters: there are none, a dropped or frozen layer has gradients of zero.
    - No broadcast of buffers: those of our modules are sums of a rank's own.
    - torch's sizes of buckets: the first leaves once it holds 1 MiB, that is behind the CTC head and one matrix of the
      last layer, the others once they hold 25 MiB. With any `bucket_cap_mb`, even 25, the first waits for as much.
    - No `static_graph`, although every step uses the same parameters: it saves nothing where unused ones are not
      searched for, and with accumulated micro-batches torch fails in the first step (2.11: expect_autograd_hooks_).

    Args:
        gradient_compression: gradients travel in half precision: half the bytes, but what is summed is rounded, so that
            results depend on the number of devices. fp16 may overflow.
        timeout: after which ranks end that wait in vain for another one, where NCCL does not notice by itself.
        options: as for Lightning's DDPStrategy; those of torch's DistributedDataParallel too.

    Raises:
        InputError: there is no such compression.
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
        # Layers are compiled one by one (model/layers.py): dynamo need not cut them at the bounds of buckets.
        torch._dynamo.config.optimize_ddp = False
        super().configure_ddp()

    def _setup_model(self, model: nn.Module) -> DistributedDataParallel:
        """As Lightning's, but on the stream that computes: from one of its own, gradients would be accumulated there,
        one parameter after the other between two streams that wait for each other, of which torch warns."""
        return DistributedDataParallel(model, device_ids=self.determine_ddp_device_ids(), **self._ddp_kwargs)

    def _register_ddp_hooks(self) -> None:
        super()._register_ddp_hooks()
        if self._ddp_comm_hook and self.root_device.type != "cuda":  # which Lightning leaves out
            self.model.register_comm_hook(self._ddp_comm_state, self._ddp_comm_hook)

    def reduce(self, tensor: Any, group: Any = None, reduce_op: ReduceOp | str | None = "mean") -> Any:
        """In place, over all ranks, as Lightning's; but without a barrier before it, in which the host would wait for
        the device, and means are sums, divided, which every backend knows. What is no tensor stays as it is."""
        if not isinstance(tensor, Tensor) or not torch.distributed.is_initialized():
            return tensor
        is_mean = reduce_op in ("mean", "avg") if isinstance(reduce_op, str) else reduce_op == ReduceOp.AVG
        named = getattr(ReduceOp, reduce_op.upper()) if isinstance(reduce_op, str) and not is_mean else reduce_op
        torch.distributed.all_reduce(tensor, op=ReduceOp.SUM if is_mean else named, group=group)
        return tensor.copy_(tensor / torch.distributed.get_world_size(group)) if is_mean else tensor
