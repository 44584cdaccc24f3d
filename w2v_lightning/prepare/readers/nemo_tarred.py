"""NeMo's tarred data sets: a manifest whose rows have a shard_id, and audio_0.tar, audio_1.tar and so on beside it.

Format: https://docs.nvidia.com/nemo-framework/user-guide/latest/nemotoolkit/asr/datasets.html#tarred-datasets
A manifest may be sharded, too: sharded_manifests/manifest__OP_0..127_CL_.json stands for manifest_0.json and so on.
"""

import re
from collections.abc import Collection, Iterator
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from w2v_lightning.data.audio_ref import AudioRef
from w2v_lightning.data.rows import read_rows
from w2v_lightning.errors import InputError, listed
from w2v_lightning.prepare.columns import ColumnNames
from w2v_lightning.prepare.readers.tar_index import places_in
from w2v_lightning.prepare.utterance import Item, Rejected, Utterance

MANIFEST = "tarred_audio_manifest.json"
RANGE = re.compile(r"(?:_OP_|\{)(\d{1,6})\.\.(\d{1,6})(?:_CL_|\})")
Place = tuple[int, int]


def recognises(folder: Path, names: Collection[str]) -> bool:
    """Return whether a folder holds such a data set."""
    return MANIFEST in names


def read(folder: Path, split: str, columns: ColumnNames) -> Iterator[Item]:
    """Yield the utterances of a folder."""
    return read_manifest(folder / MANIFEST, split)


def expand(path: Path) -> list[Path]:
    """Return the files that a name with a range such as _OP_0..127_CL_ or {0..127} stands for; else the path alone.

    Raises:
        InputError: one of the files is missing.
    """
    match = RANGE.search(path.name)
    if match is None or path.exists():
        return [path]
    first, last = match.groups()
    numbers = (f"{i:0{len(first)}}" for i in range(int(first), int(last) + 1))
    paths = [path.with_name(path.name[: match.start()] + number + path.name[match.end() :]) for number in numbers]
    if not paths:
        raise InputError(f"{path}: the range ends before it begins. Correct the numbers.")
    if missing := [file.name for file in paths if not file.is_file()]:
        raise InputError(f"{path}: names {len(paths)} files, and {listed(missing)} are missing. Copy them there.")
    return paths


def read_manifest(path: Path, split: str = "") -> Iterator[Item]:
    """Yield the utterances of a manifest, or of several that a name with a range stands for.

    Raises:
        InputError: a manifest is invalid, or a tar is missing or damaged.
    """
    places_of = lru_cache(256)(_places)  # rows usually come in the order of the tars
    for manifest in expand(path):
        for number, row in read_rows(manifest):
            tar = _tar(row.get("shard_id", _number_in(manifest)), manifest, number)
            places = places_of(tar)
            name = PurePosixPath(row["audio_filepath"])
            place = places.get(str(name)) or places.get(name.stem)
            if place is None:
                yield Rejected(str(manifest), row["id"], "no audio file", f"{row['audio_filepath']!r} is not in {tar}")
                continue
            audio = AudioRef(str(tar), *place, row.get("offset"), row["duration"], row.get("channel"))
            yield Utterance(row["id"], row["text"], audio, str(manifest), row["speaker"], split)


def _places(tar: Path) -> dict[str, Place]:
    """Return the places of files by full name, and by name without folder and suffix, as NeMo compares them."""
    places = places_in(tar)
    return {PurePosixPath(name).stem: place for name, place in places.items()} | places


def _tar(shard: Any, manifest: Path, number: int) -> Path:
    if type(shard) is not int or shard < 0:
        raise InputError(f"{manifest}:{number}: shard_id must be a whole number, found {shard!r}.")
    candidates = [folder / f"audio_{shard}.tar" for folder in (manifest.parent, manifest.parent.parent)]
    tar = next((path for path in candidates if path.is_file()), None)
    if tar is None:
        raise InputError(f"{manifest}:{number}: {candidates[0].name} is missing beside the manifest. Put it there.")
    return tar


def _number_in(manifest: Path) -> int | None:
    match = re.fullmatch(r".*_(\d+)", manifest.stem)
    return int(match[1]) if match else None
