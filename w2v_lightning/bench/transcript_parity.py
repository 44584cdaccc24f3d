"""What belongs to a speed of transcription: whether both sides hear the same, and where ours takes its time."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from w2v_lightning.data.batch import Batch
from w2v_lightning.data.manifest import Manifest
from w2v_lightning.evaluation.wer import ErrorCounts, error_rates
from w2v_lightning.inference.transcriber import Recogniser, in_order
from w2v_lightning.text.vocabulary import Vocabulary

MOST_BATCHES = 10  # that are kept in memory to time the stages behind the loader


@dataclass(frozen=True)
class Agreement:
    """Texts heard in one way, beside those of a reference."""

    way: str
    equal: float  # share of the utterances
    cer: float


def agreements(
    reference: Sequence[str], heard: Mapping[str, Iterable[tuple[int, str]]], vocabulary: Vocabulary
) -> list[Agreement]:
    """How far the texts of each way, (position, text) in any order, are those of the reference, in order."""
    expected = [plain(text, vocabulary) for text in reference]
    found = []
    for way, results in heard.items():
        texts = [plain(text, vocabulary) for text in in_order(results)]
        counts = ErrorCounts()
        counts.update(texts, expected)
        equal = sum(a == b for a, b in zip(texts, expected, strict=True)) / len(expected)
        found.append(Agreement(way, equal, error_rates(counts.sums)["cer"]))
    return found


def plain(text: str, vocabulary: Vocabulary) -> str:
    """`text` without tokens such as <s>, which the pipeline leaves in and ours leaves out."""
    for token in vocabulary.silent:
        text = text.replace(token, "")
    return " ".join(text.split())


def stages(
    recogniser: Recogniser, manifest: Manifest, device_seconds: float | None, num_workers: int
) -> dict[str, float]:
    """Audio-seconds per second of each stage alone: the slowest is what all of them together can reach."""
    slots = recogniser.slots(manifest, device_seconds)
    every = max(1, len(slots) // MOST_BATCHES)
    kept: list[Batch] = []

    def read() -> None:
        for number, batch in enumerate(recogniser.loader(manifest, slots, num_workers)):
            if number % every == 0:
                kept.append(batch)

    rates = {f"read, decode, pad ({num_workers} workers)": float(manifest.durations_s_N.sum()) / _seconds(read)}
    device, audio_s = recogniser.device, sum(batch.audio_seconds for batch in kept)
    on_device = [batch.to(device) for batch in kept]
    heard = [recogniser.hear(batch) for batch in on_device]
    timed = {
        "copy": lambda: [batch.to(device, non_blocking=True) for batch in kept],
        "compute": lambda: [recogniser.hear(batch) for batch in on_device],
        "text": lambda: [recogniser.texts(batch) for batch in heard],
    }
    return rates | {name: audio_s / _seconds(function, device) for name, function in timed.items()}


def _seconds(function: Callable[[], object], device: torch.device | None = None) -> float:
    """How long it takes, the device's work included."""
    synchronize = torch.cuda.synchronize if device is not None and device.type == "cuda" else lambda: None
    synchronize()
    start_s = time.perf_counter()
    function()
    synchronize()
    return time.perf_counter() - start_s
