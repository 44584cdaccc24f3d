"""SIGTERM: all ranks stop at the same place, save, and leave with a status that says "start me again".

Lightning's own way would broadcast a flag before every micro-batch and wait for it, and broadcast within the signal's
handler, wherever the other ranks are.
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
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher, _SubprocessScriptLauncher
from lightning.pytorch.trainer.call import _interrupt
from torch.multiprocessing import ProcessExitedException

from w2v_lightning.callbacks.preemption_agreement import Agreement
from w2v_lightning.checkpoints.recent import checkpoint_path, drain
from w2v_lightning.data import position
from w2v_lightning.errors import InputError
from w2v_lightning.runtime import signals

log = logging.getLogger(__name__)

_number_of_fit = count()  # the same on all ranks: keys of one fit of a process are not those of the next


class Preempted(SystemExit):
    """Ends `trainer.fit` after SIGTERM, once the checkpoint is complete. Its code is the status of the process."""


class Preemption(Callback):
    """On SIGTERM to any rank, all ranks stop before the next micro-batch, save a checkpoint and leave with status 75.

    A validation, or half an optimiser step, is given up: the run that resumes does it again as a whole. Before the
    first step is complete there is nothing to save, and all leave at once. A second SIGTERM leaves at once, too, with
    the last complete checkpoint. See agreement.py for why all ranks stop at the same place.
    """

    def __init__(self) -> None:
        self._agreement: Agreement | None = None
        self._began_listening = False
        self._first_step: int | None = None  # of this process; after too little memory it may go on by another fit
        self._asked_at = 0.0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        self._close()
        self._began_listening |= signals.watch.start()
        signals.watch.status = _status(trainer)
        signals.watch.end_others = getattr(trainer.strategy.launcher, "kill", None)
        self._agreement = Agreement(_store(), trainer.global_rank, trainer.world_size, signals.watch.leave)
        self._agreement.has_something_to_save = self._has_something_to_save(trainer)
        signals.watch.react = self._react
        if self._asked_at:  # between two fits
            self._agreement.request()
        _silence_lightning(trainer)

    def _react(self) -> None:
        self._asked_at = time.monotonic()
        self._agreement.request()

    # ---- where to stop ------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._first_step is None:
            self._first_step = trainer.global_step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._pass_gate(trainer)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self._agreement.has_something_to_save = self._has_something_to_save(trainer)

    def on_validation_batch_start(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        if self._is_in_training(trainer) and self._agreement.may_stop_here:
            _stop(trainer)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._is_in_training(trainer):
            self._pass_gate(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._agreement.end()

    def _pass_gate(self, trainer: Trainer) -> None:
        if not self._agreement.passes_gate():
            _stop(trainer)

    def _has_something_to_save(self, trainer: Trainer) -> bool:
        return self._first_step is not None and trainer.global_step > self._first_step

    def _is_in_training(self, trainer: Trainer) -> bool:
        return self._agreement is not None and not trainer.sanity_checking

    # ---- what to save -------------------------------------------------------------------------------------------

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if isinstance(exception, Preempted):
            self._save(trainer)
            self._asked_at = 0.0
        self._close()

    def _save(self, trainer: Trainer) -> None:
        path = checkpoint_path(trainer)
        trainer.save_checkpoint(path)
        try:
            drain(trainer)
            after_s = f", {time.monotonic() - self._asked_at:.1f} s after SIGTERM" if self._asked_at else ""
            if trainer.is_global_zero:  # which has written it
                log.warning("Preempted at step %d. Saved%s: %s", trainer.global_step, after_s, path)
        except InputError as error:
            log.error("Preempted at step %d. %s", trainer.global_step, error)
        trainer.strategy.barrier("preempted")  # torchrun ends all processes as soon as one has left
        if trainer.local_rank == 0:  # the others would say the same
            log.warning("%s (exit status %d).", signals.watch.how_to_go_on, signals.PREEMPTED)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.interrupted and trainer.validating:
            position.restart_validation(checkpoint)

    # ---- afterwards ---------------------------------------------------------------------------------------------

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._close()
        if self._began_listening:
            signals.watch.stop()
            self._began_listening = False

    def _close(self) -> None:
        if self._agreement:
            self._agreement.close()


def _stop(trainer: Trainer) -> NoReturn:
    _let_loader_workers_end()
    preempted = Preempted(_status(trainer))
    if isinstance(trainer.strategy.launcher, _MultiProcessingLauncher):
        _interrupt(trainer, preempted)  # in the processes that it forks, Lightning calls no on_exception
    raise preempted


def _let_loader_workers_end() -> None:
    """For where one is killed, torch raises in the midst of what the main thread is at, be it saving; and from now on
    nobody waits for a batch."""
    if threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGCHLD"):  # not on Windows
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


@contextmanager
def preemptible(trainer: Trainer) -> Iterator[None]:
    """Around `trainer.fit`, for the process that starts the others: they hear a SIGTERM before they are set up, too.

    Where it only waits for them, as with `ddp_fork`, it ends with their status.
    """
    launcher = trainer.strategy.launcher
    signals.watch.end_others = getattr(launcher, "kill", None)
    if isinstance(launcher, _MultiProcessingLauncher):
        signals.watch.react = lambda: launcher.kill(signal.SIGTERM) if launcher.procs else signals.watch.leave_early()
    try:
        yield
    except ProcessExitedException as error:
        if error.exit_code in (signals.PREEMPTED, -signal.SIGTERM):  # the latter before it was set up
            raise Preempted(signals.PREEMPTED) from None
        raise


def _store() -> dist.Store:
    """On a connection of its own: the thread must not wait for what the main thread asks, nor the other way round."""
    store = dist.distributed_c10d._get_default_store().clone() if dist.is_initialized() else dist.HashStore()
    return dist.PrefixStore(f"preemption/{next(_number_of_fit)}", store)


def _status(trainer: Trainer) -> int:
    """Lightning kills the process that has started the others as soon as one of those ends with anything but 0."""
    launcher = trainer.strategy.launcher
    is_child = isinstance(launcher, _SubprocessScriptLauncher) and trainer.local_rank > 0
    return 0 if is_child and not launcher.cluster_environment.creates_processes_externally else signals.PREEMPTED


def _silence_lightning(trainer: Trainer) -> None:
    trainer._signal_connector._sigterm_notifier_fn = _nothing
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = _nothing


def _nothing(*_: Any) -> None: ...
