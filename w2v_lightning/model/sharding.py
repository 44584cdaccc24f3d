"""Weights sharded across devices (FSDP2): each device holds a part, and a layer's whole weights only to compute it.

torch gathers a module's weights in hooks around its forward method. Our forward pass consists of functions called by
the LightningModule's forward: weights outside the transformer layers are gathered when that begins, and kept until the
end of the backward pass. For each layer, the function becomes a method that is hooked in the same way.
"""

from collections.abc import Sequence
from types import MethodType
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from w2v_lightning.compat import torch as compat
from w2v_lightning.compat.torch import FSDPModule, fully_shard, register_fsdp_forward_method
from w2v_lightning.model.layers import Bounds, EncoderLayer, transformer_layer
from w2v_lightning.model.speed import Speed


def shard(module: nn.Module, layers: nn.ModuleList, mesh: DeviceMesh) -> None:
    """Shard the parameters of `module`, in place, across the devices of `mesh`; a second call does nothing.

    Each of its transformer `layers` is gathered separately. All devices must hold the same weights before.
    """
    if isinstance(module, FSDPModule):
        return
    for layer in layers:
        fully_shard(layer, mesh=mesh)
        layer.gathered = MethodType(transformer_layer, layer)  # type: ignore[assignment]  # torch's stub of __setattr__
        register_fsdp_forward_method(layer, "gathered")
    fully_shard(module, mesh=mesh)
    module.gather_layers = MethodType(_gather_layers, module)  # type: ignore[assignment]
    register_fsdp_forward_method(module, "gather_layers")


def gather(module: nn.Module) -> None:
    """Gather all weights on all devices, until `scatter`.

    Steps in between have no collective operations, so ranks may have different numbers of them. This is itself a
    collective operation: call it on all ranks.
    """
    assert isinstance(module, FSDPModule)
    module.set_reshard_after_forward(False)
    with torch.inference_mode(False), torch.no_grad():  # a later training step uses the same weights
        module.gather_layers()  # type: ignore[operator]  # set by `shard`


def _gather_layers(module: nn.Module) -> None:
    for layer in _sharded_layers(module):
        layer.unshard()


def scatter(module: nn.Module) -> None:
    """Keep only each device's own part of the weights, as before `gather`."""
    assert isinstance(module, FSDPModule)
    for layer in _sharded_layers(module):
        layer.set_reshard_after_forward(True)
        layer.reshard()
    module.reshard()


def _sharded_layers(module: nn.Module) -> list[FSDPModule]:
    return [part for part in module.modules() if isinstance(part, FSDPModule) and part is not module]


def gathered_layer(layer: nn.Module, hidden_XC: Tensor, bounds: Bounds, speed: Speed) -> Tensor:
    """Run `transformer_layer` on a layer whose weights may be sharded."""
    if isinstance(layer, FSDPModule):
        return layer.gathered(hidden_XC, bounds, speed)  # type: ignore[operator]  # set by `shard`
    return transformer_layer(cast(EncoderLayer, layer), hidden_XC, bounds, speed)


def is_finite(module: nn.Module) -> bool:
    """Return True if all weights are finite. Waits for the device; if weights are sharded, call it on all ranks."""
    return bool(total_norm([parameter.detach() for parameter in module.parameters()]).isfinite())


def total_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Return the norm of all gradients, or weights, together. If they are sharded, call it on all ranks."""
    norm = compat.total_norm(tensors)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
