"""Comparison of transcriptions with a reference, and the speed of each stage of ours."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from w2v_lightning.data.batch import Batch
from w2v_lightning.data.manifest import Manifest
from w2v_lightning.evaluation.wer import ErrorCounts, error_rates
from w2v_lightning.inference.transcriber import Transcriber, in_order
from w2v_lightning.text.vocabulary import Vocabulary

MOST_BATCHES = 10  # number of batches kept in memory to time the stages after the loader


@dataclass(frozen=True)
class Agreement:
    """Agreement of the texts of one way to transcribe with those of a reference."""

    way: str
    equal: float  # share of the utterances
    cer: float


def agreements(
    reference: Sequence[str], results_of: Mapping[str, Iterable[tuple[int, str]]], vocabulary: Vocabulary
) -> list[Agreement]:
    """Compare the texts of each way to transcribe with the reference.

    Args:
        reference: texts in order.
        results_of: for each way its (position, text) pairs in any order.
        vocabulary: vocabulary, whose silent tokens are ignored.
    """
    expected = [plain(text, vocabulary) for text in reference]
    compared = []
    for way, results in results_of.items():
        texts = [plain(text, vocabulary) for text in in_order(results)]
        counts = ErrorCounts()
        counts.update(texts, expected)
        equal = sum(a == b for a, b in zip(texts, expected, strict=True)) / len(expected)
        compared.append(Agreement(way, equal, error_rates(counts.sums)["cer"]))
    return compared


def plain(text: str, vocabulary: Vocabulary) -> str:
    """Remove tokens such as <s>, which the pipeline prints and ours does not."""
    for token in vocabulary.silent:
        text = text.replace(token, "")
    return " ".join(text.split())


def stages(
    transcriber: Transcriber, manifest: Manifest, device_seconds: float | None, num_workers: int
) -> dict[str, float]:
    """Measure the audio-seconds per second of each stage alone; the slowest one limits the whole."""
    slots = transcriber.slots(manifest, device_seconds)
    every = max(1, len(slots) // MOST_BATCHES)
    kept: list[Batch] = []

    def read() -> None:
        for number, batch in enumerate(transcriber.loader(manifest, slots, num_workers)):
            if number % every == 0:
                kept.append(batch)

    rates = {f"read, decode, pad ({num_workers} workers)": float(manifest.durations_s_N.sum()) / _seconds(read)}
    device, audio_s = transcriber.device, sum(batch.audio_seconds for batch in kept)
    on_device = [batch.to(device) for batch in kept]
    inferred = [transcriber.infer(batch) for batch in on_device]
    timed = {
        "copy": lambda: [batch.to(device, non_blocking=True) for batch in kept],
        "compute": lambda: [transcriber.infer(batch) for batch in on_device],
        "text": lambda: [transcriber.decode(batch) for batch in inferred],
    }
    return rates | {name: audio_s / _seconds(function, device) for name, function in timed.items()}


def _seconds(function: Callable[[], object], device: torch.device | None = None) -> float:
    """Measure the duration of a call (s), the work of the device included."""
    synchronize = torch.cuda.synchronize if device is not None and device.type == "cuda" else lambda: None
    synchronize()
    start_s = time.perf_counter()
    function()
    synchronize()
    return time.perf_counter() - start_s
