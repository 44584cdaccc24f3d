"""Record of what a run was asked to make, kept with its output.

It tells a finished run from an interrupted one, and from a run with other options or sources.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from w2v_lightning.errors import InputError
from w2v_lightning.prepare.options import Recipe
from w2v_lightning.prepare.sources import Source

Request = dict[str, Any]
FORMAT_VERSION = 1


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Wait until no other run works in `out`, and keep others out; the lock is released even if the process dies."""
    out.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"Another prepare is running in {out}; waiting until it ends.", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def request(recipe: Recipe, sources: Sequence[Source]) -> Request:
    """Return everything that determines the output."""
    return {
        "format_version": FORMAT_VERSION,
        "options": asdict(recipe),
        "sources": [source.fingerprint() for source in sources],
    }


def is_finished(out: Path, request: Request) -> bool:
    """Return whether `out` holds the complete output of the request.

    Raises:
        InputError: it holds something else, finished or not.
    """
    stats, started = out / "stats.json", out / ".parts" / "run.json"
    for path in (stats, started):
        if path.is_file():
            recorded = json.loads(path.read_text("utf-8"))
            _refuse_other(recorded, request, out, "Choose another --out, or delete this folder.")
            return path is stats
    if (out / "manifest.jsonl").exists():
        raise InputError(f"{out / 'manifest.jsonl'} was not written by prepare. Choose another --out.")
    return False


def begin(out: Path, request: Request) -> None:
    """Record the request, before anything is made."""
    folder = out / ".parts"
    folder.mkdir(exist_ok=True)
    temporary = folder / "run.tmp"
    temporary.write_text(json.dumps(request), encoding="utf-8")
    temporary.replace(folder / "run.json")


def refuse_other_remote(stats: bytes | None, request: Request, url: str) -> None:
    """Make sure that the store at `url` holds nothing, or the output of the same request.

    Args:
        stats: content of the stats.json there; None if it does not exist.
        request: what this run makes.
        url: the URL, for the message.

    Raises:
        InputError: `stats` belongs to another request.
    """
    if stats is not None:
        _refuse_other(json.loads(stats), request, url, "Choose another --to, or delete the files there.")


def _refuse_other(recorded: Any, request: Request, where: str | Path, remedy: str) -> None:
    if not isinstance(recorded, dict) or not request.keys() <= recorded.keys():
        raise InputError(f"{where} holds a stats.json that was not written by prepare. {remedy}")
    recorded = {key: recorded[key] for key in request}
    if recorded != request:
        differences = "; ".join(_differences(recorded, request))
        raise InputError(f"{where} holds the output of another run: {differences}. {remedy}")


def _differences(recorded: Request, request: Request) -> list[str]:
    """Describe which options and sources differ."""
    options = recorded["options"]
    differences = [
        f"--{name} was {options.get(name)}, is now {value}"
        for name, value in request["options"].items()
        if options.get(name) != value
    ]
    before, now = ({source["path"]: source for source in run["sources"]} for run in (recorded, request))
    differences += [f"source {path} has changed" for path in now if path in before and before[path] != now[path]]
    differences += [f"source {path} was removed" for path in before if path not in now]
    differences += [f"source {path} was added" for path in now if path not in before]
    return differences or ["the order of the sources, or the version of the format, differs"]
