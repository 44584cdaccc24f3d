"""`transcribe FILE|FOLDER|MANIFEST... --model DIR`: the text of recordings, each heard whole."""

import argparse
import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import transformers

from w2v_lightning.data.manifest import Manifest, atomic_text_file
from w2v_lightning.data.remote import is_remote
from w2v_lightning.errors import InputError
from w2v_lightning.evaluation.wer import ErrorCounts, error_rates
from w2v_lightning.precision import DTYPES
from w2v_lightning.prepare.progress import Progress
from w2v_lightning.recogniser import Recogniser, in_order
from w2v_lightning.recordings import recordings
from w2v_lightning.text import Vocabulary

DETAILS = """\
Printed is one line of text per recording, in the order given; with several, each line starts with the file's name (or
the manifest's id) and a tab. A recording is heard whole, whatever its length, and what that takes grows faster than its
duration: cut up what lasts longer than some minutes.
"""


def main(args: Sequence[str]) -> None:
    """Print the texts, or write them as JSON lines and print how fast and, with references, how well it went."""
    options = _parse(args)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if options.out:
        _check_writable(options.out)
    manifest = recordings(options.sources)
    recogniser = Recogniser.from_pretrained(options.model, options.device, options.precision)
    results = recogniser.transcribe(manifest, options.device_seconds, options.workers)
    if options.out:
        _write(options.out, manifest, results, recogniser.vocabulary)
        return
    for name, text in zip(manifest.ids, in_order(results), strict=True):
        print(text if len(manifest) == 1 else f"{name}\t{text}", flush=True)


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
        InputError: the model or a recording cannot be read, or a recording is too short for one frame.
    """
    manifest = recordings(sources)
    recogniser = Recogniser.from_pretrained(model, device, precision)
    texts = in_order(recogniser.transcribe(manifest, device_seconds, num_workers))
    return zip(manifest.ids, texts, strict=True)


def _write(path: Path, manifest: Manifest, results: Iterable[tuple[int, str]], vocabulary: Vocabulary) -> None:
    counts, start_s = ErrorCounts(), time.perf_counter()
    with atomic_text_file(path) as file, Progress(None, len(manifest)) as progress:
        for i, text in enumerate(in_order(results)):
            file.write(_line(manifest, i, text) + "\n")
            if manifest.texts[i]:
                counts.update([text], [vocabulary.normalise(manifest.texts[i])])
            progress.advance(0)
    audio_s, elapsed_s = manifest.durations_s_N.sum(), time.perf_counter() - start_s
    print(
        f"{path}: {len(manifest):,} recordings, {audio_s / 3600:.2f} h, in {elapsed_s:.1f} s"
        f" ({audio_s / elapsed_s:,.0f} audio-s/s)"
    )
    if any(manifest.texts):
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
        help="audio per batch, padding counted; by default what the device has memory for, at most 800",
    )
    parser.add_argument("--workers", type=int, help="loader processes; by default none for little audio, at most 16")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="write a manifest (.jsonl) instead, what was heard as `text`, or as `pred_text` beside a reference, and"
        " print the word error rate",
    )
    return parser.parse_args(args)
