"""Speech to text by a CTC model, at the speed of the device: nothing waits for what it does not need.

Loader processes read, decode and pad. Batches are of neighbours in duration, come in pinned memory, and are queued on
the device; the text of one is put together while the device computes the next.

Shapes: B utterances, T samples, F frames, V tokens.
"""

import logging
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

from w2v_lightning.data import checks, plan
from w2v_lightning.data.batch import SAMPLE_RATE, Batch
from w2v_lightning.data.loader import UtteranceDataset, batch_loader
from w2v_lightning.data.manifest import Manifest
from w2v_lightning.data.samplers import Slot
from w2v_lightning.errors import InputError
from w2v_lightning.model import wav2vec2
from w2v_lightning.model.speed import Speed
from w2v_lightning.runtime.hardware import usable_cores
from w2v_lightning.runtime.precision import DTYPES, autocast, choose_precision, weights_dtype
from w2v_lightning.text.vocabulary import Vocabulary

log = logging.getLogger(__name__)

# Utterances that are sorted by duration together. Texts come in the order of the input at the latest when a window is
# done, and no more of them are held; the last batch of a window, which is seldom full, costs under 1 %.
WINDOW = 10_000

MAX_WORKERS = 16  # half of them deliver 15,000 audio-seconds per second, an H200 hears 21,000 (docs/performance.md)
MAX_DEVICE_SECONDS = 800.0  # more per batch makes no GPU faster
CPU_DEVICE_SECONDS = 15.0  # more per batch makes a CPU slower
SHARE_OF_MEMORY = 0.8  # of what is free on the GPU
# What the first convolution puts out, 3,200 frames of 512 channels per second, is by far the largest tensor of a batch
# of ordinary utterances; its norm holds so many of it at once, in float32.
LARGEST_TENSORS = 6


Outcome = TypeVar("Outcome", str, str | InputError)  # of an utterance


@dataclass(frozen=True)
class Heard:
    """The best token of each frame of a batch, on the CPU once `done` has happened (None: they are there)."""

    best_BF: Tensor
    num_frames_B: Tensor
    done: torch.cuda.Event | None


class TooLargeError(InputError):
    """The device's memory is too small for a batch."""


class Read(NamedTuple):
    """What of a slot could be read, None if nothing, and what is wrong with the others, by their positions."""

    positions: np.ndarray
    batch: Batch | None
    errors: dict[int, InputError]


class ReadableDataset(UtteranceDataset):
    """Leaves out of a batch the utterances that cannot be read: one of them is no reason to lose the others."""

    def __getitem__(self, slot: Slot) -> Read:
        try:
            return Read(slot.positions, super().__getitem__(slot), {})
        except InputError:  # which of them is it?
            errors = {i: error for i in slot.positions.tolist() if (error := self._error(i))}
        readable = np.array([i for i in slot.positions.tolist() if i not in errors])
        return Read(readable, super().__getitem__(Slot(readable)) if len(readable) else None, errors)

    def _error(self, position: int) -> InputError | None:
        try:
            super().__getitem__(Slot(np.array([position])))
        except InputError as error:
            return error
        return None


class Recogniser:
    """A CTC model on a device, in a precision.

    Args:
        network: transformers' model; goes to the device, in evaluation mode.
        vocabulary: what it puts out.
        normalise: it hears each utterance with zero mean and unit variance.
        device: such as "cuda"; by default the GPU if there is one.
        precision: Lightning's name, or "auto": what suits the device.
        speed: how the network is computed; by default the fastest ways.

    Raises:
        InputError: there is no such device or precision.
    """

    def __init__(
        self,
        network: Wav2Vec2ForCTC,
        vocabulary: Vocabulary,
        normalise: bool,
        device: str | None = None,
        precision: str = "auto",
        speed: Speed | None = None,
    ):
        self.device = _device(device)
        self.precision = choose_precision(self.device.type)[0] if precision == "auto" else precision
        if self.precision not in DTYPES:
            raise InputError(f"--precision: there is no {precision!r}; choose from auto, {', '.join(DTYPES)}.")
        self.network = network.eval().to(self.device, weights_dtype(self.precision))
        self.vocabulary = vocabulary
        self.speed = speed or Speed()
        self.spec = wav2vec2.input_spec(network.config, vocabulary, normalise)
        self._too_many_samples = float("inf")  # in a batch, padding counted: the device's memory was too small for it

    @classmethod
    def from_pretrained(
        cls, model: str, device: str | None = None, precision: str = "auto", speed: Speed | None = None
    ) -> "Recogniser":
        """With a wav2vec2 CTC model by its Hugging Face name or folder.

        Raises:
            InputError: as above, or the model cannot be read, or has no CTC head.
        """
        wav2vec2.check_head("--model", model, "fine-tune it first (fit), and name the folder that this exports")
        return cls(*wav2vec2.from_pretrained(model, {}), device, precision, speed)

    def transcribe(
        self, manifest: Manifest, device_seconds: float | None = None, num_workers: int | None = None
    ) -> Iterator[tuple[int, str]]:
        """(position in the manifest, text) of each utterance, as batches are done; see `in_order`.

        Every utterance is heard whole; what that takes grows faster than its duration.

        Args:
            manifest: the utterances; their texts are not looked at.
            device_seconds: audio per batch, padding counted; by default what the device has memory for.
            num_workers: loader processes; by default as many as pay, none for a single batch.

        Raises:
            InputError: an utterance is too short for one frame (before anything is heard), too long for the device's
                memory, or cannot be read.
        """
        self._check_long_enough(manifest)
        outcomes = self.attempt(manifest, device_seconds, num_workers)
        return ((position, text_or_raise(outcome)) for position, outcome in outcomes)

    def attempt(
        self, manifest: Manifest, device_seconds: float | None = None, num_workers: int | None = None
    ) -> Iterator[tuple[int, str | InputError]]:
        """Like `transcribe`, but an utterance that cannot be heard has its error in the place of a text."""
        slots = self.slots(manifest, device_seconds)
        return self._outcomes(self.loader(manifest, slots, num_workers, ReadableDataset))

    # ---- the pieces ---------------------------------------------------------------------------------------------

    def slots(self, manifest: Manifest, device_seconds: float | None = None) -> list[Slot]:
        """Batches by duration: the longest of each window of the manifest first."""
        if device_seconds is None:
            device_seconds = default_device_seconds(self.network.config, self.device)
        if not device_seconds > 0:
            raise InputError(f"--device-seconds must be a positive number of seconds, found {device_seconds:g}.")
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
        """The batches of these slots, read ahead, as the kind of dataset has them."""
        if num_workers is None:
            num_workers = min(default_workers(self.device), max(0, len(slots) - 1))  # a single batch needs none
        if num_workers < 0:
            raise InputError(f"--workers must be 0 or more, found {num_workers}.")
        unread = replace(manifest, texts=[""] * len(manifest))  # the references may have characters without a token
        return batch_loader(dataset(unread, self.spec), slots, num_workers)

    def hear(self, batch: Batch) -> Heard:
        """Queue a batch on the device, without waiting for it.

        Raises:
            TooLargeError: the device's memory is too small for it.
        """
        best_BF = done = None
        with suppress(torch.OutOfMemoryError):  # outside of it what was computed is freed: the traceback holds it
            best_BF = self._best(batch.to(self.device, non_blocking=True))
        if best_BF is None:
            raise TooLargeError(_too_large(batch))
        if self.device.type == "cuda":
            done = torch.cuda.Event(blocking=True)  # who waits for it leaves the core to a loader process
            done.record(torch.cuda.current_stream(self.device))
        return Heard(best_BF, batch.num_frames_B, done)

    @torch.inference_mode()
    def _best(self, batch: Batch) -> Tensor:
        with autocast(self.precision, self.device.type):
            waveforms_BT = batch.input_values().to(self.network.dtype)
            logits_BFV = wav2vec2.ctc_logits(self.network, waveforms_BT, batch.num_samples_B, speed=self.speed)
        return logits_BFV.argmax(dim=-1).to("cpu", non_blocking=True)  # into pinned memory, if it comes from a GPU

    def texts(self, heard: Heard) -> list[str]:
        """The texts of a batch, waiting for it if it is not done."""
        if heard.done is not None:
            heard.done.synchronize()
        return [
            self.vocabulary.decode(best_F[:num_frames].tolist())
            for best_F, num_frames in zip(heard.best_BF.numpy(), heard.num_frames_B.tolist(), strict=True)
        ]

    def _outcomes(self, reads: Iterable[Read]) -> Iterator[tuple[int, str | InputError]]:
        before: tuple[np.ndarray, Heard] | None = None
        for positions, batch, errors in reads:
            yield from errors.items()
            for part, heard in self._heard(positions, batch) if batch else ():
                if isinstance(heard, TooLargeError):
                    yield int(part[0]), heard
                    continue
                if before is not None:  # its texts are put together while the device computes this one
                    yield from self._numbered(*before)
                before = part, heard
        if before is not None:
            yield from self._numbered(*before)

    def _heard(self, positions: np.ndarray, batch: Batch) -> Iterator[tuple[np.ndarray, Heard | TooLargeError]]:
        """The batch at once, or where the device's memory is too small for that its halves, and so on; an utterance
        for which it is too small has its error."""
        num_samples, heard = batch.waveforms_BT.numel(), None
        if len(batch) == 1 or num_samples < self._too_many_samples:
            try:
                heard = self.hear(batch)
            except TooLargeError as error:
                if len(batch) == 1:
                    heard = error
                else:
                    log.warning("%s They are heard in parts.", error)
                    self._too_many_samples = num_samples
        if heard is not None:
            yield positions, heard
            return
        middle = len(batch) // 2
        for half in (slice(middle), slice(middle, None)):
            yield from self._heard(positions[half], batch.part(half))

    def _numbered(self, positions: np.ndarray, heard: Heard) -> Iterator[tuple[int, str]]:
        return zip(positions.tolist(), self.texts(heard), strict=True)

    def _check_long_enough(self, manifest: Manifest) -> None:
        for i in checks.too_short(manifest, self.spec):
            num_samples = round(manifest.durations_s_N[i] * SAMPLE_RATE)
            raise InputError(
                f"{manifest.audio(i)}: {num_samples} samples at 16 kHz, the model needs {self.spec.min_samples}."
            )


def text_or_raise(outcome: str | InputError) -> str:
    if isinstance(outcome, InputError):
        raise outcome
    return outcome


def in_order(outcomes: Iterable[tuple[int, Outcome]]) -> Iterator[Outcome]:
    """The texts, or what else, of (position, text) pairs by position, each as soon as all before it are there."""
    outcome_of_position, following = {}, 0
    for position, outcome in outcomes:
        outcome_of_position[position] = outcome
        while following in outcome_of_position:
            yield outcome_of_position.pop(following)
            following += 1


def default_device_seconds(config: Wav2Vec2Config, device: torch.device) -> float:
    """Audio per batch that the device has memory for, weights already on it; more than pays is not asked for."""
    if device.type != "cuda":
        return CPU_DEVICE_SECONDS
    free_bytes, _ = torch.cuda.mem_get_info(device)
    free_bytes += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # torch's own, and unused
    numbers_per_s = config.conv_dim[0] * SAMPLE_RATE / config.conv_stride[0]
    bytes_per_s = LARGEST_TENSORS * numbers_per_s * torch.float32.itemsize
    return min(MAX_DEVICE_SECONDS, SHARE_OF_MEMORY * free_bytes / bytes_per_s)


def default_workers(device: torch.device) -> int:
    """Loader processes; none on a CPU, where reading is a thousandth of the work."""
    if device.type != "cuda":
        return 0
    return min(MAX_WORKERS, max(1, usable_cores() - 1))


def _device(name: str | None) -> torch.device:
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts where it was built without CUDA
        reason = str(error).splitlines()[0]
        raise InputError(f"--device {name}: cannot be used ({reason}); leave it out, or name another.") from None
    return device


def _too_large(batch: Batch) -> str:
    longest_s = int(batch.num_samples_B.max()) / SAMPLE_RATE
    if len(batch) == 1:
        return f"{batch.ids[0]}: {longest_s:.0f} s are too long for the GPU's memory; cut it up, or use --device cpu."
    return (
        f"{len(batch)} utterances of up to {longest_s:.1f} s are too many for the GPU's memory; lower --device-seconds"
        f" below {len(batch) * longest_s:.0f}."
    )
