"""Manifest files: one JSON line per utterance, with NeMo's key names, so that other toolkits can read them, too.

    {"id": "19-198-0000", "audio_filepath": "...", "duration": 14.535, "text": "...", "speaker": "19"}

`audio_filepath` is relative to the manifest, or absolute, or a URL. If the utterance is only a part of that file, two
pairs of keys locate it: `byte_offset` and `num_bytes` (a file within a tar shard), and `offset` and `duration` in
seconds (a segment of a long recording, as in NeMo). The cuts of a lhotse manifest can be read, too.

The plan of an epoch (`data/plan.py`) is made from a manifest alone, without opening audio.
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
from typing import Any, BinaryIO, TextIO

import numpy as np

from w2v_lightning.data.audio_ref import AudioRef
from w2v_lightning.data.lhotse import is_lhotse_cut, row_from_cut
from w2v_lightning.data.remote import RemoteFiles, is_remote
from w2v_lightning.errors import InputError, listed
from w2v_lightning.runtime.files import atomic_text_file

MANIFEST_SUFFIXES = (".jsonl", ".jsonl.gz", ".json")  # NeMo's own manifests are called .json
_DEFAULT: Any = None  # of columns that __post_init__ fills


@dataclass(frozen=True)
class Manifest:
    """Utterances as columns. N is the number of utterances."""

    ids: list[str]
    audio_paths: list[str]
    durations_s_N: np.ndarray
    texts: list[str]
    speakers: list[str]
    byte_offsets_N: np.ndarray = _DEFAULT  # int64; 0 if the audio is a file of its own
    num_bytes_N: np.ndarray = _DEFAULT  # int64; 0 for the whole file
    starts_s_N: np.ndarray = _DEFAULT  # start of a segment in its recording; NaN if it is not a segment

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
        """Location of the audio of the i-th utterance."""
        start_s = None if math.isnan(self.starts_s_N[i]) else float(self.starts_s_N[i])
        place = int(self.byte_offsets_N[i]), int(self.num_bytes_N[i])
        return AudioRef(self.audio_paths[i], *place, start_s, float(self.durations_s_N[i]))

    @cached_property
    def digests(self) -> dict[str, Any]:
        """Fingerprint of the data: readable numbers, and digests of the rest; computed once."""
        return {
            "utterances": len(self),
            "hours": round(float(self.durations_s_N.sum()) / 3600, 3),
            "ids": _digest(i.encode() + b"\0" for i in self.ids),
            "durations": _digest([self.durations_s_N.tobytes()]),
            "transcripts": _digest(text.encode() + b"\0" for text in self.texts),
        }

    @classmethod
    def join(cls, manifests: Sequence["Manifest"]) -> "Manifest":
        """Join the utterances of several manifests, in order; ids may repeat."""
        columns = [[getattr(manifest, field.name) for manifest in manifests] for field in fields(cls)]
        return cls(*(_concatenate(parts) for parts in columns))

    @classmethod
    def concatenate(cls, manifests: Sequence["Manifest"]) -> "Manifest":
        """Join manifests for training; ids must be unique, since random masks are seeded with them.

        Raises:
            InputError: an id occurs more than once.
        """
        whole = cls.join(manifests)
        if len(set(whole.ids)) != len(whole):
            duplicate = next(utterance_id for utterance_id, count in Counter(whole.ids).items() if count > 1)
            raise InputError(f"Utterance id {duplicate!r} occurs more than once; ids must be unique over all splits.")
        return whole

    def select(self, keep_N: np.ndarray) -> "Manifest":
        """Select the utterances whose boolean `keep_N` is true, in the same order."""
        positions = np.flatnonzero(keep_N)
        return Manifest(*(_take(getattr(self, field.name), positions) for field in fields(self)))

    def save(self, path: Path) -> None:
        """Write the manifest atomically (temporary file, then rename)."""
        with atomic_text_file(path) as file:
            for i in range(len(self)):
                file.write(self.line(i) + "\n")

    def line(self, i: int) -> str:
        """Return the i-th utterance as a line of a manifest, without the line ending."""
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
        """Read a manifest, also gzipped (.gz) or from a URL; relative audio paths are joined to its folder.

        Raises:
            InputError: the file is missing or not UTF-8 text; a line is not valid JSON, lacks a key, or has a value of
                the wrong type; the message names file and line.
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
    """Yield (line number, checked row) of each utterance in a manifest, as a stream; see `Manifest.load`.

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
        raise InputError(f"Manifest not found: {path}.") from None
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None


def find_manifest(root: str, split: str) -> str | Path | None:
    """Find the manifest of a split: ROOT/SPLIT.jsonl, ROOT/SPLIT.jsonl.gz, or `split` itself if it has such a name.

    Below a URL, nothing is looked up: the result is ROOT/SPLIT.jsonl.
    """
    path = _resolve(split, str(root))
    if split.endswith(MANIFEST_SUFFIXES):
        return path
    if "://" in path:
        return f"{path}{MANIFEST_SUFFIXES[0]}"
    candidates = (Path(path + suffix).expanduser() for suffix in MANIFEST_SUFFIXES)
    return next((candidate for candidate in candidates if candidate.exists()), None)


def check_files(manifest: Manifest, name: str | Path) -> None:
    """Check that the local files that a manifest names exist and are long enough, without opening them.

    Raises:
        InputError: some are missing or too short; the message counts and lists them.
    """
    ends: dict[str, int] = {}
    for path, offset, size in zip(
        manifest.audio_paths, manifest.byte_offsets_N.tolist(), manifest.num_bytes_N.tolist(), strict=True
    ):
        if not is_remote(path):
            ends[path] = max(ends.get(path, 0), offset + size)
    with ThreadPoolExecutor(16) as pool:  # on a network mount, each stat is slow
        sizes = list(pool.map(_size_or_none, ends))
    missing = [path for path, size in zip(ends, sizes, strict=True) if size is None]
    short = [path for (path, end), size in zip(ends.items(), sizes, strict=True) if size is not None and size < end]
    for paths, problem in ((missing, "are missing"), (short, "are shorter than the manifest says")):
        if paths:
            raise InputError(f"{name}: {len(paths)} of its {len(ends)} audio files {problem}: {listed(paths)}.")


def _size_or_none(path: str) -> int | None:
    try:
        return os.stat(path).st_size
    except OSError:
        return None


def cache_root() -> Path:
    """Folder of cached manifests and the demo corpus: $W2V_LIGHTNING_CACHE, or else in the user's cache folder."""
    if folder := os.environ.get("W2V_LIGHTNING_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "w2v_lightning"


def _open_text(path: str) -> TextIO:
    if is_remote(path):
        (data,) = RemoteFiles().fetch([AudioRef(path)])
        file: BinaryIO = io.BytesIO(data)
    else:
        file = open(path.removeprefix("file://"), "rb")  # noqa: SIM115  closed by the caller
    return io.TextIOWrapper(gzip.open(file) if path.endswith(".gz") else file, encoding="utf-8-sig")


def _parse_line(line: str, where: str) -> dict:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: invalid JSON ({error}).") from None
    if not isinstance(row, dict):
        raise InputError(f"{where}: must be a JSON object, found {type(row).__name__}.")
    if is_lhotse_cut(row):
        try:
            row = row_from_cut(row, where)
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{where}: invalid lhotse cut ({error!r}).") from None
    missing = [key for key in ("audio_filepath", "duration", "text") if key not in row]
    if missing:
        raise InputError(f"{where}: key {missing[0]!r} is missing.")
    for key, (is_valid, expected) in _KINDS.items():
        if key in row and not is_valid(row[key]):
            raise InputError(f"{where}: {key} must be {expected}, found {row[key]!r}.")
    row["id"] = as_string(row.get("id")) or _id_from_name(row)
    row["speaker"] = as_string(row.get("speaker"))
    return row


def as_string(value: Any) -> str:
    """Convert an id or speaker to a string: numbers (also 0) are kept, null becomes ''."""
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
    """Make an id, which NeMo's manifests lack: the name of the file, and for a segment its start in ms."""
    stem = Path(row["audio_filepath"]).stem
    return f"{stem}-{round(row['offset'] * 1000):08}" if "offset" in row else stem


def _resolve(audio_path: str, folder: str) -> str:
    return audio_path if "://" in audio_path or audio_path.startswith("/") else f"{folder}/{audio_path}"


def _digest(pieces: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()[:16]


def _take(column: Any, positions: np.ndarray) -> Any:
    return column[positions] if isinstance(column, np.ndarray) else [column[i] for i in positions]


def _concatenate(parts: list) -> Any:
    return np.concatenate(parts) if isinstance(parts[0], np.ndarray) else [value for part in parts for value in part]
