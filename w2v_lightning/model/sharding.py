"""Weights shared out among the devices (FSDP2): each holds a part of them, and all of a layer's only to compute it.

torch gathers a module's weights in hooks around its forward. Ours is computed by functions in the LightningModule's
forward: what belongs to no transformer layer is gathered as that begins, and kept until its backward pass is over. For
the layers, the function is made a method that is hooked likewise.
"""

from collections.abc import Sequence
from types import MethodType

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from w2v_lightning.model.layers import Bounds, transformer_layer
from w2v_lightning.model.speed import Speed


def shard(module: nn.Module, layers: nn.ModuleList, mesh: DeviceMesh) -> None:
    """Share out the parameters of `module`, in place, among the devices of `mesh`; a second time does nothing.

    Each of its transformer `layers` is gathered by itself. What all devices hold before must be the same.
    """
    if isinstance(module, FSDPModule):
        return
    for layer in layers:
        fully_shard(layer, mesh=mesh)
        layer.gathered = MethodType(transformer_layer, layer)
        register_fsdp_forward_method(layer, "gathered")
    fully_shard(module, mesh=mesh)
    module.gather_layers = MethodType(_gather_layers, module)
    register_fsdp_forward_method(module, "gather_layers")


def gather(module: nn.Module) -> None:
    """All weights to all devices, until `scatter`: then a step exchanges nothing, and ranks may make different numbers.

    All ranks must ask.
    """
    module.set_reshard_after_forward(False)
    with torch.inference_mode(False), torch.no_grad():  # weights that a later training step uses, too
        module.gather_layers()


def _gather_layers(module: nn.Module) -> None:
    for layer in _sharded_layers(module):
        layer.unshard()


def scatter(module: nn.Module) -> None:
    """Each device has its part only, as before `gather`."""
    for layer in _sharded_layers(module):
        layer.set_reshard_after_forward(True)
        layer.reshard()
    module.reshard()


def _sharded_layers(module: nn.Module) -> list[FSDPModule]:
    return [part for part in module.modules() if isinstance(part, FSDPModule) and part is not module]


def gathered_layer(layer: nn.Module, hidden_XC: Tensor, bounds: Bounds, speed: Speed) -> Tensor:
    """`transformer_layer`, of a layer whose weights may be shared out."""
    if isinstance(layer, FSDPModule):
        return layer.gathered(hidden_XC, bounds, speed)
    return transformer_layer(layer, hidden_XC, bounds, speed)


def is_finite(module: nn.Module) -> bool:
    """Whether no weight is NaN or infinite. Waits for the device; where they are shared out, all ranks must ask."""
    return bool(total_norm([parameter.detach() for parameter in module.parameters()]).isfinite())


def total_norm(tensors: Sequence[Tensor]) -> Tensor:
    """The norm of all gradients, or weights, together. Where they are shared out, all ranks must ask."""
    norm = torch.nn.utils.get_total_norm(tensors)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
