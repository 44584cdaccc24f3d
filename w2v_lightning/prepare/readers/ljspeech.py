"""LJSpeech: metadata.csv without a header, with lines ID|text|normalised text, beside wavs/.

Format: https://keithito.com/LJ-Speech-Dataset/; M-AILABS and many corpora for speech synthesis have it, too.
"""

from collections.abc import Collection, Iterator
from itertools import islice
from pathlib import Path

from w2v_lightning.data.audio_ref import AudioRef
from w2v_lightning.errors import InputError
from w2v_lightning.prepare.columns import ColumnNames
from w2v_lightning.prepare.readers.layout import read_lines, with_audio_suffix
from w2v_lightning.prepare.utterance import Item, Utterance

TABLE = "metadata.csv"
NUM_CHECKED = 100  # first lines; not all of their files need to exist
FOLDERS = ("wavs", "wav", "audio", "clips", "")  # of the audio, beside the table


def recognises(folder: Path, names: Collection[str]) -> bool:
    """Return whether a folder holds such a table."""
    return TABLE in names and recognises_table(folder / TABLE)


def recognises_table(path: Path) -> bool:
    """Return whether a table has two or three columns with | between them, and the first names audio files."""
    try:
        rows = _first_rows(path)
    except InputError:
        return False
    has_header = bool(rows) and ColumnNames().fit(rows[0])
    is_regular = all(len(row) in (2, 3) for row in rows)
    return is_regular and not has_header and any(_find(row[0], path.parent).is_file() for row in rows)


def read(folder: Path, split: str, columns: ColumnNames) -> Iterator[Item]:
    """Yield the utterances of a folder."""
    return read_table(folder / TABLE, split)


def read_table(path: Path, split: str = "") -> Iterator[Item]:
    """Yield the utterances of a table; the text is the last column that is not empty.

    Raises:
        InputError: a line has another number of columns, or the third one is not a text.
    """
    _refuse_third_column(path)
    for number, line in read_lines(path):
        name, *texts = (cell.strip() for cell in line.split("|"))
        if len(texts) not in (1, 2) or not name:
            raise InputError(f"{path}:{number}: must be ID|text or ID|text|normalised text, found {line!r}.")
        text = next(filter(None, reversed(texts)), "")
        audio = _find(name, path.parent)
        utterance_id = Path(name).stem if name.endswith(audio.suffix) else name
        yield Utterance(utterance_id, text, AudioRef(str(audio)), str(path), split=split)


def _first_rows(path: Path) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")] for _, line in islice(read_lines(path), NUM_CHECKED)]


def _refuse_third_column(path: Path) -> None:
    """Make sure that the third column is not the speaker, which would become the transcript."""
    rows = [row for row in _first_rows(path) if len(row) == 3 and row[2]]
    second, third = (sum(len(row[i].split()) for row in rows) for i in (1, 2))
    if 2 * third < second:
        raise InputError(
            f"{path}: its third column is much shorter than the second, {rows[0][2]!r} for {rows[0][1]!r}, and cannot"
            " be the normalised text. Add a header such as path|text|speaker."
        )


def _find(name: str, folder: Path) -> Path:
    """Return the audio file, whose name may lack its folder and suffix."""
    candidates = [with_audio_suffix(folder / below / name) for below in FOLDERS]
    return next((path for path in candidates if path.is_file()), candidates[0].with_name(candidates[0].name + ".wav"))
