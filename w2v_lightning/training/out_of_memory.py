"""Recovery from out-of-memory errors in training: the same global step is repeated in smaller micro-batches.

A step belongs to the experiment, `device_seconds` to the machine (data/plan.py). A run that is out of memory therefore
resumes from its last complete step with half of `device_seconds`, and the result of the training does not change.
"""

import gc
import logging
import os
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.memory import garbage_collection_cuda
from torch import Tensor
from torch.optim import Optimizer

from w2v_lightning.compat.lightning import SubprocessScriptLauncher, non_persistent_buffers, set_logged_step
from w2v_lightning.data.batch import Batch
from w2v_lightning.data.datamodule import LibriSpeechDataModule
from w2v_lightning.data.trial import is_out_of_memory
from w2v_lightning.errors import InputError, listed

log = logging.getLogger(__name__)

OTHER_REMEDIES = "model.gradient_checkpointing=true, a lower trainer.precision or a smaller model needs less memory"
ALLOCATOR_HINT = "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True in the environment wastes less memory"


def fit(
    trainer: Trainer,
    module: LightningModule,
    datamodule: LibriSpeechDataModule,
    ckpt_path: str | None = None,
    **options: Any,
) -> None:
    """Call `trainer.fit`; when a device is out of memory, halve `data.device_seconds` and resume.

    The failed global step is repeated as a whole, from the weights before it. Without dropout, the run ends with the
    weights of a run that had the smaller `device_seconds` from the start. Every retry is logged.

    Args:
        trainer, module, datamodule, ckpt_path, options: as for `trainer.fit`.

    Raises:
        InputError: a retry is impossible: the run has several devices, the optimiser was updating the weights, or the
            longest utterance alone does not fit. The message names the batch and the remedy.
    """
    saved = f"{trainer.default_root_dir}/out-of-memory-{os.getpid()}.ckpt"
    watch = MemoryWatch(saved)
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by Lightning's callback connector
    callbacks.append(watch)  # last, to save after other callbacks have cleaned up, for instance swapped weights back
    try:
        while not _finishes(trainer, module, datamodule, ckpt_path, options):
            if trainer.world_size > 1:
                _end_other_processes(trainer)
            ckpt_path = saved if watch.has_saved else ckpt_path
            _free_memory(module, watch)
            _make_smaller(trainer, datamodule, watch)
    finally:
        callbacks.remove(watch)
        trainer.strategy.remove_checkpoint(saved)


def _finishes(
    trainer: Trainer,
    module: LightningModule,
    datamodule: LibriSpeechDataModule,
    ckpt_path: str | None,
    options: dict[str, Any],
) -> bool:
    """Train; return False if memory ran out. The exception is dropped here: its traceback holds all activations."""
    try:
        trainer.fit(module, datamodule=datamodule, ckpt_path=ckpt_path, **options)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return False
    return True


class MemoryWatch(Callback):
    """Callback that records where memory ran out and saves the state after the last complete step, if it is intact."""

    def __init__(self, save_to: str) -> None:
        self.save_to = save_to
        self.place = ""  # description of the step and batch in which memory ran out, for messages
        self.is_in_update = False
        self.has_saved = False
        self._batch: Batch | None = None
        self._has_begun = False
        self._updating_step: int | None = None
        self._buffers: dict[str, Tensor] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._has_begun, self._updating_step = False, None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        names = non_persistent_buffers(pl_module)
        self._buffers = {name: getattr(pl_module, name).cpu().clone() for name in names}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._has_begun = True

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        self._batch = batch
        # This is the loggers' x-axis: when a run resumes at the start of an epoch, Lightning counts one step too many.
        set_logged_step(trainer, trainer.global_step)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        self._updating_step = trainer.global_step  # the number of complete updates

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self._batch = None

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Batch, *_: Any, **__: Any
    ) -> None:
        self._batch = batch

    def on_validation_batch_end(self, *_: Any, **__: Any) -> None:
        self._batch = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if not is_out_of_memory(exception):
            return
        self.is_in_update = self._updating_step == trainer.global_step
        doing = "validation" if trainer.sanity_checking or trainer.validating else f"step {trainer.global_step}"
        self.place = f"{doing}{_described(self._batch)}"
        self._batch = None
        if self._has_begun and trainer.world_size == 1 and not self.is_in_update:
            trainer.save_checkpoint(self.save_to)
            self.has_saved = True

    def restore_buffers(self, module: LightningModule) -> None:
        """Reset the buffers that checkpoints do not hold, such as sums of a partial step, to their initial values."""
        for name, tensor in self._buffers.items():
            setattr(module, name, tensor)


def _described(batch: Batch | None) -> str:
    if batch is None:
        return ""
    longest_s = int(batch.num_samples_B.max()) / batch.sample_rate
    size = f"{len(batch)} utterances, the longest of {longest_s:.2f} s, {len(batch) * longest_s:.1f} s with padding"
    return f", in a batch of {size}: {listed(batch.ids)}"


def _free_memory(module: LightningModule, watch: MemoryWatch) -> None:
    """Free memory, including the gradients of the failed step, which is repeated as a whole."""
    module.zero_grad(set_to_none=True)
    watch.restore_buffers(module)
    gc.collect()
    if torch.cuda.is_available():
        garbage_collection_cuda()


def _make_smaller(trainer: Trainer, datamodule: LibriSpeechDataModule, watch: MemoryWatch) -> None:
    device_seconds = datamodule.device_seconds
    problem = f"Out of memory in {watch.place}, with data.device_seconds={device_seconds:g}"
    if watch.is_in_update:
        raise InputError(
            f"{problem}, as the optimiser updated the weights: the update may be incomplete, and smaller batches do not"
            f" help. Resume from the last checkpoint with --ckpt_path; {OTHER_REMEDIES}."
        )
    in_use = min(device_seconds, datamodule.batch_seconds)
    smaller = max(in_use / 2, datamodule.min_device_seconds)
    if smaller >= in_use:
        raise InputError(
            f"{problem}, and a micro-batch cannot be smaller than its longest utterance. Skip long utterances with"
            f" data.max_seconds; {OTHER_REMEDIES}; {ALLOCATOR_HINT}."
        )
    if trainer.world_size > 1:
        raise InputError(
            f"{problem}, on rank {trainer.global_rank} of {trainer.world_size}: the other ranks cannot continue without"
            f" it, so the run stops. Set data.device_seconds={smaller:g} and resume from the last checkpoint with"
            f" --ckpt_path; no utterance is skipped or repeated. {ALLOCATOR_HINT}."
        )
    log.warning("%s. Retrying this step with data.device_seconds=%g; %s.", problem, smaller, ALLOCATOR_HINT)
    datamodule.device_seconds = smaller
    trainer.accumulate_grad_batches = 1  # the data module computes it again from device_seconds


def _end_other_processes(trainer: Trainer) -> None:
    """Kill the processes that Lightning started from this one; an external launcher, such as torchrun, ends its own."""
    launcher = trainer.strategy.launcher
    if isinstance(launcher, SubprocessScriptLauncher):
        processes = launcher.procs.copy()
        # Lightning watches this list: it would also kill this process, perhaps before the error is printed.
        launcher.procs.clear()
        for process in processes:
            process.kill()  # SIGTERM would not be handled within a collective operation
