"""What a run was asked for, beside its output: it tells a finished run from an interrupted one and from another."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from w2v_lightning.errors import InputError
from w2v_lightning.prepare.options import Options
from w2v_lightning.prepare.sources import Source

Asked = dict[str, Any]
FORMAT_VERSION = 1


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """One run at a time works in `out`; the lock goes with its process, however that ends."""
    out.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"Another prepare is at work in {out}; waiting for it to end.", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def asked(options: Options, sources: Sequence[Source]) -> Asked:
    """All that decides the output."""
    return {
        "format_version": FORMAT_VERSION,
        "options": asdict(options),
        "sources": [source.fingerprint() for source in sources],
    }


def is_finished(out: Path, asked: Asked) -> bool:
    """Whether `out` holds the whole of what is asked for.

    Raises:
        InputError: it holds something else, finished or not.
    """
    stats, begun = out / "stats.json", out / ".parts" / "run.json"
    for path in (stats, begun):
        if path.is_file():
            _refuse_other(json.loads(path.read_text("utf-8")), asked, out, "Choose another --out, or delete this one.")
            return path is stats
    if (out / "manifest.jsonl").exists():
        raise InputError(f"{out / 'manifest.jsonl'} was not written by prepare; choose another --out.")
    return False


def begin(out: Path, asked: Asked) -> None:
    """Note what is asked for, before anything is made."""
    folder = out / ".parts"
    folder.mkdir(exist_ok=True)
    temporary = folder / "run.tmp"
    temporary.write_text(json.dumps(asked), encoding="utf-8")
    temporary.replace(folder / "run.json")


def refuse_other_remote(stats: bytes | None, asked: Asked, url: str) -> None:
    """Raises InputError where `stats`, found at `url`, are those of another corpus."""
    if stats is not None:
        _refuse_other(json.loads(stats), asked, url, "Choose another --to, or delete what is there.")


def _refuse_other(found: Any, asked: Asked, where: str | Path, remedy: str) -> None:
    if not isinstance(found, dict) or not asked.keys() <= found.keys():
        raise InputError(f"{where} holds a stats.json that was not written by prepare. {remedy}")
    found = {key: found[key] for key in asked}
    if found != asked:
        raise InputError(f"{where} holds the output of another run: {'; '.join(_differences(found, asked))}. {remedy}")


def _differences(found: dict[str, Any], asked: Asked) -> list[str]:
    """In words, what of options and sources is not the same."""
    options = found["options"]
    different = [
        f"--{name.replace('_', '-')} was {options.get(name)}, is now {value}"
        for name, value in asked["options"].items()
        if options.get(name) != value
    ]
    before, now = ({source["path"]: source for source in run["sources"]} for run in (found, asked))
    different += [f"source {path} has changed since" for path in now if path in before and before[path] != now[path]]
    different += [f"source {path} was in it" for path in before if path not in now]
    different += [f"source {path} was not in it" for path in now if path not in before]
    return different or ["the order of the sources, or the version of the format"]
