"""AWS's SMDDP as a Lightning strategy, and what takes its place where it cannot work."""

import logging
from importlib import import_module
from typing import Any, Literal

import torch
from lightning.fabric.plugins import ClusterEnvironment
from lightning.fabric.utilities.distributed import _InfiniteBarrier, _init_dist_connection
from lightning.pytorch.strategies import StrategyRegistry
from lightning.pytorch.trainer.connectors import data_connector

from w2v_lightning.errors import InputError
from w2v_lightning.strategies.backend import SMDDP_MODULE, Requested, choose_backend, has_smddp
from w2v_lightning.strategies.ddp import PlannedDDPStrategy
from w2v_lightning.strategies.launcher import launcher_of
from w2v_lightning.strategies.sagemaker_environment import SageMakerEnvironment, find_hosts

log = logging.getLogger(__name__)


class SMDDPStrategy(PlannedDDPStrategy):
    """DDP over SMDDP where that can work, else over NCCL, or gloo on CPUs; `backend_reason` says why.

    SMDDP refuses some of what Lightning's DDPStrategy asks for. It has no average: PlannedDDPStrategy asks for sums. It
    has no second process group, in which Lightning waits for `prepare_data`. It is not known to take a `device_id`.

    After `import w2v_lightning.strategies.smddp`, `Trainer(strategy="smddp")` knows it by name.

    Args:
        backend: "smddp" and "auto" take SMDDP where it can work; "auto" does not warn where it cannot.
        fallback: what to do where "smddp" cannot work: go on over NCCL with a warning, or end in an error.
        cluster_environment: who is who among the processes; on SageMaker, a SageMakerEnvironment.
        options: as for PlannedDDPStrategy.

    As training starts, an InputError says why SMDDP cannot work here, if `fallback="error"`.
    """

    def __init__(
        self,
        backend: Requested = "smddp",
        fallback: Literal["nccl", "error"] = "nccl",
        cluster_environment: ClusterEnvironment | None = None,
        **options: Any,
    ) -> None:
        self._uses_smddp, self.backend_reason = _chosen(backend)
        self._falls_back = backend == "smddp" and not self._uses_smddp
        self._fallback = fallback
        if cluster_environment is None and SageMakerEnvironment.detect():
            cluster_environment = SageMakerEnvironment()
        name = "smddp" if self._uses_smddp else None  # None: Lightning takes what suits the device
        super().__init__(cluster_environment=cluster_environment, process_group_backend=name, **options)

    def setup_environment(self) -> None:
        if self._falls_back and self._fallback == "error":  # not in __init__: the command line's parser would wrap it
            raise InputError(f"trainer.strategy: smddp cannot be used: {self.backend_reason}.")
        super().setup_environment()

    def setup_distributed(self) -> None:
        if self._uses_smddp:
            data_connector._InfiniteBarrier = _GroupBarrier
            self.set_world_ranks()
            _init_dist_connection(self.cluster_environment, "smddp", timeout=self._timeout)  # without device_id
        super().setup_distributed()  # which keeps a group that there is
        if self.is_global_zero:
            log.log(
                logging.WARNING if self._falls_back else logging.INFO,
                "Gradients travel by %s between %d processes: %s.",
                *(self.process_group_backend, self.world_size, self.backend_reason),
            )


class _GroupBarrier(_InfiniteBarrier):
    """Where Lightning makes a group of gloo's to wait for `prepare_data` in, SMDDP's own group does."""

    def __enter__(self) -> "_GroupBarrier":
        if not (torch.distributed.is_initialized() and torch.distributed.get_backend() == "smddp"):
            return super().__enter__()
        self.barrier = torch.distributed.barrier
        return self


def _chosen(requested: Requested) -> tuple[bool, str]:
    """Is SMDDP used, which is then loaded; and why."""
    hosts = find_hosts()
    instance_type = hosts.instance_type if hosts else None
    backend, reason = choose_backend(instance_type, launcher_of(), has_smddp(), requested)
    if backend == "smddp":
        try:
            import_module(SMDDP_MODULE)
        except (ImportError, OSError) as error:  # made for another torch, or without its shared libraries
            return False, f"SMDDP is installed but cannot be loaded ({error})"
    return backend == "smddp", reason


StrategyRegistry.register("smddp", SMDDPStrategy, "DDP over AWS's SMDDP, or NCCL where it cannot work", override=True)
