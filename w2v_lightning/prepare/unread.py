"""Contents of a folder that are not read: audio that no row lists, and corpora of another kind. Printed once.

Unlisted audio is often left out on purpose, as in Common Voice, so it does not count as rejected.
"""

import csv
import os
from collections.abc import Iterator
from pathlib import Path

from w2v_lightning.data.audio_ref import AudioRef
from w2v_lightning.errors import InputError
from w2v_lightning.prepare.columns import ColumnNames
from w2v_lightning.prepare.folder import walk
from w2v_lightning.prepare.hashes import HashSet
from w2v_lightning.prepare.huggingface import SUFFIXES as DATASET_SUFFIXES
from w2v_lightning.prepare.readers.layout import Layout, read_lines
from w2v_lightning.prepare.readers.layouts import LAYOUTS
from w2v_lightning.prepare.tables import first_json_object
from w2v_lightning.prepare.utterance import AUDIO_SUFFIXES, Item, Utterance

FOLDER, DATASET = "folder", "Hugging Face dataset"  # kinds of a source, beside those of the layouts
DELIMITERS = {".csv": ",", ".tsv": "\t"}


def read_layout(root: Path, layout: Layout, names: ColumnNames) -> Iterator[Item]:
    """Yield the utterances of all folders of one layout at or below `root`, then print what is not read."""
    listed = HashSet()
    for item in layout.read_below(root, names):
        if isinstance(item, Utterance) and isinstance(item.audio, AudioRef):
            listed.add(os.path.realpath(item.audio.url))
        yield item
    report_others(root, layout.kind)
    audio = (str(folder / name) for folder, files in walk(root) for name in files if _is_audio(name))
    unlisted = (path for path in audio if os.path.realpath(path) not in listed)
    if example := next(unlisted, ""):
        num_files = 1 + sum(1 for _ in unlisted)
        print(f"{root}: {num_files:,} audio files that no row lists are not used, such as {example}.", flush=True)


def report_others(root: Path, kind: str) -> None:
    """Print which corpora of another kind than the one that is read are at or below `root`, if any."""
    others = [*_others(root, kind)]
    if others:
        path, other = others[0]
        more = f" nor are {len(others) - 1:,} more like it" if len(others) > 1 else ""
        print(f"{root} is read as {kind}: {path} ({other}) is not read{more}. To use it, name it.", flush=True)


def _others(root: Path, kind: str) -> Iterator[tuple[Path, str]]:
    """Yield (path, kind) of each folder or file that would be read as something else."""
    for folder, files in walk(root):
        layouts = [layout.kind for layout in LAYOUTS if layout.recognises(folder, files)]
        yield from ((folder, layout) for layout in layouts if layout != kind)
        if kind == DATASET:
            if any(map(_is_audio, files)) and any(name.lower().endswith(".txt") for name in files):
                yield folder, "audio with transcripts"
        else:
            yield from ((folder / name, DATASET) for name in files if name.endswith(DATASET_SUFFIXES))
        if kind == FOLDER and not layouts:
            yield from ((folder / name, "table") for name in files if _is_table(folder / name))


def _is_table(path: Path) -> bool:
    """Return whether the first line of a file names columns of paths and texts."""
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        return ColumnNames().fit(first_json_object(path))
    if suffix not in DELIMITERS:
        return False
    try:
        lines = (line for _, line in read_lines(path))
        return ColumnNames().fit(next(csv.reader(lines, delimiter=DELIMITERS[suffix]), []))
    except (InputError, csv.Error):
        return False


def _is_audio(name: str) -> bool:
    return name.lower().endswith(AUDIO_SUFFIXES)
