"""The command `check`: find what would hurt training in a corpus, before it starts."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jsonargparse.typing import PositiveFloat
from rich.console import Console
from rich.progress import track

from w2v_lightning.check import audio_findings, findings, text_findings
from w2v_lightning.check.findings import Corpus
from w2v_lightning.check.html import save_html
from w2v_lightning.check.measure import Measurement, measure_all
from w2v_lightning.check.result import Result, print_result, save_json
from w2v_lightning.command_line import Parser, parse, parser_of
from w2v_lightning.data.batch import InputSpec
from w2v_lightning.data.manifest import Manifest
from w2v_lightning.errors import InputError

PIPE_WIDTH = 160  # columns of the table if standard output is not a terminal


@dataclass(frozen=True)
class CheckOptions:
    """Find what would hurt training in a corpus, before it starts.

    The exit status is 1 if anything would hurt training, else 0; warnings do not change it.

    Args:
        manifests: paths or URLs of the manifests of training data (manifest.jsonl, also .gz).
        val: paths or URLs of the manifests of validation data.
        model: folder or Hugging Face name of a wav2vec2 CTC model, for its vocabulary and frame rate; default: those of
            wav2vec2-base.
        decode: decoding of every sample, which also finds damaged audio, NaN, clipping and silence.
        max_seconds: duration above which an utterance is reported, in seconds.
        report: path of an HTML report with figures.
        json: path of a JSON report of all findings with all ids.
    """

    manifests: list[str]
    val: list[str] = field(default_factory=list)
    model: str | None = None
    decode: bool = False
    max_seconds: PositiveFloat = 30.0
    report: Path | None = None
    json: Path | None = None


def parser() -> Parser:
    """Return the parser of the command."""
    return parser_of(CheckOptions, "check", positional=["manifests"])


def main(args: Sequence[str]) -> int:
    """Run the command: print the findings, and write the reports.

    Returns:
        The exit status: 1 if anything would hurt training, else 0.

    Raises:
        InputError: an option is wrong, a manifest cannot be read or is empty, or a report cannot be written.
    """
    options = parse(CheckOptions, "check", args, positional=["manifests"])
    train, validation = ([_load(path) for path in paths] for paths in (options.manifests, options.val))
    corpus = Corpus.join(train, validation, _input_spec(options.model))
    measurements = list(_with_progress(measure_all(corpus.manifest, options.decode), len(corpus)))
    all_findings = [
        *audio_findings.in_audio(corpus, measurements, options.decode),
        *findings.in_manifest(corpus, options.max_seconds),
        *text_findings.in_texts(corpus),
    ]
    result = Result(corpus, all_findings, [*options.manifests, *options.val], options.decode)
    console = Console()
    print_result(result, console if console.is_terminal else Console(width=PIPE_WIDTH))
    if options.report is not None:
        _write(save_html, result, options.report, "--report")
    if options.json is not None:
        _write(save_json, result, options.json, "--json")
    return 1 if result.would_hurt else 0


def _write(save: Callable[[Result, Path], None], result: Result, path: Path, option: str) -> None:
    try:
        save(result, path)
    except OSError as error:
        raise InputError(f"{option} {path} cannot be written: {error.strerror}.") from None
    print(f"Written: {path}")


def _load(path: str) -> Manifest:
    if Path(path).is_dir():
        raise InputError(
            f"{path} is a folder, not a manifest: run `python -m w2v_lightning prepare {path} --out DIR` first."
        )
    return Manifest.load(path, escape=True)


def _input_spec(model: str | None) -> InputSpec:
    if model is None:
        return InputSpec()
    from w2v_lightning.model import wav2vec2  # imports transformers, which takes seconds

    network, vocabulary, waveforms = wav2vec2.from_pretrained(model, {})
    return wav2vec2.input_spec(network.config, vocabulary, *waveforms)


def _with_progress(measurements: Iterator[Measurement], total: int) -> Iterator[Measurement]:
    console = Console(stderr=True)
    yield from track(
        measurements, "Reading audio", total, console=console, transient=True, disable=not console.is_terminal
    )
