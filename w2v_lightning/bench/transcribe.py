"""Benchmark `bench transcribe`: audio transcribed per second, compared with transformers' own pipeline at its best.

Both sides have the same weights and the same files, and take turns in one process. First every variant of the pipeline
transcribes the same excerpt; the fastest one is then compared with ours. A pass is timed from opening the first file to
the last text, including the start and end of loader processes. Its excerpt takes about --seconds. Speed counts the
audio, without padding.
"""

import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from jsonargparse.typing import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from rich.console import Console

from w2v_lightning.bench import transcribe_report
from w2v_lightning.bench.pipeline import DTYPES, Pipelines, Variant, usable_feeds, variants
from w2v_lightning.bench.settings import CONFIGS
from w2v_lightning.bench.transcribe_report import OURS, Pass, Result
from w2v_lightning.bench.transcript_parity import Agreement, agreements, stages
from w2v_lightning.command_line import Parser, parse, parser_of
from w2v_lightning.data.manifest import Manifest
from w2v_lightning.errors import InputError
from w2v_lightning.inference.command import Precision
from w2v_lightning.inference.inputs import load_inputs
from w2v_lightning.inference.transcriber import Transcriber, default_workers, in_order
from w2v_lightning.model import wav2vec2
from w2v_lightning.model.speed import Speed
from w2v_lightning.text.vocabulary import Vocabulary

Way = Callable[[Manifest], Iterable[tuple[int, str]]]  # (position, text) of each utterance

SEED = 0
ALONE_S = 1e-3  # audio per batch (s), so little that each batch has one utterance
COMPARED_S = 300.0  # audio whose texts are compared (s)


@dataclass(frozen=True)
class TranscribeOptions:
    """Measure the audio transcribed per second, compared with transformers' pipeline.

    Args:
        source: manifest, or folder of audio files, which are repeated if they are short.
        model: name (base or large, random weights), or model folder.
        device: device to compute on, such as cpu or cuda; default: the GPU if there is one.
        precision: precision of ours.
        device_seconds: audio per batch of ours, in seconds; default: that of `transcribe`.
        compile: compilation of the layers of ours, which takes a minute.
        batch_sizes: batch sizes of the pipeline, separated by commas.
        dtypes: data types of the pipeline, separated by commas.
        feeds: feeds of the pipeline (files, arrays, loader), separated by commas; default: all that work here.
        workers: number of loader processes of ours and of the feed `loader`; default: at most 16.
        trial_seconds: audio that each variant of the pipeline is tried on, in seconds.
        seconds: approximate duration of a pass, in seconds.
        repetitions: number of passes of each side.
        json: file to write all figures to.
    """

    source: str
    model: str = "base"
    device: str | None = None
    precision: Precision = "auto"
    device_seconds: PositiveFloat | None = None
    compile: bool = False
    batch_sizes: str = "1,8,32,64"
    dtypes: str = ",".join(DTYPES)
    feeds: str | None = None
    workers: NonNegativeInt | None = None
    trial_seconds: NonNegativeFloat = 3600.0
    seconds: NonNegativeFloat = 10.0
    repetitions: PositiveInt = 5
    json: Path | None = None


def parser() -> Parser:
    """Return the parser of this command."""
    return parser_of(TranscribeOptions, "bench transcribe", positional=["source"])


def main(args: Sequence[str]) -> int:
    """Measure, print the tables, and write the JSON file; return the exit status."""
    options = parse(TranscribeOptions, "bench transcribe", args, positional=["source"])
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    result = measure(load_inputs([options.source]), options)
    transcribe_report.show(Console(), result)
    if options.json:
        values = {key: value for key, value in vars(options).items() if isinstance(value, str | float | int)}
        transcribe_report.write(options.json, result, {"benchmark": "transcribe"} | values)
    return 0


def measure(manifest: Manifest, options: TranscribeOptions) -> Result:
    """Try every variant of the pipeline, then measure the best one against ours.

    Raises:
        InputError: an option or a recording is invalid, or all variants of the pipeline run out of memory.
    """
    candidates = _variants(manifest, options)
    trial = excerpt(manifest, options.trial_seconds)
    with tempfile.TemporaryDirectory() as temporary:
        folder = _model_folder(options.model, Path(temporary, "model"))
        speed = Speed(compile=True) if options.compile else None
        ours = Transcriber.from_pretrained(str(folder), options.device, options.precision, speed)
        num_workers = default_workers(ours.device) if options.workers is None else options.workers
        pipelines = Pipelines(folder, ours.device, num_workers)
        compared = excerpt(manifest, min(COMPARED_S, options.trial_seconds))
        trials = _trials(pipelines, candidates, trial, compared)
        best = _best(trials)
        way = partial(ours.transcribe, device_seconds=options.device_seconds, num_workers=num_workers)
        passes = _duel({OURS: way, str(best): partial(pipelines.transcribe, variant=best)}, manifest, options)
        # The stages get as much audio as a pass of ours, so that starting processes has the same share of the time.
        timed = excerpt(manifest, passes[0].audio_s)
        return Result(
            device=ours.device,
            precision=ours.precision,
            feeds=tuple(dict.fromkeys(variant.feed for variant in candidates)),
            trials=trials,
            best=best,
            passes=passes,
            stages=stages(ours, timed, options.device_seconds, num_workers),
            agreements=_agreements(ours, pipelines, best, compared, options.device_seconds),
        )


def excerpt(manifest: Manifest, audio_s: float) -> Manifest:
    """Repeat the utterances in a fixed random order until they last `audio_s`; return at least one."""
    order = np.random.default_rng(SEED).permutation(len(manifest))
    rounds = int(audio_s / manifest.durations_s_N.sum()) + 1
    positions = np.tile(order, rounds)
    ends_s = np.cumsum(manifest.durations_s_N[positions])
    positions = positions[: int(np.searchsorted(ends_s, audio_s)) + 1]

    def rows(column: Any) -> Any:
        return column[positions] if isinstance(column, np.ndarray) else [column[i] for i in positions]

    return Manifest(*(rows(getattr(manifest, field.name)) for field in fields(manifest)))


def _trials(
    pipelines: Pipelines, candidates: list[Variant], trial: Manifest, warm_up: Manifest
) -> dict[Variant, float | None]:
    # The first pass of each data type also loads the model and initialises the device.
    for dtype in dict.fromkeys(variant.dtype for variant in candidates):
        dict(pipelines.transcribe(warm_up, Variant("arrays", 8, dtype)))
    trials: dict[Variant, float | None] = {}
    for variant in candidates:
        try:
            trials[variant] = _pass(str(variant), partial(pipelines.transcribe, variant=variant), trial).audio_s_per_s
        except torch.OutOfMemoryError:
            trials[variant] = None
    return trials


def _best(trials: dict[Variant, float | None]) -> Variant:
    best = max(trials, key=lambda variant: trials[variant] or 0.0)
    if trials[best] is None:
        raise InputError("The pipeline runs out of memory with each of --batch_sizes; add smaller ones.")
    return best


def _duel(ways: dict[str, Way], manifest: Manifest, options: TranscribeOptions) -> list[Pass]:
    audio_s = dict.fromkeys(ways, options.trial_seconds)
    for _ in range(2):  # warms up, and measures the audio of a pass; twice, because the first pass is slower
        for side, way in ways.items():
            warm_up = _pass(side, way, excerpt(manifest, audio_s[side]))
            audio_s[side] = warm_up.audio_s_per_s * options.seconds
    return [
        _pass(side, way, excerpt(manifest, audio_s[side]))
        for _ in range(options.repetitions)
        for side, way in ways.items()
    ]


def _pass(side: str, way: Way, manifest: Manifest) -> Pass:
    start_s = time.perf_counter()
    texts = dict(way(manifest))
    elapsed_s = time.perf_counter() - start_s
    assert len(texts) == len(manifest)
    return Pass(side, float(manifest.durations_s_N.sum()), elapsed_s)


def _agreements(
    ours: Transcriber, pipelines: Pipelines, best: Variant, manifest: Manifest, device_seconds: float | None
) -> list[Agreement]:
    alone = Variant("arrays", 1, "float32")
    reference = list(in_order(pipelines.transcribe(manifest, alone)))
    single = Transcriber.from_pretrained(str(pipelines.folder), str(ours.device), "32-true")
    together = Variant(best.feed, best.batch_size, "float32", best.is_sorted)
    results_of = {
        f"{OURS}: each alone, float32": single.transcribe(manifest, ALONE_S),
        f"{OURS}: in batches, float32": single.transcribe(manifest, device_seconds),
        f"{OURS}: as measured, {ours.precision}": ours.transcribe(manifest, device_seconds),
        str(together): pipelines.transcribe(manifest, together),
        str(best): pipelines.transcribe(manifest, best),
    }
    return agreements(reference, results_of, ours.vocabulary)


def _model_folder(model: str, folder: Path) -> Path:
    """Return the folder from which both sides load: the user's, or a new one with random weights."""
    if model not in CONFIGS:
        return Path(model)
    torch.manual_seed(SEED)
    network = wav2vec2.from_scratch(CONFIGS[model], Vocabulary())
    wav2vec2.save_pretrained(folder, network, Vocabulary(), normalise=True)
    return folder


def _variants(manifest: Manifest, options: TranscribeOptions) -> list[Variant]:
    usable = usable_feeds(manifest)
    feeds = _chosen("feeds", options.feeds, usable) if options.feeds else usable
    batch_sizes = [int(number) if number.isdecimal() else 0 for number in options.batch_sizes.split(",")]
    if not all(batch_sizes):
        raise InputError(f"--batch_sizes is {options.batch_sizes!r}: give numbers such as 1,8,32.")
    return variants(feeds, batch_sizes, list(_chosen("dtypes", options.dtypes, DTYPES)))


def _chosen(option: str, text: str, known: tuple[str, ...]) -> tuple[str, ...]:
    chosen = tuple(text.split(","))
    for name in chosen:
        if name not in known:
            raise InputError(f"--{option}: {name!r} is not supported here; choose from {', '.join(known)}.")
    return chosen
