"""Trial training steps on noise, to measure the memory and speed of a device, on a copy of the module."""

import copy
import gc
import math
import statistics
import time
from typing import cast

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.memory import is_oom_error
from torch import Tensor

from w2v_lightning.data.batch import Batch, InputSpec
from w2v_lightning.data.loader import UtteranceDataset
from w2v_lightning.data.manifest import Manifest
from w2v_lightning.data.samplers import Slot

TIMED_STEPS = 3
AMPLITUDE = 3000  # of the noise, in int16


class NoiseDataset(UtteranceDataset):
    """Dataset of the utterances of a manifest with their transcripts and masks, but noise instead of audio.

    Args:
        manifest: the utterances; their audio is not read.
        spec: properties of the model.
        stretch: largest factor by which augmentation lengthens an utterance; applied to all.
    """

    def __init__(self, manifest: Manifest, spec: InputSpec, stretch: float = 1.0) -> None:
        super().__init__(manifest, spec, masked=True)
        self.durations_s_N = manifest.durations_s_N * stretch

    @property
    def longest_s(self) -> float:
        """Longest duration in seconds."""
        return math.ceil(self.durations_s_N.max() * 100) / 100  # rounded up, so that rounding never makes it too small

    @property
    def shortest_s(self) -> float:
        """Shortest duration in seconds."""
        return float(self.durations_s_N.min())

    @property
    def median_s(self) -> float:
        """Median duration in seconds."""
        return float(np.median(self.durations_s_N))

    def batch(self, seconds: float, duration_s: float) -> Batch:
        """Return a batch within `seconds`, with padding: one utterance of about `duration_s`, repeated.

        It is the first of two micro-batches of its step, because a module logs with the last.
        """
        position = int(np.abs(self.durations_s_N - duration_s).argmin())
        number = max(1, int(seconds / self.durations_s_N[position]))
        return self[Slot(np.full(number, position), num_micro_batches=2)]

    def _waveforms(self, slot: Slot, labels: list[np.ndarray]) -> list[np.ndarray]:
        return [self._noise(position) for position in slot.positions]

    def _noise(self, position: int) -> np.ndarray:
        """Return the noise of an utterance; it does not depend on how a step is split."""
        num_samples = max(int(self.durations_s_N[position] * self.spec.sample_rate), self.spec.min_samples)
        rng = np.random.default_rng([self.seed, position])
        return rng.integers(-AMPLITUDE, AMPLITUDE, num_samples, dtype=np.int16)


class Trial:
    """Copy of the trainer's module on its device, with gradients and optimiser state allocated.

    All parameters are trained and no layer is dropped, so a step needs the most memory it can.

    Raises:
        torch.OutOfMemoryError: the model itself does not fit.
    """

    def __init__(self, trainer: Trainer, dataset: NoiseDataset) -> None:
        self.trainer = trainer
        self.device = trainer.strategy.root_device
        self.dataset = dataset
        self.module = _copy_of(trainer)
        trained = [p for p in self.module.parameters() if p.requires_grad]
        for parameter in trained:
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer = torch.optim.AdamW(trained, lr=0.0)
        self.optimizer.step()  # allocates its state
        is_distributed = trainer.world_size > 1
        self.buckets = [torch.zeros_like(p) for p in trained] if is_distributed else []  # DDP's copy of the gradients

    def peak_gib(self, seconds: float, duration_s: float) -> float:
        """Measure the memory (GiB) that torch reserves for a batch of `seconds`, in utterances of `duration_s`.

        Raises:
            torch.OutOfMemoryError: the device has too little memory.
        """
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        self.step(self.dataset.batch(seconds, duration_s))
        torch.cuda.synchronize(self.device)
        return torch.cuda.max_memory_reserved(self.device) / 2**30

    def audio_s_per_s(self, seconds: float) -> float:
        """Measure audio-seconds per second of batches of `seconds`, at the median duration; 0 if out of memory."""
        batch = self.dataset.batch(seconds, self.dataset.median_s)
        try:
            self._timed_s(batch)  # may compile
            return batch.audio_seconds / statistics.median(self._timed_s(batch) for _ in range(TIMED_STEPS))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return 0.0

    def step(self, batch: Batch) -> None:
        """Run forward and backward in the trainer's precision; gradients accumulate, weights do not change."""
        precision = self.trainer.precision_plugin
        on_device = precision.convert_input(batch).to(self.device)
        with precision.train_step_context():
            loss = cast(Tensor, self.module.training_step(on_device, 0))  # our modules return the loss
        loss.backward()

    def _timed_s(self, batch: Batch) -> float:
        torch.cuda.synchronize(self.device)
        started = time.perf_counter()
        self.step(batch)
        torch.cuda.synchronize(self.device)
        return time.perf_counter() - started


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an allocation of torch or a CUDA library failed, on a device or in main memory."""
    return isinstance(error, torch.OutOfMemoryError) or is_oom_error(error) or "ALLOC_FAILED" in str(error)


def _copy_of(trainer: Trainer) -> LightningModule:
    module = copy.deepcopy(trainer.lightning_module)
    module.trainer = trainer
    if train_all_layers := getattr(module, "train_all_layers", None):
        train_all_layers()
    converted = trainer.precision_plugin.convert_module(module).to(trainer.strategy.root_device)
    return cast(LightningModule, converted)  # the plugins convert the module in place, and do not wrap it
