"""Layout of the folders of a corpus, and what several readers share: lines, splits, and where audio may be."""

import zlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from w2v_lightning.errors import InputError
from w2v_lightning.prepare.columns import ColumnNames
from w2v_lightning.prepare.folder import walk
from w2v_lightning.prepare.splits import innermost
from w2v_lightning.prepare.tables import open_text
from w2v_lightning.prepare.utterance import AUDIO_SUFFIXES, Item


@dataclass(frozen=True)
class Layout:
    """Layout of one folder of a corpus.

    Args:
        kind: name for the user.
        recognises: function of a folder and the names of its files.
        read: function of a folder, the split that its path names ("" for none), and the user's column names.
    """

    kind: str
    recognises: Callable[[Path, Collection[str]], bool]
    read: Callable[[Path, str, ColumnNames], Iterator[Item]]

    def read_below(self, root: Path, names: ColumnNames) -> Iterator[Item]:
        """Yield the utterances of all folders of this layout at or below `root`."""
        for folder, files in walk(root):
            if self.recognises(folder, files):
                yield from self.read(folder, split_of(folder, root), names)


def split_of(folder: Path, root: Path) -> str:
    """Return the innermost name of a split, such as train-clean-100, in the path from `root` on; "" for none."""
    return innermost(folder.relative_to(root.parent).parts)


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line number, line without its end) for each line that is not blank.

    Raises:
        InputError: the file is missing, damaged, or not UTF-8 text.
    """
    try:
        with open_text(path) as file:
            yield from ((number, line.rstrip("\r\n")) for number, line in enumerate(file, 1) if line.strip())
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error}). Convert the file to UTF-8.") from None
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read: {error}.") from None


def with_audio_suffix(path: Path) -> Path:
    """Return the audio file `path`, whose suffix may be missing; `path` itself if there is none."""
    candidates = [path, *(path.with_name(path.name + suffix) for suffix in AUDIO_SUFFIXES)]
    return next((candidate for candidate in candidates if candidate.is_file()), path)
