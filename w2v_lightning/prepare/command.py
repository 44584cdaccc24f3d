"""The command `prepare`: make a manifest, and optionally tar shards, from corpora in any of several formats."""

import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import closing, nullcontext
from pathlib import Path

from w2v_lightning.command_line import Parser, parse, parser_of
from w2v_lightning.errors import InputError
from w2v_lightning.prepare import output, record
from w2v_lightning.prepare.options import DEFAULT_SHARD_BYTES, PrepareOptions, Recipe
from w2v_lightning.prepare.parts import Parts
from w2v_lightning.prepare.pipeline import Prepared, outcomes
from w2v_lightning.prepare.progress import Progress
from w2v_lightning.prepare.sources import Source, recognise, with_splits
from w2v_lightning.prepare.tables import count_rows
from w2v_lightning.prepare.upload import Upload
from w2v_lightning.prepare.utterance import Rejected


def parser() -> Parser:
    """Return the parser of the command."""
    return parser_of(PrepareOptions, "prepare", positional=["sources"])


def main(args: Sequence[str]) -> int:
    """Run the command and print a summary of the output; return 1 if more is left out than --max_rejected allows.

    Raises:
        InputError: an option is wrong, a source is not supported or damaged, or the disk or the store fails.
    """
    options = parse(PrepareOptions, "prepare", args, positional=["sources"])
    try:
        sources = with_splits([recognise(path, options.columns) for path in options.sources])
        is_packed = any(source.is_packed for source in sources)
        if is_packed and not options.shard_size and not options.to:
            megabytes = f"{DEFAULT_SHARD_BYTES / 1e6:g} MB"
            print(f"Packed audio (archives, datasets) is written to shards of {megabytes} (--shard_size).")
        prepare(sources, options.out, options.recipe(is_packed=is_packed), options.workers)
    except OSError as error:
        raise InputError(f"{error}. Fix this and run the same command again; it resumes where it stopped.") from error
    return _status(options)


def _status(options: PrepareOptions) -> int:
    if warning := output.warning(options.out, options.max_rejected_percentage):
        print(warning)
    return 1 if warning else 0


def prepare(sources: Sequence[Source], out: Path, recipe: Recipe, workers: int) -> None:
    """Make manifest.jsonl, stats.json and the rest in the folder `out`, unless they are complete already.

    An interrupted run resumes where it stopped: `Parts` knows which utterances are done, and the order never changes.

    Raises:
        InputError: `out` holds something else, no utterance is usable, or the upload fails.
    """
    out = Path(os.path.abspath(out))
    _refuse_out_within(sources, out)
    with record.locked(out):
        request = record.request(recipe, sources)
        if record.is_finished(out, request):
            print(f"{out} is complete; nothing to do.")
        else:
            with closing(Upload(recipe.to)) if recipe.to else nullcontext() as upload:
                _make(sources, out, recipe, workers, request, upload)
            print(output.summary(out))
        output.remove_parts(out)


def _make(
    sources: Sequence[Source], out: Path, recipe: Recipe, workers: int, request: record.Request, upload: Upload | None
) -> None:
    if upload:
        record.refuse_other_remote(upload.read("stats.json"), request, upload.url)
    record.begin(out, request)
    on_shard = upload.begin if upload else lambda shard: None
    parts = Parts(out, recipe.shard_size, on_shard, has_details=recipe.validation is not None)
    with _progress(sources, request) as progress:
        reasons = _fill(parts, outcomes(sources, out, recipe, workers, parts.done, progress), out)
    files = output.assemble(out, request, reasons)
    if upload:
        upload.finish(files)
    output.publish(out, files)


def _fill(parts: Parts, prepared: Iterable[Prepared | Rejected], out: Path) -> Counter[str]:
    """Write all utterances, and return how many were rejected for each reason."""
    reasons: Counter[str] = Counter()
    # File names may contain bytes that are not UTF-8. They are written as backslash escapes, which are valid JSON.
    with (out / ".parts" / "rejected.jsonl").open("w", encoding="utf-8", errors="backslashreplace") as rejected:
        for outcome in prepared:
            if isinstance(outcome, Prepared):
                parts.add(outcome.utterance, outcome.audio, outcome.audio_filepath)
            else:
                reasons[outcome.reason] += 1
                row = {key: value for key, value in vars(outcome).items() if value or key != "detail"}
                rejected.write(json.dumps(row, ensure_ascii=False) + "\n")
    parts.finish()
    return reasons


def _progress(sources: Sequence[Source], request: record.Request) -> Progress:
    tables = [source for source in sources if source.is_table]
    return Progress(
        total_bytes=None if tables else sum(source["bytes"] for source in request["sources"]),
        total_utterances=sum(count_rows(source.path) for source in tables) if len(tables) == len(sources) else None,
    )


def _refuse_out_within(sources: Sequence[Source], out: Path) -> None:
    for source in sources:
        if source.path.is_dir() and out.resolve().is_relative_to(source.path):
            raise InputError(
                f"--out {out} is inside the source {source.path}, so the output would become part of it."
                " Choose a folder outside."
            )
