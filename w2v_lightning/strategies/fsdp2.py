"""FSDP2 as a Lightning strategy: weights, gradients and the optimiser's state shared out among the devices.

A checkpoint is the one file that it is under any other strategy, so that a run goes on under another, and on any number
of devices.
"""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy, StrategyRegistry
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from w2v_lightning.errors import InputError
from w2v_lightning.model.sharding import gather, scatter
from w2v_lightning.strategies.sagemaker_environment import SageMakerEnvironment


class FSDP2Strategy(ModelParallelStrategy):
    """Lightning's ModelParallelStrategy with FSDP2 over all devices; docs/distributed.md says when it pays.

    The module shares itself out (PlannedModule.configure_model). All processes must have built it alike, with the same
    seed: nothing is broadcast.

    Args:
        options: process_group_backend and timeout, as for Lightning's ModelParallelStrategy.

    As training starts, an InputError refuses precision=16-mixed, whose gradients Lightning scales on each device alone.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False, **options)
        if SageMakerEnvironment.detect():
            self.cluster_environment = SageMakerEnvironment()

    def setup_environment(self) -> None:
        if isinstance(self.precision_plugin, MixedPrecision) and self.precision_plugin.precision == "16-mixed":
            raise InputError("trainer.precision=16-mixed does not go with fsdp2; take bf16-mixed, or 32-true.")
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    # ---- scoring: ranks may have different numbers of batches ------------------------------------------------------

    def on_validation_start(self) -> None:
        gather(self.lightning_module)

    def on_validation_end(self) -> None:
        scatter(self.lightning_module)

    on_test_start = on_predict_start = on_validation_start
    on_test_end = on_predict_end = on_validation_end

    # ---- checkpoints: whole, in one file -------------------------------------------------------------------------

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """All weights, on the first rank, in the host's memory. All ranks must ask."""
        return self._whole(self.lightning_module.state_dict())

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Likewise."""
        return self._whole(optimizer.state_dict())

    def _whole(self, state: dict[str, Any]) -> dict[str, Any]:
        def whole(part: DTensor) -> Tensor | None:
            tensor = part.full_tensor()  # one after the other: the device holds but one of them
            return tensor.cpu() if self.is_global_zero else None

        return apply_to_collection(state, DTensor, whole)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        Strategy.save_checkpoint(self, checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        return Strategy.load_checkpoint(self, checkpoint_path, weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        parts = self.lightning_module.state_dict()
        weights = {name: _part(tensor, parts.get(name)) for name, tensor in checkpoint["state_dict"].items()}
        self.lightning_module.load_state_dict(weights, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            parts = {
                number: {name: _part(value, parameters[number]) for name, value in values.items()}
                for number, values in state["state"].items()
            }
            optimizer.load_state_dict({**state, "state": parts})


def _part(whole: Any, like: Any) -> Any:
    """This device's part of a tensor, if `like` is shared out and of the same shape; else what was given."""
    if not (isinstance(like, DTensor) and isinstance(whole, Tensor) and whole.shape == like.shape):
        return whole
    on_device = whole.to(like.device_mesh.device_type)
    return distribute_tensor(on_device, like.device_mesh, like.placements, src_data_rank=None)  # which all have read


def whole_module(trainer: Trainer) -> LightningModule:
    """The module that is trained. Where its weights are shared out: on the first rank, another one with all of them.

    All ranks must ask.
    """
    module = trainer.lightning_module
    if not isinstance(module, FSDPModule):
        return module
    weights = trainer.strategy.lightning_module_state_dict()
    if not trainer.is_global_zero:
        return module
    options = {name: value for name, value in module.hparams.items() if name != "_instantiator"}  # LightningCLI's mark
    whole = type(module)(**options)
    whole.load_state_dict(weights)
    return whole


StrategyRegistry.register("fsdp2", FSDP2Strategy, "weights and optimiser shared out among the devices", override=True)
