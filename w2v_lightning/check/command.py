"""`check MANIFEST...`: find what would hurt training in a corpus, before it starts."""

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import track

from w2v_lightning.check import audio_findings, findings
from w2v_lightning.check.findings import Corpus
from w2v_lightning.check.html import save_html
from w2v_lightning.check.measure import Measurement, measure_all
from w2v_lightning.check.result import Result, print_result, save_json
from w2v_lightning.data.batch import InputSpec
from w2v_lightning.data.manifest import Manifest
from w2v_lightning.errors import InputError

PIPE_WIDTH = 160  # columns where there is no terminal to ask


def main(args: Sequence[str]) -> int:
    """Print what was found, write the reports that were asked for; 1 if anything would hurt training, else 0."""
    options = _parse(args)
    train, validation = ([_load(path) for path in paths] for paths in (options.manifests, options.val))
    corpus = Corpus.join(train, validation, _input_spec(options.model))
    if len(corpus) == 0:
        raise InputError(f"{', '.join(options.manifests)}: there is no utterance in it.")
    measurements = list(_with_progress(measure_all(corpus.manifest, options.decode), len(corpus)))
    found = audio_findings.in_audio(corpus, measurements, options.decode) + findings.in_manifest(
        corpus, options.max_seconds
    )
    result = Result(corpus, found, [*options.manifests, *options.val], options.decode)
    console = Console()
    print_result(result, console if console.is_terminal else Console(width=PIPE_WIDTH))
    for option, path, save in (("--report", options.report, save_html), ("--json", options.json, save_json)):
        if path is not None:
            _write(save, result, path, option)
    return 1 if result.would_hurt else 0


def _write(save: Callable[[Result, Path], None], result: Result, path: Path, option: str) -> None:
    try:
        save(result, path)
    except OSError as error:
        raise InputError(f"{option} {path} cannot be written: {error.strerror}.") from None
    print(f"Written: {path}")


def _parse(args: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m w2v_lightning check", description=__doc__)
    parser.add_argument("manifests", nargs="+", metavar="MANIFEST", help="manifest.jsonl, also .gz or a URL")
    parser.add_argument("--val", nargs="+", default=[], metavar="MANIFEST", help="manifests of validation")
    parser.add_argument("--model", metavar="DIR", help="of a wav2vec2 CTC model; by default wav2vec2-base's is assumed")
    parser.add_argument("--decode", action="store_true", help="read every sample: finds damage, NaN, clipping, silence")
    parser.add_argument("--max-seconds", type=float, default=30.0, metavar="S", help="warn of longer utterances (30)")
    parser.add_argument("--report", type=Path, metavar="FILE.html", help="write a page with figures")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all findings with all ids")
    return parser.parse_args(args)


def _load(path: str) -> Manifest:
    if Path(path).is_dir():
        raise InputError(
            f"{path} is a folder, a manifest is needed: run `python -m w2v_lightning prepare {path} --out DIR` first."
        )
    return Manifest.load(path)


def _input_spec(model: str | None) -> InputSpec:
    if model is None:
        return InputSpec()
    from w2v_lightning.model import wav2vec2  # transformers takes seconds to import

    network, vocabulary, normalise = wav2vec2.from_pretrained(model, {})
    return wav2vec2.input_spec(network.config, vocabulary, normalise)


def _with_progress(measurements: Iterator[Measurement], total: int) -> Iterator[Measurement]:
    console = Console(stderr=True)
    yield from track(
        measurements, "Reading audio", total, console=console, transient=True, disable=not console.is_terminal
    )
