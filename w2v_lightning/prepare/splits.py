"""Names of splits, as the names of files and folders give them."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

SPLIT = re.compile(r"(train|training|dev|valid|validation|val|test|testing|eval)([-_.].*)?", re.IGNORECASE)
WITHIN = re.compile(r"(?<![a-z])(train|training|dev|valid|validation|val|eval|test|testing)(?![a-z])", re.IGNORECASE)
VALIDATION = re.compile(r"(?<![a-z])(dev|valid|validation|val)(?![a-z])", re.IGNORECASE)
TEST = re.compile(r"(?<![a-z])(test|testing|eval)(?![a-z])", re.IGNORECASE)
NUMBER = re.compile(r"[-_.](?:\d{5}-of-\d{5}|\d{4,})$")  # of one of several files
RESERVED = ("manifest", "rejected")  # a split of that name would have the file of another output


def innermost(parts: Iterable[str]) -> str:
    """Return the last part of a path that is a split's name, such as train-clean-100; "" for none."""
    return next((part for part in reversed([*parts]) if SPLIT.fullmatch(part)), "")


def of_file(name: str) -> str:
    """Return the split that a file is named after: train for train-000000.tar; "" for other names."""
    stem = NUMBER.sub("", stem_of(name))
    return stem if SPLIT.fullmatch(stem) else ""


def among_several(paths: Sequence[Path]) -> list[str]:
    """Return a split for each of several sources, from their names or their folders' names; "" without one.

    The names of all become splits if one of them is that of a split: train.tsv, dev.tsv and my.tsv, or
    train/metadata.csv and my/metadata.csv.
    """
    for names in ([NUMBER.sub("", stem_of(path.name)) for path in paths], [path.parent.name for path in paths]):
        if len(set(names)) > 1 and any(map(WITHIN.search, names)):
            return names
    return [""] * len(paths)


def stem_of(name: str) -> str:
    """Return the name of a file without its suffixes, such as .tsv.gz."""
    return re.sub(r"\.(tsv|csv|jsonl?|parquet|arrow|tar|tgz)$", "", re.sub(r"\.gz$", "", name, flags=re.I), flags=re.I)


def as_name(value: object) -> str:
    """Return a split's name in a form that file names may have."""
    name = Path(str(value or "").strip()).name
    return f"{name}-split" if name in RESERVED else name
