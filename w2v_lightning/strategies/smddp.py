"""AWS's SMDDP as a Lightning strategy, with a fallback to NCCL where SMDDP cannot work."""

import logging
from importlib import import_module
from typing import Any, Literal

import torch
from lightning.fabric.plugins import ClusterEnvironment
from lightning.pytorch.strategies import StrategyRegistry

from w2v_lightning.compat import lightning as compat
from w2v_lightning.errors import InputError
from w2v_lightning.strategies.backend import SMDDP_MODULE, Requested, choose_backend, has_smddp
from w2v_lightning.strategies.ddp import PlannedDDPStrategy
from w2v_lightning.strategies.launcher import launcher_of
from w2v_lightning.strategies.sagemaker_environment import SageMakerEnvironment, find_hosts

log = logging.getLogger(__name__)


class SMDDPStrategy(PlannedDDPStrategy):
    """DDP over SMDDP where it can work, otherwise over NCCL, or gloo on CPUs; `backend_reason` says why.

    SMDDP lacks some features that Lightning's DDPStrategy uses. It has no average, so PlannedDDPStrategy uses sums. It
    does not support a second process group, in which Lightning waits for `prepare_data`. Support for `device_id` is not
    documented.

    `import w2v_lightning.strategies.smddp` registers it for `Trainer(strategy="smddp")`.

    Args:
        backend: "smddp" (default) and "auto" use SMDDP where it can work; "auto" does not warn where it cannot.
        fallback: action where "smddp" cannot work: "nccl" (default) trains over NCCL with a warning, "error" raises an
            InputError with the reason when training starts.
        cluster_environment: ranks and addresses of the processes; default on SageMaker: a SageMakerEnvironment.
        options: as for PlannedDDPStrategy.
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
        name = "smddp" if self._uses_smddp else None  # None: Lightning chooses the device's backend
        super().__init__(cluster_environment=cluster_environment, process_group_backend=name, **options)

    def setup_environment(self) -> None:
        # Not in __init__, where the command line's parser would wrap the error.
        if self._falls_back and self._fallback == "error":
            raise InputError(f"trainer.strategy: smddp cannot be used: {self.backend_reason}.")
        super().setup_environment()

    def setup_distributed(self) -> None:
        if self._uses_smddp:
            compat.use_barrier(_GroupBarrier)
            self.set_world_ranks()
            assert self.cluster_environment is not None  # Lightning has set it before setup_distributed
            compat.init_dist_connection(self.cluster_environment, "smddp", timeout=self._timeout)  # without device_id
        super().setup_distributed()  # keeps an existing process group
        if self.is_global_zero:
            # SMDDP concerns only those who asked for it, or who train on SageMaker.
            is_relevant = self._falls_back or self._uses_smddp or find_hosts() is not None
            log.log(
                logging.WARNING if self._falls_back else logging.INFO,
                "Gradients are exchanged over %s between %d processes%s.",
                *(self.process_group_backend, self.world_size, f": {self.backend_reason}" if is_relevant else ""),
            )


class _GroupBarrier(compat.InfiniteBarrier):
    """Barrier around `prepare_data` in SMDDP's own group, where Lightning would create a second one, of gloo."""

    def __enter__(self) -> "_GroupBarrier":
        if not (torch.distributed.is_initialized() and torch.distributed.get_backend() == "smddp"):
            return super().__enter__()
        self.barrier = torch.distributed.barrier
        return self


def _chosen(requested: Requested) -> tuple[bool, str]:
    """Return whether SMDDP is used, and why; if it is, load it."""
    hosts = find_hosts()
    instance_type = hosts.instance_type if hosts else None
    backend, reason = choose_backend(instance_type, launcher_of(), has_smddp(), requested)
    if backend == "smddp":
        try:
            import_module(SMDDP_MODULE)
        except (ImportError, OSError) as error:  # built for another torch, or shared libraries are missing
            return False, f"SMDDP is installed but cannot be loaded ({error})"
    return backend == "smddp", reason


StrategyRegistry.register("smddp", SMDDPStrategy, "DDP over AWS's SMDDP, or NCCL where it cannot work", override=True)
