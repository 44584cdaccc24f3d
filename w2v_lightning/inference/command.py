"""`transcribe FILE|FOLDER|MANIFEST... --model DIR`: the text of recordings, each heard whole."""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import transformers

from w2v_lightning.data.manifest import Manifest
from w2v_lightning.data.remote import is_remote
from w2v_lightning.errors import InputError
from w2v_lightning.evaluation.wer import ErrorCounts, error_rates
from w2v_lightning.inference.inputs import recordings
from w2v_lightning.inference.transcriber import Recogniser, in_order
from w2v_lightning.prepare.progress import Progress
from w2v_lightning.runtime.files import atomic_text_file
from w2v_lightning.runtime.precision import DTYPES
from w2v_lightning.text.vocabulary import Vocabulary

DETAILS = """\
Printed is one line of text per recording, in the order given; with several, each line starts with the file's name (or
the manifest's id) and a tab. A recording is heard whole, whatever its length, and what that takes grows faster than its
duration: cut up what lasts longer than some minutes. What cannot be heard, because it is damaged, missing or too short,
is named on standard error; all else is transcribed, and the exit status is 1.
"""

Outcomes = Iterable[tuple[int, str | InputError]]  # of the positions in a manifest


def main(args: Sequence[str]) -> int:
    """Print the texts, or write them as JSON lines and print how fast and, with references, how well it went.

    Returns:
        The exit status: 1 if a recording could not be heard.
    """
    options = _parse(args)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if options.out:
        _check_writable(options.out)
    unheard = Unheard()
    try:
        manifest = recordings(options.sources, unheard.add)
        if len(manifest):
            _hear(manifest, options, unheard)
    except KeyboardInterrupt:
        return 130  # as a shell has it
    return unheard.status()


class Unheard:
    """Names what could not be heard, and counts it."""

    def __init__(self) -> None:
        self.count = 0

    def add(self, error: InputError) -> None:
        self.count += 1
        print(f"error: {error.line}", file=sys.stderr, flush=True)

    def status(self) -> int:
        """The exit status, after a line that sums up."""
        if self.count:
            recordings = "1 recording" if self.count == 1 else f"{self.count:,} recordings"
            print(f"error: {recordings} could not be heard, named above", file=sys.stderr)
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
    """(name, text) of each recording, in order: the file's path, or the manifest's id.

    Args:
        sources: audio files (WAV, FLAC, OGG and what else libsndfile reads, any sample rate, any channels), folders of
            them, manifests.
        model: Hugging Face name or folder of a wav2vec2 CTC model.
        device: such as "cuda"; by default the GPU if there is one.
        precision: Lightning's name; by default bf16-mixed or 16-mixed on a GPU, 32-true on a CPU.
        device_seconds: audio per batch, padding counted; by default what the device has memory for.
        num_workers: loader processes; by default none for little audio.

    Raises:
        InputError: the model cannot be read or has no CTC head, a recording cannot be read or is too short for one
            frame. `Recogniser.attempt` hears the others all the same.
    """
    manifest = recordings(sources)
    recogniser = Recogniser.from_pretrained(model, device, precision)
    texts = in_order(recogniser.transcribe(manifest, device_seconds, num_workers))
    return zip(manifest.ids, texts, strict=True)


def _hear(manifest: Manifest, options: argparse.Namespace, unheard: Unheard) -> None:
    recogniser = Recogniser.from_pretrained(options.model, options.device, options.precision)
    outcomes = recogniser.attempt(manifest, options.device_seconds, options.workers)
    if options.out:
        _write(options.out, manifest, outcomes, recogniser.vocabulary, unheard)
    else:
        _print(manifest, outcomes, unheard)


def _print(manifest: Manifest, outcomes: Outcomes, unheard: Unheard) -> None:
    is_alone = len(manifest) + unheard.count == 1
    for name, outcome in zip(manifest.ids, in_order(outcomes), strict=True):
        if isinstance(outcome, InputError):
            unheard.add(outcome)
        else:
            print(outcome if is_alone else f"{name}\t{outcome}", flush=True)


def _write(path: Path, manifest: Manifest, outcomes: Outcomes, vocabulary: Vocabulary, unheard: Unheard) -> None:
    """As they are heard, the texts go to a file of their own, which whatever ends the process leaves behind."""
    partial = path.with_name(f"{path.stem}.partial{path.suffix}")
    counts, start_s = ErrorCounts(), time.perf_counter()
    start_of_line_N = np.full(len(manifest), -1)
    try:
        with partial.open("wb", buffering=0) as file, Progress(None, len(manifest)) as progress:
            for i, outcome in outcomes:
                progress.advance(0)
                if isinstance(outcome, InputError):
                    unheard.add(outcome)
                    continue
                start_of_line_N[i] = file.tell()
                file.write(f"{_line(manifest, i, outcome)}\n".encode())
                if manifest.texts[i]:
                    counts.update([outcome], [vocabulary.normalise(manifest.texts[i])])
    except BaseException:
        print(f"What was heard until then is in {partial}", file=sys.stderr)
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
    """A line of a manifest that can be read from anywhere; what was heard stands beside a reference if there is one."""
    row = json.loads(manifest.line(i))
    if not is_remote(row["audio_filepath"]):
        row["audio_filepath"] = os.path.abspath(row["audio_filepath"])
    row["pred_text" if row["text"] else "text"] = text
    return json.dumps(row, ensure_ascii=False)


def _check_writable(path: Path) -> None:
    """Before hours of audio are heard for nothing."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out: {path.parent} cannot be made ({error.strerror}); name another file.") from None
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise InputError(f"--out: {path} cannot be written; name another file.")


def _parse(args: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m w2v_lightning transcribe",
        description=f"{__doc__}\n\n{DETAILS}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="FILE|FOLDER|MANIFEST",
        help="audio of any sample rate, a folder of it, or a manifest (.jsonl) as `prepare` or NeMo write it",
    )
    parser.add_argument("--model", required=True, help="Hugging Face name or folder of a wav2vec2 CTC model")
    parser.add_argument("--device", help="such as cpu or cuda; by default the GPU if there is one")
    parser.add_argument(
        "--precision",
        default="auto",
        choices=("auto", *DTYPES),
        help="auto: bf16-mixed, on GPUs before compute capability 8.0 16-mixed, on a CPU 32-true",
    )
    parser.add_argument(
        "--device-seconds",
        type=float,
        help="audio per batch, padding counted; by default what the device has memory for, at most 800; if that is too"
        " much, batches are heard in parts",
    )
    parser.add_argument("--workers", type=int, help="loader processes; by default none for little audio, at most 16")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="write a manifest (.jsonl) instead, what was heard as `text`, or as `pred_text` beside a reference, and"
        " print the word error rate; if it is interrupted, what was heard until then is in FILE.partial.jsonl",
    )
    return parser.parse_args(args)
