"""Private names of Lightning."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from lightning.fabric.utilities import distributed
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher, _SubprocessScriptLauncher
from lightning.pytorch.trainer.call import _interrupt
from lightning.pytorch.trainer.connectors import checkpoint_connector, data_connector

# Launchers are told apart: they start processes in different ways, and end with different exit statuses.
MultiProcessingLauncher = _MultiProcessingLauncher
SubprocessScriptLauncher = _SubprocessScriptLauncher

# Context manager in which rank 0 downloads or prepares while the others wait.
InfiniteBarrier = distributed._InfiniteBarrier
# Initialises the process group with a backend that Lightning does not know.
init_dist_connection = distributed._init_dist_connection


def use_barrier(barrier: type) -> None:
    """Replace the barrier around `prepare_data`: Lightning's opens a gloo group, which SMDDP does not have."""
    data_connector._InfiniteBarrier = barrier  # type: ignore[misc,assignment]


def interrupt(trainer: Trainer, exception: BaseException) -> None:
    """Call `on_exception` of all callbacks: Lightning does not, in processes that it has forked."""
    _interrupt(trainer, exception)


def disable_sigterm_handling(trainer: Trainer) -> None:
    """Switch off Lightning's reaction to SIGTERM, which broadcasts before every micro-batch and in a signal handler."""
    trainer._signal_connector._sigterm_notifier_fn = _nothing  # type: ignore[method-assign,assignment]
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = _nothing  # type: ignore[method-assign]


class GuardedConnector(checkpoint_connector._CheckpointConnector):
    """Part of the trainer that restores checkpoints, each within `guard(path)`."""

    def __init__(self, trainer: Trainer, guard: Callable[[str], AbstractContextManager[None]]) -> None:
        super().__init__(trainer)
        self.guard = guard

    def _restore_modules_and_callbacks(self, checkpoint_path: Any = None, weights_only: bool | None = None) -> None:
        with self.guard(str(checkpoint_path)):
            super()._restore_modules_and_callbacks(checkpoint_path, weights_only)

    def restore_training_state(self) -> None:
        with self.guard(str(self._ckpt_path)):
            super().restore_training_state()


def guard_restoring(trainer: Trainer, guard: Callable[[str], AbstractContextManager[None]]) -> None:
    """Let the trainer restore checkpoints within `guard(path)`."""
    trainer._checkpoint_connector = GuardedConnector(trainer, guard)


def dump_checkpoint(trainer: Trainer) -> dict[str, Any]:
    """Return the checkpoint on this rank alone: `trainer.save_checkpoint` has a barrier for all ranks."""
    return trainer._checkpoint_connector.dump_checkpoint(weights_only=False)


def set_logged_step(trainer: Trainer, step: int) -> None:
    """Set the x-axis of loggers; after resuming at the start of an epoch, Lightning counts one step too many."""
    trainer.fit_loop.epoch_loop._batches_that_stepped = step


def non_persistent_buffers(module: LightningModule) -> set[str]:
    """Return the names of buffers that are not in the state dict."""
    return module._non_persistent_buffers_set


def _nothing(*_: Any) -> None: ...
