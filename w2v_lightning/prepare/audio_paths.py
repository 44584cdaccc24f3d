"""Paths of audio in tables, found also where they differ from the file's name by habits of other systems.

Those are: backslashes, leading folders of another machine, a missing or another extension, another Unicode form (NFC or
NFD), other letter case. Where several files fit, nothing is repaired.
"""

import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path, PurePath

from w2v_lightning.prepare.utterance import AUDIO_SUFFIXES

MAX_FOLDERS = 64  # whose names are kept
# Extensions that a path may have instead of the file's, in lower case.
SUFFIXES = (*AUDIO_SUFFIXES, ".sph", ".nist", ".au", ".w64", ".wv", ".ape", ".mp2", ".mp4", ".mka", ".mkv", ".3gp")

BACKSLASHES = "backslashes are read as slashes"
LEADING = "leading folders that do not exist are left out"
ALIKE = "names are matched without extension, letter case or Unicode form"


class AmbiguousPathError(Exception):
    """Several files that fit a path alike; names them."""


class AudioPaths:
    """Finder of the audio files that one table names. Each folder is listed at most once.

    Args:
        table: path of the table. Its paths may be relative to its folder, to clips/ beside it as in Common Voice, or to
            the working directory as in lhotse.
    """

    def __init__(self, table: Path) -> None:
        self._table = table
        self._roots = (table.parent, table.parent / "clips")
        self._prefix: str | None = None  # the leading folders that this table's paths have, and the disk has not
        self._repairs: Counter[str] = Counter()
        self._example: dict[str, str] = {}
        self._names_in = lru_cache(MAX_FOLDERS)(_names_by_key)

    def find(self, written: str) -> str:
        """Return the path of the audio file; if there is none, the most likely path.

        Raises:
            AmbiguousPathError: there is no such file, but several that are alike.
        """
        if exact := self._existing(written):
            return exact
        slashes = written.replace("\\", "/")
        repairs = [BACKSLASHES] if slashes != written else []
        if repairs and (path := self._existing(slashes)):
            return self._repaired(repairs, written, path)
        if path := self._without_prefix(slashes):
            return self._repaired([*repairs, LEADING], written, path)
        for root in (*self._roots, Path()):
            if path := self._alike(root, PurePath(slashes)):
                return self._repaired([*repairs, ALIKE], written, path)
        if path := self._without_prefix(slashes, is_alike=True):
            return self._repaired([*repairs, LEADING, ALIKE], written, path)
        beside, in_clips = (str(root / slashes) for root in self._roots)
        return in_clips if os.path.isdir(os.path.dirname(in_clips)) else beside

    def report(self) -> None:
        """Print how many paths were repaired, and how."""
        for repair, count in self._repairs.items():
            print(f"{self._table}: {repair}, for {count:,} paths, {self._example[repair]}.", flush=True)

    def _existing(self, written: str) -> str | None:
        paths = (str(root / written) for root in (*self._roots, Path()))
        return next((path for path in paths if os.path.exists(path)), None)

    def _without_prefix(self, written: str, *, is_alike: bool = False) -> str | None:
        """Return the file that is there without the leading folders.

        All rows of a table must have the same ones, so that two paths never become the same file.
        """
        for prefix, rest in self._prefixes(written):
            for root in self._roots:
                path = self._alike(root, PurePath(rest)) if is_alike else str(root / rest)
                if path and os.path.exists(path):
                    self._prefix = prefix
                    return path
        return None

    def _prefixes(self, written: str) -> Iterator[tuple[str, str]]:
        """Yield (leading folders, rest), with the fewest folders first."""
        if self._prefix is not None:
            if written.startswith(self._prefix):
                yield self._prefix, written[len(self._prefix) :]
            return
        if not os.path.isdir(self._table.parent / written.split("/")[0]) or written.startswith("/"):
            for i, character in enumerate(written[:-1]):
                if character == "/":
                    yield written[: i + 1], written[i + 1 :].lstrip("/")

    def _alike(self, root: Path, path: PurePath) -> str | None:
        """Return the only file below `root` with the same path but for extension, Unicode form and letter case.

        Raises:
            AmbiguousPathError: there are several.
        """
        folder = str(root)
        for part in path.parts[:-1]:
            exact = os.path.join(folder, part)
            if not os.path.isdir(exact):
                names = [name for name in self._names_in(folder).get(_key(part), ()) if _is_folder(folder, name)]
                if len(names) != 1:
                    return None
                exact = os.path.join(folder, names[0])
            folder = exact
        names_of_key = self._names_in(folder)
        for key in dict.fromkeys((_key(path.name), _key(_stem(path.name)))):
            names = [name for name in names_of_key.get(key, ()) if name.lower().endswith(AUDIO_SUFFIXES)]
            if len(names) == 1:
                return os.path.join(folder, names[0])
            if names:
                fitting = ", ".join(os.path.join(folder, name) for name in names)
                raise AmbiguousPathError(
                    f"{folder}{os.sep}{path.name}: there is no such file, and several fit: {fitting}"
                )
        return None

    def _repaired(self, repairs: list[str], written: str, path: str) -> str:
        for repair in repairs:
            self._repairs[repair] += 1
            self._example.setdefault(repair, f"such as {path} for {written!r}")
        return path


def _names_by_key(folder: str) -> dict[str, list[str]]:
    """Return the names in a folder by the key of the whole name, and of it without the extension of audio."""
    names: dict[str, list[str]] = defaultdict(list)
    try:
        entries = sorted(os.listdir(folder))
    except OSError:
        return {}
    for name in entries:
        for key in {_key(name), _key(_stem(name))}:
            names[key].append(name)
    return names


def _is_folder(folder: str, name: str) -> bool:
    return os.path.isdir(os.path.join(folder, name))


def _stem(name: str) -> str:
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in SUFFIXES else name


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
