"""Out of memory in training: the same global step once more, in smaller micro-batches.

A step belongs to the experiment, `device_seconds` to the machine (data/plan.py). So a run for which memory did not
suffice goes on from its last complete step with half of it, and learns what it would have learned.
"""

import gc
import logging
import os
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from lightning.pytorch.utilities.memory import garbage_collection_cuda
from torch import Tensor

from w2v_lightning.data.batch import SAMPLE_RATE, Batch
from w2v_lightning.data.datamodule import LibriSpeechDataModule
from w2v_lightning.data.trial import is_out_of_memory
from w2v_lightning.errors import InputError, listed

log = logging.getLogger(__name__)

OTHER_REMEDIES = "model.gradient_checkpointing=true, a lower trainer.precision or a smaller model need less memory"
ALLOCATOR_HINT = "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True in the environment wastes less of it"


def fit(
    trainer: Trainer,
    module: LightningModule,
    datamodule: LibriSpeechDataModule,
    ckpt_path: str | None = None,
    **options: Any,
) -> None:
    """`trainer.fit`, but where a device runs out of memory, the run halves `data.device_seconds` and goes on.

    The global step in which it happened is done again as a whole, from the weights before it: without dropout, the run
    ends with the weights of one that had the smaller `device_seconds` from the start. Each time is logged.

    Args:
        trainer, module, datamodule, ckpt_path, options: as for `trainer.fit`.

    Raises:
        InputError: memory ran out where going on is impossible: on one of several devices, within the optimiser's
            update, or because the longest utterance leaves nothing to halve. Names the batch and the remedy.
    """
    saved = f"{trainer.default_root_dir}/out-of-memory-{os.getpid()}.ckpt"
    watch = MemoryWatch(saved)
    trainer.callbacks.append(watch)  # saves after others have undone what they had begun, such as a swap of weights
    try:
        while not _finishes(trainer, module, datamodule, ckpt_path, options):
            if trainer.world_size > 1:
                _end_other_processes(trainer)
            ckpt_path = saved if watch.has_saved else ckpt_path
            _free_memory(module, watch)
            _make_smaller(trainer, datamodule, watch)
    finally:
        trainer.callbacks.remove(watch)
        trainer.strategy.remove_checkpoint(saved)


def _finishes(trainer: Trainer, module: LightningModule, datamodule, ckpt_path, options: dict[str, Any]) -> bool:
    """Train; False if memory ran out. The exception, whose traceback holds all activations, ends here."""
    try:
        trainer.fit(module, datamodule=datamodule, ckpt_path=ckpt_path, **options)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return False
    return True


class MemoryWatch(Callback):
    """Knows where memory ran out, and then saves the state after the last complete step, if that can be trusted."""

    def __init__(self, save_to: str) -> None:
        self.save_to = save_to
        self.place = ""  # where memory ran out, in words
        self.is_in_update = False
        self.has_saved = False
        self._batch: Batch | None = None
        self._has_begun = False
        self._updating_step: int | None = None
        self._buffers: dict[str, Tensor] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._has_begun, self._updating_step = False, None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        names = pl_module._non_persistent_buffers_set
        self._buffers = {name: getattr(pl_module, name).cpu().clone() for name in names}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._has_begun = True

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        self._batch = batch
        # The loggers' x-axis: resumed at the beginning of an epoch, Lightning counts a step that was never made.
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer) -> None:
        self._updating_step = trainer.global_step  # which counts the updates that are complete

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx) -> None:
        self._batch = None

    def on_validation_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, *_, **__) -> None:
        self._batch = batch

    def on_validation_batch_end(self, *_, **__) -> None:
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
        """What no checkpoint holds, such as half the sums of a step, as it is in a process that resumes from one."""
        for name, tensor in self._buffers.items():
            setattr(module, name, tensor)


def _described(batch: Batch | None) -> str:
    if batch is None:
        return ""
    longest_s = int(batch.num_samples_B.max()) / SAMPLE_RATE
    size = f"{len(batch)} utterances, the longest of {longest_s:.2f} s, {len(batch) * longest_s:.1f} s with padding"
    return f", in a batch of {size}: {listed(batch.ids)}"


def _free_memory(module: LightningModule, watch: MemoryWatch) -> None:
    """Gradients of the step that failed are dropped: it is done again as a whole."""
    module.zero_grad(set_to_none=True)
    watch.restore_buffers(module)
    gc.collect()
    if torch.cuda.is_available():
        garbage_collection_cuda()


def _make_smaller(trainer: Trainer, datamodule: LibriSpeechDataModule, watch: MemoryWatch) -> None:
    what = f"Out of memory in {watch.place}, with data.device_seconds={datamodule.device_seconds:g}"
    if watch.is_in_update:
        raise InputError(
            f"{what}, as the optimiser updated the weights: the update may be half done, and smaller batches do not"
            f" help. Go on from the last checkpoint with --ckpt_path; {OTHER_REMEDIES}."
        )
    in_use = min(datamodule.device_seconds, datamodule.batch_seconds)
    smaller = max(in_use / 2, datamodule.least_device_seconds)
    if smaller >= in_use:
        raise InputError(
            f"{what}: the longest utterance leaves nothing to halve. Leave out long ones with data.max_seconds;"
            f" {OTHER_REMEDIES}; {ALLOCATOR_HINT}."
        )
    if trainer.world_size > 1:
        raise InputError(
            f"{what}, on device {trainer.global_rank} of {trainer.world_size}: the others wait for it in vain, so the"
            f" run ends. Set data.device_seconds={smaller:g} and go on from the last checkpoint with --ckpt_path;"
            f" nothing is lost or seen twice. {ALLOCATOR_HINT}."
        )
    log.warning("%s. It is done again, and the run goes on, with %g; %s.", what, smaller, ALLOCATOR_HINT)
    datamodule.device_seconds = smaller
    trainer.accumulate_grad_batches = 1  # it follows from device_seconds, anew


def _end_other_processes(trainer: Trainer) -> None:
    """Those that this one has started; a launcher from outside, such as torchrun, ends them by itself."""
    launcher = trainer.strategy.launcher
    if isinstance(launcher, _SubprocessScriptLauncher):
        others = launcher.procs.copy()
        # Lightning watches this very list: it would kill this process, too, perhaps before it has said why.
        launcher.procs.clear()
        for process in others:
            process.kill()  # they wait within a collective operation, where nothing else is heard
