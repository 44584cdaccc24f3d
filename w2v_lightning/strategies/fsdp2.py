"""FSDP2 as a Lightning strategy: weights, gradients and optimiser state sharded across devices.

Checkpoints are whole, in one file, as under any other strategy, so that a run can resume under another strategy and on
any number of devices.
"""

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy, StrategyRegistry
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from w2v_lightning.compat.torch import FSDPModule
from w2v_lightning.errors import InputError
from w2v_lightning.model.sharding import gather, scatter
from w2v_lightning.strategies.sagemaker_environment import SageMakerEnvironment


class FSDP2Strategy(ModelParallelStrategy):
    """Lightning's ModelParallelStrategy with FSDP2 over all devices; docs/distributed.md says when it pays.

    The module shards itself (PlannedModule.configure_model). All processes must have built it with the same seed,
    because weights are not broadcast.

    Args:
        options: process_group_backend and timeout, as for Lightning's ModelParallelStrategy.

    precision=16-mixed raises an InputError when training starts, because Lightning scales its gradients on each device
    separately.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False, **options)
        if SageMakerEnvironment.detect():
            self.cluster_environment = SageMakerEnvironment()

    def setup_environment(self) -> None:
        if torch.__version__ < "2.6":
            raise InputError(f"trainer.strategy=fsdp2 needs torch 2.6 or later, found {torch.__version__}; use ddp.")
        if isinstance(self.precision_plugin, MixedPrecision) and self.precision_plugin.precision == "16-mixed":
            raise InputError("trainer.precision=16-mixed is not supported by fsdp2; use bf16-mixed or 32-true.")
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    # ---- scoring: ranks may have different numbers of batches ------------------------------------------------------

    def on_validation_start(self) -> None:
        gather(self._module)

    def on_validation_end(self) -> None:
        scatter(self._module)

    on_test_start = on_predict_start = on_validation_start
    on_test_end = on_predict_end = on_validation_end

    # ---- checkpoints: whole, in one file -------------------------------------------------------------------------

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return all weights in host memory on the first rank. A collective operation: call it on all ranks."""
        return self._whole(self._module.state_dict())

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return the whole state in host memory on the first rank. A collective operation: call it on all ranks."""
        return self._whole(optimizer.state_dict())

    @property
    def _module(self) -> LightningModule:
        assert self.lightning_module is not None  # Lightning connects it before any of these hooks
        return self.lightning_module

    def _whole(self, state: dict[str, Any]) -> dict[str, Any]:
        def whole(part: DTensor) -> Tensor | None:
            tensor = part.full_tensor()  # one at a time, so that the device holds only one whole tensor
            return tensor.cpu() if self.is_global_zero else None

        return apply_to_collection(state, DTensor, whole)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        Strategy.save_checkpoint(self, checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        return Strategy.load_checkpoint(self, checkpoint_path, weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        parts = self._module.state_dict()
        weights = {name: _part(tensor, parts.get(name)) for name, tensor in checkpoint["state_dict"].items()}
        self._module.load_state_dict(weights, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            parts = {
                number: {name: _part(value, parameters[number]) for name, value in values.items()}
                for number, values in state["state"].items()
            }
            optimizer.load_state_dict({**state, "state": parts})


def _part(whole: Any, like: Any) -> Any:
    """Return this device's shard of `whole` if `like` is sharded and has the same shape, otherwise `whole` itself."""
    if not (isinstance(like, DTensor) and isinstance(whole, Tensor) and whole.shape == like.shape):
        return whole
    on_device = whole.to(like.device_mesh.device_type)
    # Every rank has read the whole tensor, so there is nothing to communicate (src_data_rank=None).
    return distribute_tensor(on_device, like.device_mesh, like.placements, src_data_rank=None)


def whole_module(trainer: Trainer) -> LightningModule:
    """Return the trained module; if its weights are sharded, the first rank gets a copy with all of them.

    A collective operation: call it on all ranks.
    """
    module = trainer.lightning_module
    if not isinstance(module, FSDPModule):
        return module
    weights = trainer.strategy.lightning_module_state_dict()
    if not trainer.is_global_zero:
        return module
    # LightningCLI adds "_instantiator" to the arguments.
    arguments = {name: value for name, value in module.hparams.items() if name != "_instantiator"}
    whole = type(module)(**arguments)
    whole.load_state_dict(weights)
    return whole


StrategyRegistry.register("fsdp2", FSDP2Strategy, "weights and optimiser state sharded across devices", override=True)
