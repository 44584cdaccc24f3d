"""Command `transcribe`: the texts of recordings, each transcribed as a whole."""

import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import transformers
from jsonargparse.typing import NonNegativeInt, PositiveFloat

from w2v_lightning.command_line import Parser, parse, parser_of
from w2v_lightning.data.manifest import Manifest
from w2v_lightning.data.remote import is_remote
from w2v_lightning.errors import InputError
from w2v_lightning.evaluation.wer import ErrorCounts, error_rates
from w2v_lightning.inference.inputs import load_inputs
from w2v_lightning.inference.transcriber import Transcriber, in_order
from w2v_lightning.prepare.progress import Progress
from w2v_lightning.runtime.files import atomic_text_file
from w2v_lightning.text.vocabulary import Vocabulary

Precision = Literal["auto", "32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true"]  # auto, or a key of DTYPES
Outcomes = Iterable[tuple[int, str | InputError]]  # position in the manifest, and text or error


@dataclass(frozen=True)
class TranscribeOptions:
    """Transcribe audio files, folders of them, or manifests.

    Prints one line of text for each recording, in the order given; with several recordings, each line starts with the
    name of the file (or the id in the manifest) and a tab. A recording is transcribed as a whole, and time and memory
    grow faster than its duration: split recordings of more than a few minutes. A recording that is damaged, missing or
    too short is named on standard error; all others are transcribed, and the exit status is 1.

    Args:
        sources: audio files of any sample rate, folders of them, or manifests (.jsonl) as `prepare` or NeMo write them.
        model: name on the Hugging Face Hub, or folder, of a wav2vec2 CTC model.
        target_lang: language of a model with language adapters (MMS), such as eng; default: the model's own.
        device: device to compute on, such as cpu or cuda; default: the GPU if there is one.
        precision: precision of the computation; auto is bf16-mixed on GPUs from compute capability 8.0 on, 16-mixed on
            older GPUs, and 32-true on CPUs.
        device_seconds: audio in a batch in seconds, padding included; default: what fits into the memory of the device,
            at most 800. A batch that does not fit is split.
        workers: number of loader processes; default: none for little audio, at most 16.
        out: manifest (.jsonl) to write instead of printing: the transcription is `text`, or `pred_text` beside a
            reference, and the word error rate is printed. After an interruption, partial results are in
            FILE.partial.jsonl.
    """

    sources: list[str]
    model: str
    target_lang: str | None = None
    device: str | None = None
    precision: Precision = "auto"
    device_seconds: PositiveFloat | None = None
    workers: NonNegativeInt | None = None
    out: Path | None = None


def parser() -> Parser:
    """Return the parser of this command."""
    return parser_of(TranscribeOptions, "transcribe", positional=["sources"])


def main(args: Sequence[str]) -> int:
    """Print the texts, or write them as JSON lines and print the speed and, with references, the error rates.

    Returns:
        The exit status: 1 if a recording could not be transcribed.
    """
    options = parse(TranscribeOptions, "transcribe", args, positional=["sources"])
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if options.out:
        _check_writable(options.out)
    failures = Failures()
    try:
        manifest = load_inputs(options.sources, failures.add)
        if len(manifest):
            _transcribe(manifest, options, failures)
    except KeyboardInterrupt:
        return 130  # the status of a process that SIGINT ends, as shells report it
    return failures.status()


class Failures:
    """Printer and counter of the recordings that could not be transcribed."""

    def __init__(self) -> None:
        self.count = 0

    def add(self, error: InputError) -> None:
        """Print the error of a recording."""
        self.count += 1
        print(f"error: {error.line}", file=sys.stderr, flush=True)

    def status(self) -> int:
        """Print a summary if there were failures, and return the exit status."""
        if self.count:
            recordings = "1 recording" if self.count == 1 else f"{self.count:,} recordings"
            print(f"error: {recordings} could not be transcribed (listed above)", file=sys.stderr)
        return min(self.count, 1)


def transcribe(
    sources: Sequence[str | Path],
    model: str,
    device: str | None = None,
    *,
    precision: str = "auto",
    device_seconds: float | None = None,
    num_workers: int | None = None,
) -> Iterator[tuple[str, str]]:
    """Iterate over (name, text) of each recording, in order. The name is the file's path, or the id in the manifest.

    Args:
        sources: audio files (WAV, FLAC, OGG and other formats of libsndfile, any sample rate, any number of channels),
            folders of them, or manifests.
        model: Hugging Face name or folder of a wav2vec2 CTC model.
        device: name such as "cuda"; default: the GPU if there is one.
        precision: Lightning's name of a precision; "auto": bf16-mixed or 16-mixed on a GPU, 32-true on a CPU.
        device_seconds: audio per batch including padding (s); default: what fits into the device's memory.
        num_workers: number of loader processes; default: 0 for little audio, at most 16.

    Raises:
        InputError: the model cannot be read or has no CTC head, or a recording cannot be read or is too short for one
            frame. `Transcriber.attempt` transcribes the other recordings regardless.
    """
    manifest = load_inputs(sources)
    transcriber = Transcriber.from_pretrained(model, device, precision)
    texts = in_order(transcriber.transcribe(manifest, device_seconds, num_workers))
    return zip(manifest.ids, texts, strict=True)


def _transcribe(manifest: Manifest, options: TranscribeOptions, failures: Failures) -> None:
    transcriber = Transcriber.from_pretrained(
        options.model, options.device, options.precision, target_lang=options.target_lang
    )
    outcomes = transcriber.attempt(manifest, options.device_seconds, options.workers)
    if options.out:
        _write(options.out, manifest, outcomes, transcriber.vocabulary, failures)
    else:
        _print(manifest, outcomes, failures)


def _print(manifest: Manifest, outcomes: Outcomes, failures: Failures) -> None:
    is_alone = len(manifest) + failures.count == 1
    for name, outcome in zip(manifest.ids, in_order(outcomes), strict=True):
        if isinstance(outcome, InputError):
            failures.add(outcome)
        else:
            print(outcome if is_alone else f"{name}\t{outcome}", flush=True)


def _write(path: Path, manifest: Manifest, outcomes: Outcomes, vocabulary: Vocabulary, failures: Failures) -> None:
    """Write each text to FILE.partial as it arrives, so that an interruption keeps it; finally sort them into FILE."""
    partial = path.with_name(f"{path.stem}.partial{path.suffix}")
    counts, start_s = ErrorCounts(), time.perf_counter()
    start_of_line_N = np.full(len(manifest), -1)
    try:
        with partial.open("wb", buffering=0) as file, Progress(None, len(manifest)) as progress:
            for i, outcome in outcomes:
                progress.advance(0)
                if isinstance(outcome, InputError):
                    failures.add(outcome)
                    continue
                start_of_line_N[i] = file.tell()
                file.write(f"{_line(manifest, i, outcome)}\n".encode())
                if manifest.texts[i]:
                    counts.update([outcome], [vocabulary.normalise(manifest.texts[i])])
    except BaseException:
        print(f"Partial results are in {partial}", file=sys.stderr)
        raise
    elapsed_s = time.perf_counter() - start_s
    if not partial.stat().st_size:
        partial.unlink()
        return
    _put_in_order(partial, start_of_line_N, path)
    _report(path, manifest.durations_s_N[start_of_line_N >= 0], elapsed_s, counts)


def _put_in_order(partial: Path, start_of_line_N: np.ndarray, path: Path) -> None:
    with partial.open("rb") as unordered, atomic_text_file(path) as file:
        for start in start_of_line_N[start_of_line_N >= 0].tolist():
            unordered.seek(start)
            file.write(unordered.readline().decode())
    partial.unlink()


def _report(path: Path, durations_s_N: np.ndarray, elapsed_s: float, counts: ErrorCounts) -> None:
    audio_s = durations_s_N.sum()
    print(
        f"{path}: {len(durations_s_N):,} recordings, {audio_s / 3600:.2f} h, in {elapsed_s:.1f} s"
        f" ({audio_s / elapsed_s:,.0f} audio-s/s)"
    )
    if counts.sums.any():
        rates = error_rates(counts.sums)
        print(f"WER {rates['wer']:.2%}, CER {rates['cer']:.2%}")


def _line(manifest: Manifest, i: int, text: str) -> str:
    """Format a manifest line with absolute paths and the transcription, as `pred_text` if there is a reference."""
    row = json.loads(manifest.line(i))
    if not is_remote(row["audio_filepath"]):
        row["audio_filepath"] = os.path.abspath(row["audio_filepath"])
    row["pred_text" if row["text"] else "text"] = text
    return json.dumps(row, ensure_ascii=False)


def _check_writable(path: Path) -> None:
    """Refuse an output file that cannot be written, before hours of transcription."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out: {path.parent} cannot be created ({error.strerror}); choose another file.") from None
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise InputError(f"--out: {path} cannot be written; choose another file.")
