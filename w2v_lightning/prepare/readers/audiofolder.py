"""Hugging Face's audiofolder: metadata.csv or metadata.jsonl, with a column file_name, beside the audio or above it.

Format: https://huggingface.co/docs/datasets/audio_load#audiofolder
"""

import csv
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from w2v_lightning.data.audio_ref import AudioRef
from w2v_lightning.errors import InputError
from w2v_lightning.prepare.columns import ColumnNames
from w2v_lightning.prepare.readers.json_table import read_json_table
from w2v_lightning.prepare.readers.layout import read_lines, split_of
from w2v_lightning.prepare.tables import first_json_object, read_table
from w2v_lightning.prepare.utterance import Item, Rejected, Utterance

TABLES = {"metadata.csv": read_table, "metadata.jsonl": read_json_table}


def recognises(folder: Path, names: Collection[str]) -> bool:
    """Return whether a folder holds such a table."""
    return any(name in names and _is_table(_header(folder / name)) for name in TABLES)


def read(folder: Path, split: str, columns: ColumnNames) -> Iterator[Item]:
    """Yield the utterances that the tables of a folder list."""
    for name, read_rows in TABLES.items():
        if (folder / name).is_file():
            for item in read_rows(folder / name, columns):
                yield (
                    item
                    if isinstance(item, Rejected)
                    else replace(item, split=item.split or split or _split(item, folder))
                )


def _split(item: Utterance, folder: Path) -> str:
    """Return the split that the path of the audio below `folder` names: train for train/a.wav."""
    path = Path(item.audio.url) if isinstance(item.audio, AudioRef) else folder
    return split_of(path.parent, folder) if path.is_relative_to(folder) else ""


def _header(path: Path) -> Sequence[str]:
    if path.suffix == ".jsonl":
        return list(first_json_object(path))
    try:
        return next(csv.reader(line for _, line in read_lines(path)), [])
    except (InputError, csv.Error):
        return []


def _is_table(header: Sequence[str]) -> bool:
    return "file_name" in header or ColumnNames().fit(header)
