"""Record of what a run was asked to make, kept with its output.

It tells a finished run from an interrupted one, and from a run with other options or sources.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypedDict

from filelock import FileLock, Timeout

from w2v_lightning.errors import InputError
from w2v_lightning.prepare.options import Recipe
from w2v_lightning.prepare.sources import Source
from w2v_lightning.runtime.schema import check_content, read_json

Request = dict[str, Any]
FORMAT_VERSION = 1


ADDED_LATER = {"channel": "mix", "validation": None}  # options that an earlier version did not record, with what it did


class _Source(TypedDict):
    """Fingerprint of a source."""

    path: str


class _Recorded(TypedDict):
    """Keys of a request that messages are made of; the rest is only compared."""

    options: dict[str, Any]
    sources: list[_Source]


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
            remedy = "Choose another --out, or delete this folder."
            _refuse_other(read_json(path, remedy), request, out, remedy)
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
        remedy = "Choose another --to, or delete the files there."
        try:
            recorded = json.loads(stats)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{url}/stats.json cannot be read ({error}); {remedy}") from None
        _refuse_other(recorded, request, url, remedy)


def _refuse_other(recorded: Any, request: Request, where: str | Path, remedy: str) -> None:
    if not isinstance(recorded, dict) or not request.keys() <= recorded.keys():
        raise InputError(f"{where} holds a stats.json that was not written by prepare. {remedy}")
    check_content(recorded, _Recorded, f"{where}/stats.json", remedy)
    recorded = {key: recorded[key] for key in request}
    recorded["options"] = ADDED_LATER | recorded["options"]
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
