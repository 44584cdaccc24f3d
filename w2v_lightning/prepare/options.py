"""The command line of `prepare`."""

import argparse
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from w2v_lightning.errors import InputError
from w2v_lightning.prepare.sources import UNDERSTOOD

DEFAULT_SHARD_BYTES = 512_000_000
UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@dataclass(frozen=True)
class Options:
    """What decides the output; two runs with the same options and sources give the same."""

    shard_size: int | None = None  # bytes; None: no shards
    to: str | None = None
    resample: int | None = None  # Hz
    min_duration: float | None = None  # seconds
    max_duration: float | None = None
    segment: bool = False


def parse(args: Sequence[str]) -> argparse.Namespace:
    """The command line; argparse ends the program where it is not one."""
    parser = argparse.ArgumentParser(
        prog="python -m w2v_lightning prepare",
        description="Make a manifest, and shards where asked for, of one or several corpora.",
        epilog=UNDERSTOOD,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("sources", nargs="+", type=Path, metavar="SOURCE", help="a corpus; see below for the kinds")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="where manifest.jsonl goes")
    parser.add_argument("--shard-size", type=_size, metavar="SIZE", help="write tar shards of about this size (512MB)")
    parser.add_argument("--to", metavar="URL", help="upload to s3://bucket/prefix as well; implies shards")
    parser.add_argument("--resample", type=_hertz, metavar="HZ", help="convert other rates and channels to HZ, mono")
    parser.add_argument("--min-duration", type=float, metavar="S", help="leave out what is shorter, in seconds")
    parser.add_argument("--max-duration", type=float, metavar="S", help="leave out what is longer, in seconds")
    parser.add_argument("--segment", action="store_true", help="cut segments of recordings into files of their own")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="threads (one per core)")
    return parser.parse_args(args)


def checked(parsed: argparse.Namespace, *, is_packed: bool) -> Options:
    """The options, with shards where something else asks for them: an upload, or audio that is not in files.

    Raises:
        InputError: they contradict each other, or the URL has a password in it.
    """
    low, high = parsed.min_duration, parsed.max_duration
    if low is not None and high is not None and low > high:
        raise InputError(f"--min-duration {low:g} is more than --max-duration {high:g}; nothing would be left.")
    if parsed.workers < 1:
        raise InputError(f"--workers must be 1 or more, found {parsed.workers}.")
    if parsed.to and re.match(r"[^/]+://[^/]*@", parsed.to):
        raise InputError("--to has a user or password in its URL; give these by AWS's environment or profile instead.")
    if parsed.to and "://" not in parsed.to:
        raise InputError(f"--to must be a URL such as s3://bucket/prefix, found {parsed.to!r}.")
    implied = DEFAULT_SHARD_BYTES if parsed.to or is_packed else None
    return Options(
        parsed.shard_size or implied, parsed.to and parsed.to.rstrip("/"), parsed.resample, low, high, parsed.segment
    )


def _size(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?I?B?)", text.strip().upper())
    unit = match and (match[2] if match[2] in UNITS else f"{match[2]}B")
    size = int(float(match[1]) * UNITS[unit]) if unit in UNITS else 0
    if size < 1:
        raise argparse.ArgumentTypeError(f"must be a size such as 512MB or 1GiB, found {text!r}")
    return size


def _hertz(text: str) -> int:
    if not text.isdecimal() or not 1_000 <= int(text) <= 655_350:  # FLAC's highest
        raise argparse.ArgumentTypeError(f"must be a sample rate in Hz such as 16000, found {text!r}")
    return int(text)
