"""`bench transcribe`: audio heard per second, beside transformers' own pipeline at its best.

Both sides have the same weights and the same files, and take turns in one process. First every variant of the pipeline
hears the same excerpt; the fastest one is then measured against ours. A pass counts from the first file opened to the
last text, loader processes started and ended, and hears as much as takes about --seconds. What counts is the audio, not
the padding.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import fields
from functools import partial
from pathlib import Path

import numpy as np
import torch
import transformers
from rich.console import Console

from w2v_lightning.bench import transcribe_report
from w2v_lightning.bench.pipeline import DTYPES, FEEDS, Pipelines, Variant, usable_feeds, variants
from w2v_lightning.bench.settings import CONFIGS
from w2v_lightning.bench.transcribe_report import OURS, Pass, Result
from w2v_lightning.bench.transcript_parity import Agreement, agreements, stages
from w2v_lightning.data.manifest import Manifest
from w2v_lightning.errors import InputError
from w2v_lightning.inference.inputs import recordings
from w2v_lightning.inference.transcriber import Recogniser, default_workers, in_order
from w2v_lightning.model import wav2vec2
from w2v_lightning.model.speed import Speed
from w2v_lightning.runtime.precision import DTYPES as PRECISIONS
from w2v_lightning.text.vocabulary import Vocabulary

Way = Callable[[Manifest], Iterable[tuple[int, str]]]  # (position, text) of each utterance

SEED = 0
ALONE_S = 1e-3  # audio per batch: too little for two utterances
COMPARED_S = 300.0  # of the audio whose texts are compared


def add_parser(benchmarks: argparse._SubParsersAction) -> None:
    parser = benchmarks.add_parser("transcribe", help="audio heard per second, beside transformers' pipeline")
    add = parser.add_argument
    add("source", metavar="MANIFEST|FOLDER", help="what to hear, again and again if it is little")
    add("--model", default="base", help="base or large with random weights, or a model folder (default %(default)s)")
    add("--device", help="such as cpu or cuda; by default the GPU if there is one")
    add("--precision", choices=("auto", *PRECISIONS), default="auto", help="of ours (default %(default)s)")
    add("--device-seconds", type=float, help="audio per batch of ours; by default as `transcribe` has it")
    add("--compile", action="store_true", help="compile the layers of ours, which takes a minute")
    add("--batch-sizes", default="1,8,32,64", help="of the pipeline (default %(default)s)")
    add("--dtypes", default=",".join(DTYPES), help="of the pipeline (default %(default)s)")
    add("--feeds", help=f"of the pipeline, any of {','.join(FEEDS)}; by default all that this machine has")
    add("--workers", type=int, help="loader processes of ours and of the feed `loader`; by default at most 16")
    add("--trial-seconds", type=float, default=3600.0, help="of audio, for each variant (default %(default)g)")
    add("--seconds", type=float, default=10.0, help="that a pass takes, about (default %(default)g)")
    add("--repetitions", type=int, default=5, help="passes of each side (default %(default)d)")
    add("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Measure, print the tables, write the JSON file."""
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    result = measure(recordings([options.source]), options)
    transcribe_report.show(Console(), result)
    if options.json:
        transcribe_report.write(options.json, result, options)


def measure(manifest: Manifest, options: argparse.Namespace) -> Result:
    """Try every variant of the pipeline, then measure the best one against ours.

    Raises:
        InputError: an option or a recording cannot be used, or the pipeline has memory for none of its variants.
    """
    tried = _variants(manifest, options)
    trial = excerpt(manifest, options.trial_seconds)
    with tempfile.TemporaryDirectory() as temporary:
        folder = _model_folder(options.model, Path(temporary, "model"))
        speed = Speed(compile=True) if options.compile else None
        ours = Recogniser.from_pretrained(str(folder), options.device, options.precision, speed)
        num_workers = default_workers(ours.device) if options.workers is None else options.workers
        pipelines = Pipelines(folder, ours.device, num_workers)
        compared = excerpt(manifest, min(COMPARED_S, options.trial_seconds))
        trials = _trials(pipelines, tried, trial, compared)
        best = _best(trials)
        way = partial(ours.transcribe, device_seconds=options.device_seconds, num_workers=num_workers)
        passes = _duel({OURS: way, str(best): partial(pipelines.transcribe, variant=best)}, manifest, options)
        heard = excerpt(manifest, passes[0].audio_s)  # as much as a pass of ours: starting processes weighs the same
        return Result(
            device=ours.device,
            precision=ours.precision,
            feeds=tuple(dict.fromkeys(variant.feed for variant in tried)),
            trials=trials,
            best=best,
            passes=passes,
            stages=stages(ours, heard, options.device_seconds, num_workers),
            agreements=_agreements(ours, pipelines, best, compared, options.device_seconds),
        )


def excerpt(manifest: Manifest, audio_s: float) -> Manifest:
    """Utterances in one random order, over and over, until they last `audio_s`; at least one."""
    order = np.random.default_rng(SEED).permutation(len(manifest))
    rounds = int(audio_s / manifest.durations_s_N.sum()) + 1
    positions = np.tile(order, rounds)
    ends_s = np.cumsum(manifest.durations_s_N[positions])
    positions = positions[: int(np.searchsorted(ends_s, audio_s)) + 1]
    columns = [getattr(manifest, field.name) for field in fields(manifest)]
    return Manifest(*(c[positions] if isinstance(c, np.ndarray) else [c[i] for i in positions] for c in columns))


def _trials(
    pipelines: Pipelines, tried: list[Variant], trial: Manifest, warm_up: Manifest
) -> dict[Variant, float | None]:
    for dtype in dict.fromkeys(variant.dtype for variant in tried):  # the first pass of each pays for much
        dict(pipelines.transcribe(warm_up, Variant("arrays", 8, dtype)))
    found: dict[Variant, float | None] = {}
    for variant in tried:
        try:
            found[variant] = _pass(str(variant), partial(pipelines.transcribe, variant=variant), trial).audio_s_per_s
        except torch.OutOfMemoryError:
            found[variant] = None
    return found


def _best(trials: dict[Variant, float | None]) -> Variant:
    best = max(trials, key=lambda variant: trials[variant] or 0.0)
    if trials[best] is None:
        raise InputError("The pipeline has memory for no --batch-sizes of those given; add smaller ones.")
    return best


def _duel(ways: dict[str, Way], manifest: Manifest, options: argparse.Namespace) -> list[Pass]:
    audio_s = dict.fromkeys(ways, options.trial_seconds)
    for _ in range(2):  # warms up, and finds how much a pass can hear: the first time, it is slower
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
    ours: Recogniser, pipelines: Pipelines, best: Variant, manifest: Manifest, device_seconds: float | None
) -> list[Agreement]:
    alone = Variant("arrays", 1, "float32")
    reference = list(in_order(pipelines.transcribe(manifest, alone)))
    single = Recogniser.from_pretrained(str(pipelines.folder), str(ours.device), "32-true")
    together = Variant(best.feed, best.batch_size, "float32", best.is_sorted)
    heard = {
        f"{OURS}: each alone, float32": single.transcribe(manifest, ALONE_S),
        f"{OURS}: in batches, float32": single.transcribe(manifest, device_seconds),
        f"{OURS}: as measured, {ours.precision}": ours.transcribe(manifest, device_seconds),
        str(together): pipelines.transcribe(manifest, together),
        str(best): pipelines.transcribe(manifest, best),
    }
    return agreements(reference, heard, ours.vocabulary)


def _model_folder(model: str, folder: Path) -> Path:
    """A folder from which both sides load: the user's, or a new one with random weights."""
    if model not in CONFIGS:
        return Path(model)
    torch.manual_seed(SEED)
    network = wav2vec2.from_scratch(CONFIGS[model], Vocabulary())
    wav2vec2.save_pretrained(folder, network, Vocabulary(), normalise=True)
    return folder


def _variants(manifest: Manifest, options: argparse.Namespace) -> list[Variant]:
    usable = usable_feeds(manifest)
    feeds = _chosen("--feeds", options.feeds, usable) if options.feeds else usable
    batch_sizes = [int(number) if number.isdecimal() else 0 for number in options.batch_sizes.split(",")]
    if not all(batch_sizes):
        raise InputError(f"--batch-sizes must be numbers such as 1,8,32, found {options.batch_sizes!r}.")
    return variants(feeds, batch_sizes, list(_chosen("--dtypes", options.dtypes, DTYPES)))


def _chosen(option: str, text: str, known: tuple[str, ...]) -> tuple[str, ...]:
    chosen = tuple(text.split(","))
    for name in chosen:
        if name not in known:
            raise InputError(f"{option}: {name!r} is not to be had here; choose from {', '.join(known)}.")
    return chosen
