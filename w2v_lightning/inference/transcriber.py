"""Transcription with a CTC model, pipelined so that the device is always busy.

Loader processes read, decode and pad. A batch holds utterances of similar duration, arrives in pinned memory and is
queued on the device; its text is decoded while the device computes the next batch.

Shapes: B utterances, T samples, F frames, V tokens.
"""

import logging
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain, starmap
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

from w2v_lightning.data import checks, plan
from w2v_lightning.data.batch import SAMPLE_RATE, Batch
from w2v_lightning.data.loader import UtteranceDataset, batch_loader
from w2v_lightning.data.manifest import Manifest
from w2v_lightning.data.samplers import Slot
from w2v_lightning.errors import InputError
from w2v_lightning.inference.readable import LoadedSlot, ReadableDataset
from w2v_lightning.model import wav2vec2
from w2v_lightning.model.speed import Speed
from w2v_lightning.runtime.cores import usable_cores
from w2v_lightning.runtime.precision import DTYPES, autocast, choose_precision, weights_dtype
from w2v_lightning.text.vocabulary import Vocabulary

log = logging.getLogger(__name__)

# Number of utterances that are sorted by duration together. At most this many texts are held back to keep the order of
# the input. The last batch of a window is seldom full, which costs under 1 %.
WINDOW = 10_000

MAX_WORKERS = 16  # 8 deliver 15,000 audio-seconds per second, an H200 transcribes 21,000 (docs/performance.md)
MAX_DEVICE_SECONDS = 800.0  # larger batches make no GPU faster
CPU_DEVICE_SECONDS = 15.0  # larger batches make a CPU slower
SHARE_OF_MEMORY = 0.8  # share of the GPU's free memory to use
# The output of the first convolution, 3,200 frames of 512 channels per second, is by far the largest tensor of a batch
# of ordinary utterances. Its normalisation needs this many tensors of that size at once, in float32.
LARGEST_TENSORS = 6


Outcome = TypeVar("Outcome", str, str | InputError)  # text of an utterance, or its error


@dataclass(frozen=True)
class BatchOutput:
    """Most probable token of each frame of a batch, on the CPU."""

    best_BF: Tensor
    num_frames_B: Tensor
    done: torch.cuda.Event | None  # event after which `best_BF` is valid; None: at once


class TooLargeError(InputError):
    """A batch needs more memory than the device has."""


class Transcriber:
    """A CTC model for transcription, on a device and in a precision.

    Args:
        network: model of transformers; it is moved to the device, in evaluation mode.
        vocabulary: output tokens of the model.
        normalise: normalise each utterance to zero mean and unit variance before the model.
        device: name such as "cuda"; default: the GPU if there is one.
        precision: Lightning's name, or "auto" to choose by device.
        speed: implementations of the network's parts; default: the fastest.
        sample_rate: rate in Hz of the audio that the model was trained on.

    Raises:
        InputError: the device or precision is not available.
    """

    def __init__(
        self,
        network: Wav2Vec2ForCTC,
        vocabulary: Vocabulary,
        normalise: bool,
        device: str | None = None,
        precision: str = "auto",
        speed: Speed | None = None,
        sample_rate: int = SAMPLE_RATE,
    ):
        self.device = _device(device)
        self.precision = choose_precision(self.device.type)[0] if precision == "auto" else precision
        if self.precision not in DTYPES:
            raise InputError(f"--precision: {precision!r} is not supported; choose from auto, {', '.join(DTYPES)}.")
        self.network = network.eval().to(self.device, weights_dtype(self.precision))
        self.vocabulary = vocabulary
        self.speed = speed or Speed()
        self.spec = wav2vec2.input_spec(network.config, vocabulary, normalise, sample_rate)
        # Samples of the smallest batch (padding included) that needed too much memory; larger ones are split at once.
        self._too_many_samples = float("inf")

    @classmethod
    def from_pretrained(
        cls,
        model: str,
        device: str | None = None,
        precision: str = "auto",
        speed: Speed | None = None,
        target_lang: str | None = None,
    ) -> "Transcriber":
        """Load a wav2vec2 CTC model by its Hugging Face name or folder; `target_lang` is a language of an MMS model.

        Raises:
            InputError: the device or precision is not available, or the model cannot be read or has no CTC head.
        """
        wav2vec2.check_head("--model", model, "fine-tune it first (fit), and give the folder that fit exports")
        network, vocabulary, waveforms = wav2vec2.from_pretrained(model, {}, target_lang=target_lang)
        if vocabulary.remark:
            log.warning(vocabulary.remark)
        return cls(network, vocabulary, waveforms.normalise, device, precision, speed, waveforms.sample_rate)

    def transcribe(
        self, manifest: Manifest, device_seconds: float | None = None, num_workers: int | None = None
    ) -> Iterator[tuple[int, str]]:
        """Iterate over (position in the manifest, text) of each utterance, in the order of batches; see `in_order`.

        Each utterance is transcribed as a whole; time and memory grow faster than its duration.

        Args:
            manifest: utterances; their texts are ignored.
            device_seconds: audio per batch including padding (s); default: what fits into the device's memory.
            num_workers: number of loader processes; default: depends on the device, 0 for a single batch.

        Raises:
            InputError: an utterance is too short for one frame (raised before anything is transcribed), too long for
                the device's memory, or cannot be read.
        """
        self._check_long_enough(manifest)
        outcomes = self.attempt(manifest, device_seconds, num_workers)
        return ((position, text_or_raise(outcome)) for position, outcome in outcomes)

    def attempt(
        self, manifest: Manifest, device_seconds: float | None = None, num_workers: int | None = None
    ) -> Iterator[tuple[int, str | InputError]]:
        """Transcribe like `transcribe`, but yield the error instead of a text for utterances that fail."""
        slots = self.slots(manifest, device_seconds)
        return self._outcomes(self.loader(manifest, slots, num_workers, ReadableDataset))

    # ---- stages of the pipeline -----------------------------------------------------------------------------------

    def slots(self, manifest: Manifest, device_seconds: float | None = None) -> list[Slot]:
        """Plan batches by duration, the longest of each window of the manifest first."""
        if device_seconds is None:
            device_seconds = default_device_seconds(self.network.config, self.device, self.spec.sample_rate)
        if not device_seconds > 0:
            raise InputError(f"--device-seconds is {device_seconds:g}, must be a positive number of seconds.")
        return [
            Slot(start + positions)
            for start in range(0, len(manifest), WINDOW)
            for positions in plan.evaluation_batches(manifest.durations_s_N[start : start + WINDOW], device_seconds)
        ]

    def loader(
        self,
        manifest: Manifest,
        slots: list[Slot],
        num_workers: int | None = None,
        dataset: type[UtteranceDataset] = UtteranceDataset,
    ) -> DataLoader:
        """Load the batches of these slots ahead of time, as items of the given dataset."""
        if num_workers is None:
            num_workers = min(default_workers(self.device), max(0, len(slots) - 1))  # a single batch needs none
        if num_workers < 0:
            raise InputError(f"--workers is {num_workers}, must be 0 or more.")
        # The references are not encoded: they may have characters without a token.
        without_texts = replace(manifest, texts=[""] * len(manifest))
        # A list of slots serves as sampler: the loader only iterates over it.
        return batch_loader(dataset(without_texts, self.spec), cast("Sampler[Any]", slots), num_workers)

    def infer(self, batch: Batch) -> BatchOutput:
        """Queue a batch on the device, without waiting for the result.

        Raises:
            TooLargeError: the batch needs more memory than the device has.
        """
        best_BF: Tensor | None = None
        done: torch.cuda.Event | None = None
        # Suppressed instead of handled: after this block the traceback is gone, and with it the tensors it refers to.
        with suppress(torch.OutOfMemoryError):
            best_BF = self._best(batch.to(self.device, non_blocking=True))
        if best_BF is None:
            raise TooLargeError(_too_large(batch))
        if self.device.type == "cuda":
            done = torch.cuda.Event(blocking=True)  # waiting for it leaves the CPU core to loader processes
            done.record(torch.cuda.current_stream(self.device))
        return BatchOutput(best_BF, batch.num_frames_B, done)

    @torch.inference_mode()
    def _best(self, batch: Batch) -> Tensor:
        with autocast(self.precision, self.device.type):
            waveforms_BT = batch.input_values().to(self.network.dtype)
            logits_BFV = wav2vec2.ctc_logits(self.network, waveforms_BT, batch.num_samples_B, speed=self.speed)
        return logits_BFV.argmax(dim=-1).to("cpu", non_blocking=True)  # into pinned memory, if it comes from a GPU

    def decode(self, output: BatchOutput) -> list[str]:
        """Return the texts of a batch, waiting for the device if necessary."""
        if output.done is not None:
            output.done.synchronize()
        return [
            self.vocabulary.decode(best_F[:num_frames].tolist())
            for best_F, num_frames in zip(output.best_BF.numpy(), output.num_frames_B.tolist(), strict=True)
        ]

    def _outcomes(self, loaded_slots: Iterable[LoadedSlot]) -> Iterator[tuple[int, str | InputError]]:
        previous: tuple[np.ndarray, BatchOutput] | None = None
        for batches, errors, remarks in loaded_slots:
            for remark in remarks:
                log.warning("%s It is transcribed as it is.", remark)
            yield from errors.items()
            for part, output in chain.from_iterable(starmap(self._infer_in_parts, batches)):
                if isinstance(output, TooLargeError):
                    yield int(part[0]), output
                    continue
                if previous is not None:  # decode the previous batch while the device computes this one
                    yield from self._texts(*previous)
                previous = part, output
        if previous is not None:
            yield from self._texts(*previous)

    def _infer_in_parts(
        self, positions: np.ndarray, batch: Batch
    ) -> Iterator[tuple[np.ndarray, BatchOutput | TooLargeError]]:
        """Infer a batch at once or, if it needs too much memory, its halves recursively, down to single utterances."""
        num_samples = batch.waveforms_BT.numel()
        output: BatchOutput | TooLargeError | None = None
        if len(batch) == 1 or num_samples < self._too_many_samples:
            try:
                output = self.infer(batch)
            except TooLargeError as error:
                if len(batch) == 1:
                    output = error
                else:
                    log.warning("%s Splitting the batch.", error)
                    self._too_many_samples = num_samples
        if output is not None:
            yield positions, output
            return
        middle = len(batch) // 2
        for half in (slice(middle), slice(middle, None)):
            yield from self._infer_in_parts(positions[half], batch.part(half))

    def _texts(self, positions: np.ndarray, output: BatchOutput) -> Iterator[tuple[int, str]]:
        return zip(positions.tolist(), self.decode(output), strict=True)

    def _check_long_enough(self, manifest: Manifest) -> None:
        for i in checks.too_short(manifest, self.spec):
            sample_rate = self.spec.sample_rate
            num_samples = round(manifest.durations_s_N[i] * sample_rate)
            raise InputError(
                f"{manifest.audio(i)}: {num_samples} samples at {sample_rate / 1000:g} kHz, the model needs"
                f" {self.spec.min_samples}."
            )


def text_or_raise(outcome: str | InputError) -> str:
    """Return the text of an utterance, or raise its error."""
    if isinstance(outcome, InputError):
        raise outcome
    return outcome


def in_order(outcomes: Iterable[tuple[int, Outcome]]) -> Iterator[Outcome]:
    """Yield the outcomes of (position, outcome) pairs by position, each as soon as all before it have arrived."""
    outcome_of_position: dict[int, Outcome] = {}
    next_position = 0
    for position, outcome in outcomes:
        outcome_of_position[position] = outcome
        while next_position in outcome_of_position:
            yield outcome_of_position.pop(next_position)
            next_position += 1


def default_device_seconds(config: Wav2Vec2Config, device: torch.device, sample_rate: int = SAMPLE_RATE) -> float:
    """Audio per batch that fits into the device's free memory, at most MAX_DEVICE_SECONDS (s)."""
    if device.type != "cuda":
        return CPU_DEVICE_SECONDS
    free_bytes, _ = torch.cuda.mem_get_info(device)
    free_bytes += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # reserved, but unused
    numbers_per_s = config.conv_dim[0] * sample_rate / config.conv_stride[0]
    bytes_per_s = LARGEST_TENSORS * numbers_per_s * torch.float32.itemsize
    return min(MAX_DEVICE_SECONDS, SHARE_OF_MEMORY * free_bytes / bytes_per_s)


def default_workers(device: torch.device) -> int:
    """Number of loader processes; 0 on a CPU, where reading is a thousandth of the work."""
    if device.type != "cuda":
        return 0
    return min(MAX_WORKERS, max(1, usable_cores() - 1))


def _device(name: str | None) -> torch.device:
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # builds of torch without CUDA raise AssertionError
        reason = str(error).splitlines()[0]
        raise InputError(f"--device {name}: not available ({reason}). Omit the option, or choose another.") from None
    return device


def _too_large(batch: Batch) -> str:
    longest_s = int(batch.num_samples_B.max()) / batch.sample_rate
    if len(batch) == 1:
        return f"{batch.ids[0]}: {longest_s:.0f} s are too long for the GPU's memory; split it, or use --device cpu."
    return (
        f"{len(batch)} utterances of up to {longest_s:.1f} s are too many for the GPU's memory; lower --device-seconds"
        f" below {len(batch) * longest_s:.0f}."
    )
