"""`prepare SOURCE... --out DIR`: a corpus in any of several forms becomes a manifest, and shards if asked for."""

import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import closing, nullcontext
from pathlib import Path

from w2v_lightning.errors import InputError
from w2v_lightning.prepare import options as command_line
from w2v_lightning.prepare import output, record
from w2v_lightning.prepare.options import Options
from w2v_lightning.prepare.parts import Parts
from w2v_lightning.prepare.pipeline import Prepared, outcomes
from w2v_lightning.prepare.progress import Progress
from w2v_lightning.prepare.sources import Source, recognise
from w2v_lightning.prepare.tables import count_rows
from w2v_lightning.prepare.upload import Upload
from w2v_lightning.prepare.utterance import Rejected


def main(args: Sequence[str]) -> None:
    """Prepare what the command line asks for, and say in a few lines what came of it."""
    parsed = command_line.parse(args)
    try:
        sources = [recognise(path) for path in parsed.sources]
        is_packed = any(source.is_packed for source in sources)
        options = command_line.checked(parsed, is_packed=is_packed)
        if is_packed and not parsed.shard_size and not parsed.to:
            print(f"Audio that is not in files of its own goes into shards of {options.shard_size / 1e6:g} MB.")
        prepare(sources, parsed.out, options, parsed.workers)
    except OSError as error:
        raise InputError(f"{error}. After a remedy, the same command goes on where this one ended.") from error


def prepare(sources: Sequence[Source], out: Path, options: Options, workers: int) -> None:
    """Make manifest.jsonl, stats.json and the rest in the folder `out`; do nothing where all that is done.

    An interrupted run goes on where it was: `Parts` knows what is done, and everything comes in the same order again.

    Raises:
        InputError: `out` holds something else, nothing in the sources is usable, or the upload fails.
    """
    out = Path(os.path.abspath(out))
    _refuse_out_within(sources, out)
    with record.locked(out):
        asked = record.asked(options, sources)
        if record.is_finished(out, asked):
            print(f"{out} is complete; nothing to do.")
        else:
            with closing(Upload(options.to)) if options.to else nullcontext() as upload:
                _make(sources, out, options, workers, asked, upload)
            print(output.summary(out))
        output.remove_parts(out)


def _make(
    sources: Sequence[Source], out: Path, options: Options, workers: int, asked: record.Asked, upload: Upload | None
) -> None:
    if upload:
        record.refuse_other_remote(upload.read("stats.json"), asked, options.to)
    record.begin(out, asked)
    parts = Parts(out, options.shard_size, upload.begin if upload else lambda shard: None)
    with _progress(sources, asked) as progress:
        reasons = _fill(parts, outcomes(sources, out, options, workers, parts.done, progress), out)
    files = output.assemble(out, asked, reasons)
    if upload:
        upload.finish(files)
    output.publish(out, files)


def _fill(parts: Parts, found: Iterable[Prepared | Rejected], out: Path) -> Counter[str]:
    """Write what was found; returns how many utterances were left out, by reason."""
    reasons: Counter[str] = Counter()
    # What a file name may hold and UTF-8 may not is written as an escape, which JSON has too.
    with (out / ".parts" / "rejected.jsonl").open("w", encoding="utf-8", errors="backslashreplace") as rejected:
        for outcome in found:
            if isinstance(outcome, Prepared):
                parts.add(outcome.utterance, outcome.audio, outcome.audio_filepath)
            else:
                reasons[outcome.reason] += 1
                row = {key: value for key, value in vars(outcome).items() if value or key != "detail"}
                rejected.write(json.dumps(row, ensure_ascii=False) + "\n")
    parts.finish()
    return reasons


def _progress(sources: Sequence[Source], asked: record.Asked) -> Progress:
    tables = [source for source in sources if source.is_table]
    return Progress(
        total_bytes=None if tables else sum(source["bytes"] for source in asked["sources"]),
        total_utterances=sum(count_rows(source.path) for source in tables) if len(tables) == len(sources) else None,
    )


def _refuse_out_within(sources: Sequence[Source], out: Path) -> None:
    for source in sources:
        if source.path.is_dir() and out.resolve().is_relative_to(source.path):
            raise InputError(f"--out {out} lies within the source {source.path}, which would grow by it.")
