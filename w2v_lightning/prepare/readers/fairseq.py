"""fairseq's lists: NAME.tsv with the folder of the audio, then lines PATH TAB SAMPLES; and NAME.wrd or NAME.ltr.

Line i of .wrd (words) or .ltr (letters, with | after each word) is the transcript of line i + 1 of the .tsv. Format:
https://github.com/facebookresearch/fairseq/tree/main/examples/wav2vec
"""

from collections.abc import Collection, Iterator
from itertools import zip_longest
from pathlib import Path, PurePath

from w2v_lightning.data.audio_ref import AudioRef
from w2v_lightning.errors import InputError
from w2v_lightning.prepare.columns import ColumnNames
from w2v_lightning.prepare.readers.layout import split_of
from w2v_lightning.prepare.tables import open_text
from w2v_lightning.prepare.utterance import Item, Utterance

TRANSCRIPTS = (".wrd", ".ltr")


def recognises(folder: Path, names: Collection[str]) -> bool:
    """Return whether a folder holds such a list."""
    return any(recognises_list(folder / name) for name in names if name.endswith(".tsv"))


def recognises_list(path: Path) -> bool:
    """Return whether a .tsv file has transcripts of fairseq beside it."""
    return path.suffix == ".tsv" and transcripts_of(path).is_file()


def transcripts_of(path: Path) -> Path:
    """Return the path of a list's transcripts; that of words, if there are words and letters."""
    candidates = [path.with_suffix(suffix) for suffix in TRANSCRIPTS]
    return next((file for file in candidates if file.is_file()), candidates[0])


def read(folder: Path, split: str, columns: ColumnNames) -> Iterator[Item]:
    """Yield the utterances of all lists of a folder."""
    for path in sorted(folder.glob("*.tsv")):
        if recognises_list(path):
            yield from read_list(path)


def read_list(path: Path) -> Iterator[Item]:
    """Yield the utterances of a list; its name is that of the split.

    Raises:
        InputError: the folder in its first line does not exist, or there are more or fewer transcripts than files.
    """
    transcripts = transcripts_of(path)
    lines = _lines(path)
    root = _root(next(lines, ""), path)
    split = split_of(path.with_suffix(""), path.parent)
    for number, (line, text) in enumerate(zip_longest(lines, _lines(transcripts)), 1):
        if line is None or text is None:
            raise InputError(
                f"{path} lists {'fewer' if line is None else 'more'} files than {transcripts.name} has transcripts: one"
                f" of them ends after {number - 1}. They do not belong together; make both again."
            )
        name = line.partition("\t")[0]
        words = text if transcripts.suffix == ".wrd" else text.replace(" ", "").replace("|", " ")
        utterance_id = str(PurePath(name).with_suffix("")).lstrip("/")
        yield Utterance(utterance_id, " ".join(words.split()), AudioRef(str(root / name)), str(path), split=split)


def _lines(path: Path) -> Iterator[str]:
    """Yield all lines, blank ones, too: they are counted."""
    try:
        with open_text(path) as file:
            yield from (line.rstrip("\r\n") for line in file)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}.") from None


def _root(line: str, path: Path) -> Path:
    candidates = [path.parent / line.strip(), Path(line.strip()).absolute()]
    root = next((folder for folder in candidates if folder.is_dir()), None)
    if root is None or "\t" in line:
        raise InputError(f"{path}:1: must be the folder of the audio files; {line!r} is not one. Correct this line.")
    return root
