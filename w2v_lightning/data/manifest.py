"""The manifest: one JSON line per utterance, with NeMo's key names, so that other toolkits read it too.

    {"id": "19-198-0000", "audio_filepath": "...", "duration": 14.535, "text": "...", "speaker": "19"}

`audio_filepath` is relative to the manifest, or absolute, or a URL. Everything that decides what an epoch trains on
(`data/plan.py`) works on a manifest alone and never opens an audio file.
"""

import json
import math
import os
import secrets
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np

from w2v_lightning.errors import InputError


@dataclass(frozen=True)
class Manifest:
    """Utterances as columns. N is the number of utterances."""

    ids: list[str]
    audio_paths: list[str]
    durations_s_N: np.ndarray
    texts: list[str]
    speakers: list[str]

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def concatenate(cls, manifests: Sequence["Manifest"]) -> "Manifest":
        """All utterances of several manifests, in order.

        Raises:
            InputError: an id occurs twice; ids name what the random masks are drawn for.
        """
        ids = [utterance_id for manifest in manifests for utterance_id in manifest.ids]
        if len(set(ids)) != len(ids):
            twice = next(utterance_id for utterance_id, count in Counter(ids).items() if count > 1)
            raise InputError(f"Utterance id {twice!r} occurs more than once; ids must be unique over the splits used.")
        return cls(
            ids=ids,
            audio_paths=[path for manifest in manifests for path in manifest.audio_paths],
            durations_s_N=np.concatenate([manifest.durations_s_N for manifest in manifests]),
            texts=[text for manifest in manifests for text in manifest.texts],
            speakers=[speaker for manifest in manifests for speaker in manifest.speakers],
        )

    def select(self, keep_N: np.ndarray) -> "Manifest":
        """The utterances where the boolean `keep_N` is true, in the same order."""
        positions = np.flatnonzero(keep_N)
        columns = (self.ids, self.audio_paths, self.texts, self.speakers)
        ids, audio_paths, texts, speakers = ([column[i] for i in positions] for column in columns)
        return Manifest(ids, audio_paths, self.durations_s_N[positions], texts, speakers)

    def save(self, path: Path) -> None:
        """Write the manifest whole or not at all (temporary file, then rename)."""
        rows = zip(self.ids, self.audio_paths, self.durations_s_N.tolist(), self.texts, self.speakers, strict=True)
        keys = ("id", "audio_filepath", "duration", "text", "speaker")
        with atomic_text_file(path) as file:
            for row in rows:
                file.write(json.dumps(dict(zip(keys, row, strict=True)), ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, path: Path) -> "Manifest":
        """Read a manifest; audio paths come back joined to the manifest's folder where they are relative.

        Raises:
            InputError: a line is not valid JSON, lacks a key, has no positive duration, or no string where one belongs;
                names file and line.
        """
        with path.open(encoding="utf-8") as file:
            rows = [_parse_line(line, f"{path}:{number}") for number, line in enumerate(file, 1) if line.strip()]
        return cls(
            ids=[str(row.get("id") or Path(row["audio_filepath"]).stem) for row in rows],
            audio_paths=[_resolve(row["audio_filepath"], path.parent) for row in rows],
            durations_s_N=np.array([row["duration"] for row in rows], dtype=np.float64),
            texts=[row["text"] for row in rows],
            speakers=[str(row.get("speaker", "")) for row in rows],
        )


def cache_root() -> Path:
    """Where manifests and the demo corpus are kept: $W2V_LIGHTNING_CACHE, else the user's cache folder."""
    if own := os.environ.get("W2V_LIGHTNING_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "w2v_lightning"


@contextmanager
def atomic_text_file(path: Path) -> Iterator[TextIO]:
    """``with atomic_text_file(path) as file``: the file appears under its name complete, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        with temporary.open("x", encoding="utf-8") as file:  # the user's umask, not mkstemp's 0600: caches are shared
            yield file
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)  # it was never made where the folder cannot be written to
        raise


def _parse_line(line: str, where: str) -> dict:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not a JSON line ({error}).") from None
    missing = [key for key in ("audio_filepath", "duration", "text") if not isinstance(row, dict) or key not in row]
    if missing:
        raise InputError(f"{where}: key {missing[0]!r} is missing.")
    if not isinstance(row["duration"], int | float) or not 0 < row["duration"] < math.inf:
        raise InputError(f"{where}: duration must be a positive number of seconds, found {row['duration']!r}.")
    for key in ("audio_filepath", "text"):
        if not isinstance(row[key], str):
            raise InputError(f"{where}: {key} must be a string, found {row[key]!r}.")
    return row


def _resolve(audio_path: str, folder: Path) -> str:
    return audio_path if "://" in audio_path else str(folder / audio_path)
