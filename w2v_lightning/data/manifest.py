"""Manifest files: one JSON line per utterance, with NeMo's key names, so that other toolkits can read them, too.

    {"id": "19-198-0000", "audio_filepath": "...", "duration": 14.535, "text": "...", "speaker": "19"}

`audio_filepath` is relative to the manifest, or absolute, or a URL. If the utterance is only a part of that file, two
pairs of keys locate it: `byte_offset` and `num_bytes` (a file within a tar shard), and `offset` and `duration` in
seconds (a segment of a long recording, as in NeMo). `channel` chooses one channel of that file, counted from 0. The
cuts of a lhotse manifest can be read, too.

The plan of an epoch (`data/plan.py`) is made from a manifest alone, without opening audio.
"""

import hashlib
import json
import math
import os
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from w2v_lightning.data.audio_ref import AudioRef
from w2v_lightning.data.remote import is_remote
from w2v_lightning.data.rows import read_rows
from w2v_lightning.errors import InputError, listed
from w2v_lightning.runtime.files import atomic_text_file

MANIFEST_SUFFIXES = (".jsonl", ".jsonl.gz", ".json")  # NeMo's own manifests are called .json
NO_CHANNEL = -1  # in channels_N
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
    channels_N: np.ndarray = _DEFAULT  # int64, 0-based; NO_CHANNEL for the mean of all channels

    def __post_init__(self) -> None:
        defaults = {
            "byte_offsets_N": np.zeros(len(self), dtype=np.int64),
            "num_bytes_N": np.zeros(len(self), dtype=np.int64),
            "starts_s_N": np.full(len(self), np.nan),
            "channels_N": np.full(len(self), NO_CHANNEL, dtype=np.int64),
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
        channel = None if self.channels_N[i] == NO_CHANNEL else int(self.channels_N[i])
        return AudioRef(self.audio_paths[i], *place, start_s, float(self.durations_s_N[i]), channel)

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
        if self.channels_N[i] != NO_CHANNEL:
            row["channel"] = int(self.channels_N[i])
        return json.dumps(row, ensure_ascii=False)

    @classmethod
    def load(cls, path: str | Path, escape: bool = False) -> "Manifest":
        """Read a manifest, also gzipped (.gz) or from a URL; relative audio paths are joined to its folder.

        With `escape`, characters that no file can hold become visible escapes; else they are refused.

        Raises:
            InputError: the file is missing or not UTF-8 text; a line is not valid JSON, lacks a key, or has a value of
                the wrong type; the message names file and line.
        """
        folder = str(path).rpartition("/")[0] or "."
        ids, audio_paths, texts, speakers = [], [], [], []
        durations_s, starts_s = array("d"), array("d")
        byte_offsets, num_bytes, channels = array("q"), array("q"), array("q")
        for _, row in read_rows(path, escape):
            get = row.get
            ids.append(row["id"])
            audio_paths.append(_resolve(row["audio_filepath"], folder))
            durations_s.append(row["duration"])
            texts.append(row["text"])
            speakers.append(row["speaker"])
            byte_offsets.append(get("byte_offset", 0))
            num_bytes.append(get("num_bytes", 0))
            starts_s.append(get("offset", math.nan))
            channels.append(get("channel", NO_CHANNEL))
        if not ids:
            raise InputError(f"{path}: no utterances. Give a manifest that has some.")
        numbers = map(np.array, (byte_offsets, num_bytes, starts_s, channels))
        return cls(ids, audio_paths, np.array(durations_s), texts, speakers, *numbers)


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
