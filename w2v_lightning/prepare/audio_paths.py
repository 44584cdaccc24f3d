"""Paths of audio in tables, found also where they differ from the file's name by habits of other systems.

Those are: backslashes, a missing or another extension, another Unicode form (NFC or NFD), other letter case. Where
several files fit, nothing is repaired.
"""

import unicodedata
from collections import defaultdict
from functools import lru_cache
from pathlib import Path, PurePath

from w2v_lightning.prepare.utterance import AUDIO_SUFFIXES

MAX_FOLDERS = 64  # whose names are kept


class AudioPaths:
    """Finder of the audio files that one table names. Each folder is listed at most once.

    Args:
        table: path of the table. Its paths may be relative to its folder, to clips/ beside it as in Common Voice, or to
            the working directory as in lhotse.
    """

    def __init__(self, table: Path) -> None:
        self._table = table
        self._is_said: set[str] = set()
        self._names_in = lru_cache(MAX_FOLDERS)(_names_by_key)

    def find(self, written: str) -> str:
        """Return the path of the audio file; if there is none, the most likely path."""
        if exact := self._existing(written):
            return exact
        slashes = written.replace("\\", "/")
        if slashes != written and (path := self._existing(slashes)):
            return self._repaired("backslashes are read as slashes", written, path)
        for candidate in self._candidates(slashes):
            if path := self._alike(candidate):
                return self._repaired("files whose names differ a little are taken", written, path)
        beside, in_clips, _ = self._candidates(slashes)
        return str(in_clips if in_clips.parent.is_dir() else beside)

    def _candidates(self, written: str) -> list[Path]:
        folder = self._table.parent
        return [folder / written, folder / "clips" / written, Path(written)]

    def _existing(self, written: str) -> str | None:
        return next((str(path) for path in self._candidates(written) if path.exists()), None)

    def _alike(self, path: Path) -> str | None:
        """Return the only file beside `path` with the same name but for extension, Unicode form and letter case."""
        names = self._names_in(path.parent)
        for key in (_key(path.name), _key(_stem(path.name))):
            matching = names.get(key, ())
            if len(matching) == 1:
                return str(path.parent / matching[0])
        return None

    def _repaired(self, how: str, written: str, path: str) -> str:
        if how not in self._is_said:
            self._is_said.add(how)
            print(f"{self._table}: {how}, such as {path} for {written!r}.", flush=True)
        return path


def _names_by_key(folder: Path) -> dict[str, list[str]]:
    """Return the audio files of a folder by the key of their whole name, and of it without extension."""
    names: dict[str, list[str]] = defaultdict(list)
    try:
        entries = sorted(entry.name for entry in folder.iterdir())
    except OSError:
        return {}
    for name in entries:
        if name.lower().endswith(AUDIO_SUFFIXES):
            names[_key(name)].append(name)
            names[_key(_stem(name))].append(name)
    return names


def _stem(name: str) -> str:
    return PurePath(name).stem if name.lower().endswith(AUDIO_SUFFIXES) else name


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
