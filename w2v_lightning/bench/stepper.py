"""Optimiser steps that both sides are timed on: forward, backward over the micro-batches, clipping, AdamW.

Ours runs Wav2Vec2CTC's own `training_step` and `configure_optimizers`. The loop around them is the one in this file for
both sides; `in_fit.py` measures Lightning's.
"""

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from w2v_lightning.data.batch import Batch
from w2v_lightning.module import Wav2Vec2CTC
from w2v_lightning.runtime.precision import autocast, products_dtype

Precision = Literal["bf16-mixed", "16-mixed", "32-true"]

CLIP_NORM = 5.0
NUM_UPDATES = 1_000_000  # length of the schedule; timing ends long before, in its warm-up


@dataclass(frozen=True)
class Machine:
    """Device that a side computes on, and its precision, by Lightning's name."""

    device: torch.device
    precision: Precision

    @property
    def accelerator(self) -> str:
        return "gpu" if self.device.type == "cuda" else "cpu"

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the matrix products."""
        return products_dtype(self.precision)

    def autocast(self) -> AbstractContextManager:
        return autocast(self.precision, self.device.type)

    def scaler(self, init_scale: float = 2.0**16) -> torch.amp.GradScaler:
        return torch.amp.GradScaler(self.device.type, init_scale=init_scale, enabled=self.dtype == torch.float16)

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class Stepper:
    """Whole optimiser steps of one model.

    Args:
        model: model whose trained parameters have their gradients clipped.
        loss_of: function that returns a micro-batch's share of its step's loss; the shares of a step are summed.
        optimizer: optimizer of these parameters.
        scheduler: scheduler to step after each update.
        machine: device to move the batches to, and precision.
        after_step: function to call after each step.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_of: Callable[[Batch], Tensor],
        optimizer: Optimizer,
        scheduler: LRScheduler | None,
        machine: Machine,
        after_step: Callable[[], Any] = lambda: None,
    ):
        self.loss_of = loss_of
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.machine = machine
        self.after_step = after_step
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.scaler = machine.scaler()

    def step(self, batches: Sequence[Batch]) -> None:
        for batch in batches:
            self.backward(batch)
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.parameters, CLIP_NORM)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.scheduler:
            self.scheduler.step()
        self.after_step()

    def backward(self, batch: Batch) -> Tensor:
        batch = batch.to(self.machine.device, non_blocking=True)
        with self.machine.autocast():
            loss = self.loss_of(batch)
        self.scaler.scale(loss).backward()
        return loss.detach()


class StepTrainer(Trainer):
    """Trainer for Stepper's loop, with all that Wav2Vec2CTC reads from its trainer; it never logs."""

    def __init__(self, machine: Machine):
        self.updates = 0
        super().__init__(
            accelerator=machine.accelerator,
            devices=1,
            precision=machine.precision,
            log_every_n_steps=sys.maxsize,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )

    @property
    def global_step(self) -> int:
        return self.updates

    @property
    def estimated_stepping_batches(self) -> int:
        return NUM_UPDATES

    def count(self) -> None:
        self.updates += 1


def our_stepper(module: Wav2Vec2CTC, machine: Machine) -> Stepper:
    """Return a Stepper that calls the hooks of `module` that Lightning would call."""
    module.trainer = trainer = StepTrainer(machine)
    module.to(machine.device).train()
    module.on_fit_start()
    configured = module.configure_optimizers()

    def share(batch: Batch) -> Tensor:
        return module.training_step(batch, batch.micro_batch) / batch.num_micro_batches

    schedule = configured["lr_scheduler"]
    assert isinstance(schedule, dict)
    return Stepper(module, share, configured["optimizer"], schedule["scheduler"], machine, trainer.count)
