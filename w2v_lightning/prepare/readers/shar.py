"""lhotse's Shar: cuts.000000.jsonl.gz with the cuts, and recording.000000.tar with the audio of each under its id.

Format: https://lhotse.readthedocs.io/en/latest/cuts.html#lhotse-shar-dataloading
"""

import re
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from w2v_lightning.data.audio_ref import AudioRef
from w2v_lightning.data.lhotse import rows_from_cut
from w2v_lightning.data.rows import checked_row, read_objects
from w2v_lightning.errors import InputError
from w2v_lightning.prepare.channels import num_channels_of
from w2v_lightning.prepare.columns import ColumnNames
from w2v_lightning.prepare.readers.tar_index import places_in
from w2v_lightning.prepare.utterance import Item, Rejected, Utterance
from w2v_lightning.runtime.schema import Mismatch

CUTS = re.compile(r"cuts((?:\.\d+)?)\.jsonl(?:\.gz)?")
NOT_AUDIO = (".json", ".nodata", ".nometa")


def recognises(folder: Path, names: Collection[str]) -> bool:
    """Return whether a folder holds shards of cuts and recordings."""
    return any((match := CUTS.fullmatch(name)) and f"recording{match[1]}.tar" in names for name in names)


def read(folder: Path, split: str, columns: ColumnNames) -> Iterator[Item]:
    """Yield the utterances of all shards of a folder.

    Raises:
        InputError: a cut is invalid, or a tar is missing or damaged.
    """
    for path in sorted(folder.iterdir()):
        if match := CUTS.fullmatch(path.name):
            yield from _read_shard(path, folder / f"recording{match[1]}.tar", split)


def _read_shard(path: Path, tar: Path, split: str) -> Iterator[Item]:
    places = places_in(tar)
    names = {PurePosixPath(name).with_suffix("").name: name for name in places if not name.endswith(NOT_AUDIO)}
    for number, cut in read_objects(path):
        name = names.get(str(cut.get("id")))
        if name is None:
            yield Rejected(str(path), str(cut.get("id", "")), "no audio file", f"no file of its id in {tar}")
            continue
        try:
            rows = [checked_row(row) for row in rows_from_cut(_with_source(cut, tar, places[name]))]
        except (InputError, Mismatch) as error:
            raise InputError(f"{path}:{number}: {error}.") from None
        for row in rows:
            audio = AudioRef(str(tar), *places[name], row.get("offset"), row["duration"], row.get("channel"))
            yield Utterance(row["id"], row["text"], audio, str(path), row["speaker"], split)


def _with_source(cut: dict[str, Any], tar: Path, place: tuple[int, int]) -> dict[str, Any]:
    """Return the cut with the tar as the source of its recording; Shar itself leaves the source empty."""
    recording = cut.get("recording")
    if not isinstance(recording, dict):
        raise InputError("a cut of Shar needs a recording. Export the shards again with the field `recording`")
    in_cut = cut.get("channel", [0])
    channels = [in_cut] if isinstance(in_cut, int) else in_cut
    in_recording = recording.get("channel_ids") or channels
    # lhotse writes only the channels of the cut, but other programs write the whole recording.
    if in_recording != channels and num_channels_of(AudioRef(str(tar), *place)) == len(in_recording):
        channels = in_recording
    source = {"type": "file", "channels": channels, "source": str(tar)}
    return cut | {"recording": recording | {"sources": [source], "transforms": None}}
