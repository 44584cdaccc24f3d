"""Training steps on noise, to see what a device holds: of a copy of the module, so that nothing is left behind."""

import copy
import gc
import math
import statistics
import time

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.memory import is_oom_error

from w2v_lightning.data.batch import SAMPLE_RATE, Batch, InputSpec
from w2v_lightning.data.loader import UtteranceDataset
from w2v_lightning.data.manifest import Manifest
from w2v_lightning.data.samplers import Slot

TIMED_STEPS = 3
LOUDNESS = 3000  # of the noise, in int16


class NoiseDataset(UtteranceDataset):
    """Utterances of the manifest, their transcripts and masks; noise in the place of audio, which is not read.

    Args:
        manifest: the utterances; their audio need not be there.
        spec: what the loader knows of the model.
        stretch: how much longer augmentation may make an utterance: all are as long as that.
    """

    def __init__(self, manifest: Manifest, spec: InputSpec, stretch: float = 1.0):
        super().__init__(manifest, spec, masked=True)
        self.durations_s_N = manifest.durations_s_N * stretch

    @property
    def longest_s(self) -> float:
        return math.ceil(self.durations_s_N.max() * 100) / 100  # not a rounding error below it

    @property
    def shortest_s(self) -> float:
        return float(self.durations_s_N.min())

    @property
    def median_s(self) -> float:
        return float(np.median(self.durations_s_N))

    def batch(self, seconds: float, duration_s: float) -> Batch:
        """Within `seconds`, padding counted: the utterance that lasts about `duration_s`, over and over.

        The first of two micro-batches of its step: a module logs with the last.
        """
        position = int(np.abs(self.durations_s_N - duration_s).argmin())
        number = max(1, int(seconds / self.durations_s_N[position]))
        return self[Slot(np.full(number, position), num_micro_batches=2)]

    def _waveforms(self, slot: Slot, labels: list[np.ndarray]) -> list[np.ndarray]:
        return [self._noise(position) for position in slot.positions]

    def _noise(self, position: int) -> np.ndarray:
        """An utterance's own, however a step is cut."""
        num_samples = max(int(self.durations_s_N[position] * SAMPLE_RATE), self.spec.min_samples)
        rng = np.random.default_rng([self.seed, position])
        return rng.integers(-LOUDNESS, LOUDNESS, num_samples, dtype=np.int16)


class Trial:
    """A copy of the trainer's module on its device, with gradients and the optimiser's state allocated.

    Everything is trained and no layer dropped: what a step needs at the most.

    Raises:
        torch.OutOfMemoryError: the model itself does not fit.
    """

    def __init__(self, trainer: Trainer, dataset: NoiseDataset):
        self.trainer = trainer
        self.device = trainer.strategy.root_device
        self.dataset = dataset
        self.module = _copy_of(trainer)
        trained = [p for p in self.module.parameters() if p.requires_grad]
        for parameter in trained:
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer = torch.optim.AdamW(trained, lr=0.0)
        self.optimizer.step()  # allocates its state
        several = trainer.world_size > 1
        self.buckets = [torch.zeros_like(p) for p in trained] if several else []  # DDP's copy of the gradients

    def peak_gib(self, seconds: float, duration_s: float) -> float:
        """Memory that torch takes from the device for a batch of `seconds`, in utterances of `duration_s`.

        Raises:
            torch.OutOfMemoryError: there is not enough.
        """
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        self.step(self.dataset.batch(seconds, duration_s))
        torch.cuda.synchronize(self.device)
        return torch.cuda.max_memory_reserved(self.device) / 2**30

    def audio_s_per_s(self, seconds: float) -> float:
        """How fast batches of `seconds` are, in utterances of the median duration; 0 where memory runs out."""
        batch = self.dataset.batch(seconds, self.dataset.median_s)
        try:
            self._timed_s(batch)  # may compile
            return batch.audio_seconds / statistics.median(self._timed_s(batch) for _ in range(TIMED_STEPS))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return 0.0

    def step(self, batch: Batch) -> None:
        """Forward and backward, in the trainer's precision; gradients add up, and the weights stay."""
        precision = self.trainer.precision_plugin
        on_device = precision.convert_input(batch).to(self.device)
        with precision.train_step_context():
            loss = self.module.training_step(on_device, 0)
        loss.backward()

    def _timed_s(self, batch: Batch) -> float:
        torch.cuda.synchronize(self.device)
        started = time.perf_counter()
        self.step(batch)
        torch.cuda.synchronize(self.device)
        return time.perf_counter() - started


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the main memory, had not as much as torch or one of CUDA's libraries asked for."""
    return isinstance(error, torch.OutOfMemoryError) or is_oom_error(error) or "ALLOC_FAILED" in str(error)


def _copy_of(trainer: Trainer) -> LightningModule:
    module = copy.deepcopy(trainer.lightning_module)
    module.trainer = trainer
    if "freeze_updates" in module.hparams:
        module.hparams.freeze_updates = 0
    if hasattr(module, "model"):
        module.model.config.layerdrop = 0.0
    return trainer.precision_plugin.convert_module(module).to(trainer.strategy.root_device)
