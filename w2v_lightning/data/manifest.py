"""The manifest: one JSON line per utterance, with NeMo's key names, so that other toolkits read it too.

    {"id": "19-198-0000", "audio_filepath": "...", "duration": 14.535, "text": "...", "speaker": "19"}

`audio_filepath` is relative to the manifest, or absolute, or a URL. Two pairs of keys say where in that file the audio
lies, if it is not all of it: `byte_offset` and `num_bytes` (a file within a tar shard), and `offset` and `duration` in
seconds (a segment of a long recording, as NeMo has it). The cuts of a lhotse manifest are read too.

Everything that decides what an epoch trains on (`data/plan.py`) works on a manifest alone and never opens audio.
"""

import gzip
import hashlib
import io
import json
import math
import os
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from w2v_lightning.data.audio_ref import AudioRef
from w2v_lightning.data.lhotse import is_lhotse_cut, row_of_cut
from w2v_lightning.data.remote import RemoteFiles, is_remote
from w2v_lightning.errors import InputError, listed
from w2v_lightning.runtime.files import atomic_text_file

MANIFEST_SUFFIXES = (".jsonl", ".jsonl.gz", ".json")  # NeMo's own manifests are called .json


@dataclass(frozen=True)
class Manifest:
    """Utterances as columns. N is the number of utterances."""

    ids: list[str]
    audio_paths: list[str]
    durations_s_N: np.ndarray
    texts: list[str]
    speakers: list[str]
    byte_offsets_N: np.ndarray = None  # int64; 0 where the audio is a file of its own
    num_bytes_N: np.ndarray = None  # int64; 0 for all of the file
    starts_s_N: np.ndarray = None  # of a segment within its recording; NaN where it is not one

    def __post_init__(self) -> None:
        defaults = {
            "byte_offsets_N": np.zeros(len(self), dtype=np.int64),
            "num_bytes_N": np.zeros(len(self), dtype=np.int64),
            "starts_s_N": np.full(len(self), np.nan),
        }
        for name, value in defaults.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.ids)

    def audio(self, i: int) -> AudioRef:
        """Where the audio of the i-th utterance lies."""
        start_s = None if math.isnan(self.starts_s_N[i]) else float(self.starts_s_N[i])
        place = int(self.byte_offsets_N[i]), int(self.num_bytes_N[i])
        return AudioRef(self.audio_paths[i], *place, start_s, float(self.durations_s_N[i]))

    @cached_property
    def digests(self) -> dict[str, Any]:
        """What a change is noticed by: numbers, which say something, and digests of the rest; computed once."""
        return {
            "utterances": len(self),
            "hours": round(float(self.durations_s_N.sum()) / 3600, 3),
            "ids": _digest(i.encode() + b"\0" for i in self.ids),
            "durations": _digest([np.ascontiguousarray(self.durations_s_N)]),
            "transcripts": _digest(text.encode() + b"\0" for text in self.texts),
        }

    @classmethod
    def join(cls, manifests: Sequence["Manifest"]) -> "Manifest":
        """All utterances of several manifests, in order, whatever their ids."""
        columns = [[getattr(manifest, field.name) for manifest in manifests] for field in fields(cls)]
        return cls(*(_concatenate(parts) for parts in columns))

    @classmethod
    def concatenate(cls, manifests: Sequence["Manifest"]) -> "Manifest":
        """As `join`, for training.

        Raises:
            InputError: an id occurs twice; ids name what the random masks are drawn for.
        """
        whole = cls.join(manifests)
        if len(set(whole.ids)) != len(whole):
            twice = next(utterance_id for utterance_id, count in Counter(whole.ids).items() if count > 1)
            raise InputError(f"Utterance id {twice!r} occurs more than once; ids must be unique over the splits used.")
        return whole

    def select(self, keep_N: np.ndarray) -> "Manifest":
        """The utterances where the boolean `keep_N` is true, in the same order."""
        positions = np.flatnonzero(keep_N)
        columns = [getattr(self, field.name) for field in fields(self)]
        return Manifest(*(c[positions] if isinstance(c, np.ndarray) else [c[i] for i in positions] for c in columns))

    def save(self, path: Path) -> None:
        """Write the manifest whole or not at all (temporary file, then rename)."""
        with atomic_text_file(path) as file:
            for i in range(len(self)):
                file.write(self.line(i) + "\n")

    def line(self, i: int) -> str:
        """The i-th utterance as it stands in a manifest, without the line's end."""
        row: dict[str, Any] = {
            "id": self.ids[i],
            "audio_filepath": self.audio_paths[i],
            "duration": float(self.durations_s_N[i]),
            "text": self.texts[i],
            "speaker": self.speakers[i],
        }
        if self.num_bytes_N[i]:
            row |= {"byte_offset": int(self.byte_offsets_N[i]), "num_bytes": int(self.num_bytes_N[i])}
        if not math.isnan(self.starts_s_N[i]):
            row["offset"] = float(self.starts_s_N[i])
        return json.dumps(row, ensure_ascii=False)

    @classmethod
    def load(cls, path: str | Path) -> "Manifest":
        """Read a manifest, also gzipped (.gz) or from a URL; relative audio paths come back joined to its folder.

        Raises:
            InputError: the file is missing or no UTF-8 text; a line is not valid JSON, lacks a key, or holds a value of
                the wrong kind; names file and line.
        """
        rows = [row for _, row in read_rows(path)]
        folder = str(path).rpartition("/")[0] or "."
        return cls(
            ids=[row["id"] for row in rows],
            audio_paths=[_resolve(row["audio_filepath"], folder) for row in rows],
            durations_s_N=np.array([row["duration"] for row in rows], dtype=np.float64),
            texts=[row["text"] for row in rows],
            speakers=[row["speaker"] for row in rows],
            byte_offsets_N=np.array([row.get("byte_offset", 0) for row in rows], dtype=np.int64),
            num_bytes_N=np.array([row.get("num_bytes", 0) for row in rows], dtype=np.int64),
            starts_s_N=np.array([row.get("offset", math.nan) for row in rows], dtype=np.float64),
        )


def read_rows(path: str | Path) -> Iterator[tuple[int, dict]]:
    """(line number, checked row) of each utterance in a manifest, read as a stream; see `Manifest.load`.

    Every row has an id and a speaker, as strings.
    """
    try:
        with _open_text(str(path)) as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, _parse_line(line, f"{path}:{number}")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error}.") from None
    except FileNotFoundError:
        raise InputError(f"There is no manifest {path}.") from None
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None


def find_manifest(root: str, split: str) -> str | None:
    """The manifest of a split: ROOT/SPLIT.jsonl, ROOT/SPLIT.jsonl.gz, or `split` itself where it names a file so.

    Below a URL nothing is looked for: it is ROOT/SPLIT.jsonl.
    """
    path = _resolve(split, str(root))
    if split.endswith(MANIFEST_SUFFIXES):
        return path
    if "://" in path:
        return f"{path}{MANIFEST_SUFFIXES[0]}"
    return next((found for suffix in MANIFEST_SUFFIXES if (found := Path(path + suffix).expanduser()).exists()), None)


def check_files(manifest: Manifest, name: str) -> None:
    """Whether the local files that a manifest names are there, and long enough; nothing is opened.

    Raises:
        InputError: some are not; counts and lists them.
    """
    ends: dict[str, int] = {}
    for path, offset, size in zip(
        manifest.audio_paths, manifest.byte_offsets_N.tolist(), manifest.num_bytes_N.tolist(), strict=True
    ):
        if not is_remote(path):
            ends[path] = max(ends.get(path, 0), offset + size)
    with ThreadPoolExecutor(16) as pool:  # on a network mount each question takes its time
        sizes = list(pool.map(_size_or_none, ends))
    missing = [path for path, size in zip(ends, sizes, strict=True) if size is None]
    short = [path for (path, end), size in zip(ends.items(), sizes, strict=True) if size is not None and size < end]
    for paths, what in ((missing, "are not there"), (short, "are shorter than the manifest says")):
        if paths:
            raise InputError(f"{name}: {len(paths)} of its {len(ends)} audio files {what}: {listed(paths)}.")


def _size_or_none(path: str) -> int | None:
    try:
        return os.stat(path).st_size
    except OSError:
        return None


def cache_root() -> Path:
    """Where manifests and the demo corpus are kept: $W2V_LIGHTNING_CACHE, else the user's cache folder."""
    if own := os.environ.get("W2V_LIGHTNING_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "w2v_lightning"


def _open_text(path: str) -> TextIO:
    if is_remote(path):
        (data,) = RemoteFiles().fetch([AudioRef(path)])
        file = io.BytesIO(data)
    else:
        file = open(path.removeprefix("file://"), "rb")  # noqa: SIM115  its caller closes it
    return io.TextIOWrapper(gzip.open(file) if path.endswith(".gz") else file, encoding="utf-8-sig")


def _parse_line(line: str, where: str) -> dict:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not a JSON line ({error}).") from None
    if not isinstance(row, dict):
        raise InputError(f"{where}: must be a JSON object, found {type(row).__name__}.")
    if is_lhotse_cut(row):
        try:
            row = row_of_cut(row, where)
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{where}: not a lhotse cut that can be read ({error!r}).") from None
    missing = [key for key in ("audio_filepath", "duration", "text") if key not in row]
    if missing:
        raise InputError(f"{where}: key {missing[0]!r} is missing.")
    for key, (is_right, what) in _KINDS.items():
        if key in row and not is_right(row[key]):
            raise InputError(f"{where}: {key} must be {what}, found {row[key]!r}.")
    row["id"] = as_string(row.get("id")) or _id_from_name(row)
    row["speaker"] = as_string(row.get("speaker"))
    return row


def as_string(value: Any) -> str:
    """An id or a speaker, which may be a number, 0 too; null is none."""
    return "" if value is None else str(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


_KINDS = {
    "audio_filepath": (lambda v: isinstance(v, str) and v != "", "a path or URL"),
    "text": (lambda v: isinstance(v, str), "a string"),
    "duration": (lambda v: _is_number(v) and v > 0, "a positive number of seconds"),
    "offset": (lambda v: _is_number(v) and v >= 0, "a number of seconds"),
    "byte_offset": (lambda v: _is_number(v) and isinstance(v, int) and v >= 0, "a whole number of bytes"),
    "num_bytes": (lambda v: _is_number(v) and isinstance(v, int) and v > 0, "a whole number of bytes"),
}


def _id_from_name(row: dict) -> str:
    """NeMo's manifests have no ids: the file's name, and the segment's start (ms) where a recording has several."""
    stem = Path(row["audio_filepath"]).stem
    return f"{stem}-{round(row['offset'] * 1000):08}" if "offset" in row else stem


def _resolve(audio_path: str, folder: str) -> str:
    return audio_path if "://" in audio_path or audio_path.startswith("/") else f"{folder}/{audio_path}"


def _digest(pieces: Iterable[bytes | np.ndarray]) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()[:16]


def _concatenate(parts: list) -> Any:
    return np.concatenate(parts) if isinstance(parts[0], np.ndarray) else [value for part in parts for value in part]
