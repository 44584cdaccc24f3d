"""Common Voice: one folder per language, with clips/ and train.tsv, dev.tsv, test.tsv, validated.tsv and others.

Format: https://github.com/common-voice/cv-dataset
"""

from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path

from w2v_lightning.errors import InputError
from w2v_lightning.prepare.columns import ColumnNames
from w2v_lightning.prepare.tables import read_table
from w2v_lightning.prepare.utterance import Item, Rejected

SPLITS = ("train", "dev", "test")
TABLES = (*SPLITS, "validated", "invalidated", "other")


def recognises(folder: Path, names: Collection[str]) -> bool:
    """Return whether a folder is that of a language."""
    return (folder / "clips").is_dir() and any(f"{name}.tsv" in names for name in TABLES)


def read(folder: Path, split: str, columns: ColumnNames) -> Iterator[Item]:
    """Yield the utterances of train.tsv, dev.tsv and test.tsv, or else of validated.tsv, which holds all three.

    Raises:
        InputError: there is none of these files.
    """
    names = [name for name in SPLITS if (folder / f"{name}.tsv").is_file()]
    if not names and not (folder / "validated.tsv").is_file():
        raise InputError(
            f"{folder} has neither train.tsv, dev.tsv and test.tsv nor validated.tsv. To use another table, name it."
        )
    for name in names or ["validated"]:
        for item in read_table(folder / f"{name}.tsv", columns):
            yield item if isinstance(item, Rejected) else replace(item, split=name if names else split)
