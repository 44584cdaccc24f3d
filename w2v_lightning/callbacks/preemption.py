"""Preemption by SIGTERM: all ranks stop at the same point, save, and exit with a status that means "start me again".

Lightning's own handling would broadcast a flag before every micro-batch and wait for it, and would broadcast within the
signal handler, wherever the other ranks are.
"""

import logging
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any, NoReturn

import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.multiprocessing import ProcessExitedException

from w2v_lightning.callbacks.preemption_agreement import Agreement
from w2v_lightning.checkpoints.recent import checkpoint_path, drain
from w2v_lightning.compat.lightning import (
    MultiProcessingLauncher,
    SubprocessScriptLauncher,
    disable_sigterm_handling,
    interrupt,
)
from w2v_lightning.compat.torch import clone_default_store
from w2v_lightning.data import position
from w2v_lightning.errors import InputError
from w2v_lightning.runtime import signals

log = logging.getLogger(__name__)

_fit_numbers = count()  # equal on all ranks; separates the keys of successive fits in a process


class Preempted(SystemExit):
    """Exit that ends `trainer.fit` after SIGTERM, once the checkpoint is complete. Its code is the exit status."""


class Preemption(Callback):
    """Callback that, on SIGTERM to any rank, makes all ranks stop before the next micro-batch, save and exit with 75.

    A validation or a partial optimiser step is discarded: the run that resumes repeats it as a whole. Before the first
    step is complete there is nothing to save, and all ranks exit at once. A second SIGTERM also exits at once; the last
    complete checkpoint is left. preemption_agreement.py explains why all ranks stop at the same point.
    """

    def __init__(self) -> None:
        self._agreement: Agreement | None = None
        self._began_listening = False
        # Global step at which this process started. Kept between fits: out_of_memory.fit may call fit again.
        self._first_step: int | None = None
        self._requested_at = 0.0  # time of the SIGTERM; 0.0: none

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        self._close()
        self._began_listening |= signals.sigterm.start()
        kill_children = getattr(trainer.strategy.launcher, "kill", signals.no_children)
        signals.sigterm.arm(status=_status(trainer), kill_children=kill_children)
        self._agreement = Agreement(_store(), trainer.global_rank, trainer.world_size, signals.sigterm.exit_now)
        self._agreement.has_something_to_save = self._has_something_to_save(trainer)
        signals.sigterm.arm(react=self._react)
        if self._requested_at:  # SIGTERM arrived between two fits
            self._agreement.request()
        disable_sigterm_handling(trainer)

    def _react(self) -> None:
        self._requested_at = time.monotonic()
        self._active_agreement().request()

    def _active_agreement(self) -> Agreement:
        assert self._agreement is not None, "setup has not been called"
        return self._agreement

    # ---- where to stop ------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._first_step is None:
            self._first_step = trainer.global_step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._pass_gate(trainer)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self._active_agreement().has_something_to_save = self._has_something_to_save(trainer)

    def on_validation_batch_start(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        if self._is_in_training(trainer) and self._active_agreement().may_stop_here:
            _stop(trainer)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._is_in_training(trainer):
            self._pass_gate(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._active_agreement().end()

    def _pass_gate(self, trainer: Trainer) -> None:
        if not self._active_agreement().pass_gate():
            _stop(trainer)

    def _has_something_to_save(self, trainer: Trainer) -> bool:
        return self._first_step is not None and trainer.global_step > self._first_step

    def _is_in_training(self, trainer: Trainer) -> bool:
        return self._agreement is not None and not trainer.sanity_checking

    # ---- what to save -------------------------------------------------------------------------------------------

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if isinstance(exception, Preempted):
            self._save(trainer)
            self._requested_at = 0.0
        self._close()

    def _save(self, trainer: Trainer) -> None:
        path = checkpoint_path(trainer)
        trainer.save_checkpoint(path)
        try:
            drain(trainer)
            delay = f", {time.monotonic() - self._requested_at:.1f} s after SIGTERM" if self._requested_at else ""
            if trainer.is_global_zero:  # rank 0 writes the file
                log.warning("Preempted at step %d. Saved%s: %s", trainer.global_step, delay, path)
        except InputError as error:
            log.error("Preempted at step %d. %s", trainer.global_step, error)
        trainer.strategy.barrier("preempted")  # torchrun kills all processes as soon as one has exited
        if trainer.local_rank == 0:  # once per host
            log.warning("%s (exit status %d).", signals.sigterm.resume_hint, signals.PREEMPTED)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.interrupted and trainer.validating:
            position.restart_validation(checkpoint)

    # ---- cleaning up ----------------------------------------------------------------------------------------------

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._close()
        if self._began_listening:
            signals.sigterm.stop()
            self._began_listening = False

    def _close(self) -> None:
        if self._agreement:
            self._agreement.close()


def _stop(trainer: Trainer) -> NoReturn:
    _ignore_killed_loader_workers()
    preempted = Preempted(_status(trainer))
    if isinstance(trainer.strategy.launcher, MultiProcessingLauncher):
        interrupt(trainer, preempted)  # Lightning does not call on_exception in the processes that it forks
    raise preempted


def _ignore_killed_loader_workers() -> None:
    """Reset the handler of SIGCHLD, in which torch raises an exception if a loader worker is killed.

    It would interrupt the main thread at any point, such as while saving, and no more batches are needed.
    """
    if threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGCHLD"):  # not on Windows
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


@contextmanager
def preemptible(trainer: Trainer) -> Iterator[None]:
    """Pass SIGTERM on to the processes that `trainer.fit` starts, also before their setup; for use around `fit`.

    If this process only waits for the others, as with `ddp_fork`, it exits with their status.
    """
    launcher = trainer.strategy.launcher
    signals.sigterm.arm(kill_children=getattr(launcher, "kill", signals.no_children))
    if isinstance(launcher, MultiProcessingLauncher):
        signals.sigterm.arm(
            react=lambda: launcher.kill(signal.SIGTERM) if launcher.procs else signals.sigterm.exit_before_training()
        )
    try:
        yield
    except ProcessExitedException as error:
        if error.exit_code in (signals.PREEMPTED, -signal.SIGTERM):  # killed by SIGTERM: before its setup
            raise Preempted(signals.PREEMPTED) from None
        raise


def _store() -> dist.Store:
    """Open a separate connection to the store, so that the two threads do not wait for each other's requests."""
    if not dist.is_initialized():
        return dist.PrefixStore(f"preemption/{next(_fit_numbers)}", dist.HashStore())
    return dist.PrefixStore(f"preemption/{next(_fit_numbers)}", clone_default_store())


def _status(trainer: Trainer) -> int:
    """Exit status of this process: 0 in children of Lightning, which kills their parent on any other status."""
    launcher = trainer.strategy.launcher
    if not isinstance(launcher, SubprocessScriptLauncher) or trainer.local_rank == 0:
        return signals.PREEMPTED
    return signals.PREEMPTED if launcher.cluster_environment.creates_processes_externally else 0
