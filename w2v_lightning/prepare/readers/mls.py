"""Multilingual LibriSpeech: transcripts.txt with lines SPEAKER_BOOK_NUMBER TAB text, beside audio/SPEAKER/BOOK/.

Format: https://www.openslr.org/94/
"""

import re
from collections.abc import Collection, Iterator
from pathlib import Path

from w2v_lightning.data.audio_ref import AudioRef
from w2v_lightning.prepare.columns import ColumnNames
from w2v_lightning.prepare.readers.layout import read_lines, with_audio_suffix
from w2v_lightning.prepare.utterance import Item, Rejected, Utterance

ID = re.compile(r"(\w+?)_(\w+?)_\w+")


def recognises(folder: Path, names: Collection[str]) -> bool:
    """Return whether a folder is one split of the corpus."""
    return "transcripts.txt" in names and (folder / "audio").is_dir()


def read(folder: Path, split: str, columns: ColumnNames) -> Iterator[Item]:
    """Yield the utterances of one split."""
    for number, line in read_lines(folder / "transcripts.txt"):
        utterance_id, _, text = line.partition("\t")
        match = ID.fullmatch(utterance_id)
        if match is None:
            detail = f"transcripts.txt:{number}: must be SPEAKER_BOOK_NUMBER, a tab, and the text"
            yield Rejected(str(folder), utterance_id, "an invalid id", detail)
            continue
        speaker, book = match.groups()
        audio = with_audio_suffix(folder / "audio" / speaker / book / utterance_id)
        yield Utterance(utterance_id, text.strip(), AudioRef(str(audio)), str(folder), speaker, split)
