"""Conversion of lhotse's JSON lines to manifest rows: cuts, and supervisions with their recordings.

Format: lhotse's MonoCut, MultiCut, SupervisionSegment and Recording, version 1. The rows that come out are not checked
any further than that: `rows.py` does it.
"""

from typing import Any, NotRequired, TypedDict

from w2v_lightning.errors import InputError
from w2v_lightning.runtime.schema import Mismatch, check, shown

_Name = str | int | float | None


class _Supervision(TypedDict):
    text: NotRequired[str | None]
    speaker: NotRequired[_Name]
    start: NotRequired[float]
    channel: NotRequired[int | list[int]]


class _Segment(TypedDict):
    id: _Name
    recording_id: str
    start: float
    duration: float
    text: NotRequired[str | None]
    speaker: NotRequired[_Name]
    channel: NotRequired[int | list[int]]


class _Source(TypedDict):
    type: str
    source: str
    channels: NotRequired[list[int]]


class _Recording(TypedDict):
    id: _Name
    sources: list[_Source]
    duration: float
    transforms: NotRequired[list[Any] | None]


class _Cut(TypedDict):
    id: _Name
    start: float
    duration: float
    type: NotRequired[str]
    channel: NotRequired[int | list[int]]
    supervisions: list[_Supervision]
    recording: _Recording


def is_lhotse_cut(row: dict[str, Any]) -> bool:
    """Return whether a JSON line is a cut of a CutSet."""
    return ("supervisions" in row and "recording" in row) or row.get("type") in ("MixedCut", "PaddingCut")


def rows_from_cut(cut: dict[str, Any]) -> list[dict[str, Any]]:
    """Convert a cut to manifest rows: one, or for a MultiCut one per channel with supervisions.

    The texts of several supervisions are joined in order of time.

    Raises:
        InputError: the cut is not part of one audio file, or has a value of another type than lhotse writes.
    """
    kind = cut.get("type", "MonoCut")
    if kind not in ("MonoCut", "MultiCut", "Cut", "DataCut"):
        name = kind if isinstance(kind, str) else shown(kind)
        raise InputError(f"lhotse {name[:80]} is unsupported; export it as MonoCut (one channel of a recording)")
    _check(cut, _Cut, "cut")
    recording = cut["recording"]
    channels = _channels(cut, _channels_of(recording))
    by_channels: dict[tuple[int, ...], list[dict[str, Any]]] = {}
    for supervision in cut["supervisions"]:
        by_channels.setdefault(_channels(supervision, channels), []).append(supervision)
    return [
        _row(
            recording,
            chosen,
            id=cut["id"] if len(by_channels) < 2 else f"{cut['id']}-{'-'.join(map(str, chosen))}",
            start_s=cut["start"],
            duration_s=cut["duration"],
            **_text_and_speaker(supervisions),
        )
        for chosen, supervisions in (by_channels or {channels: []}).items()
    ]


def row_from_supervision(supervision: dict[str, Any], recordings: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Convert a supervision to a manifest row; `recordings` is the RecordingSet by id.

    Raises:
        InputError: its recording is missing or not one audio file, or a value is of another type than lhotse writes.
    """
    _check(supervision, _Segment, "supervision")
    recording = recordings.get(supervision["recording_id"])
    if recording is None:
        raise InputError(f"recording {shown(supervision['recording_id'])} is missing in the RecordingSet")
    _check(recording, _Recording, "recording")
    return _row(
        recording,
        _channels(supervision, _channels_of(recording)),
        id=supervision["id"],
        start_s=supervision["start"],
        duration_s=supervision["duration"],
        **_text_and_speaker([supervision]),
    )


def _text_and_speaker(supervisions: list[dict[str, Any]]) -> dict[str, str]:
    in_time = sorted(supervisions, key=lambda supervision: supervision.get("start", 0))
    speakers = {str(s["speaker"]) for s in supervisions if s.get("speaker") is not None}
    return {
        "text": " ".join(s["text"].strip() for s in in_time if s.get("text")),
        "speaker": speakers.pop() if len(speakers) == 1 else "",
    }


def _row(
    recording: dict[str, Any],
    channels: tuple[int, ...],
    *,
    id: _Name,
    start_s: float,
    duration_s: float,
    text: str,
    speaker: str,
) -> dict[str, Any]:
    sources = [source for source in recording["sources"] if {*channels} <= {*source.get("channels", [0])}]
    if recording.get("transforms"):
        raise InputError(
            f"recording {shown(recording['id'])} has transforms, which are unsupported: export it as files first"
        )
    if not channels or len(sources) != 1 or sources[0]["type"] not in ("file", "url"):
        kinds = ", ".join(sorted({repr(source["type"]) for source in recording["sources"]}))
        raise InputError(
            f"recording {shown(recording['id'])} is not a single audio file of one channel (type {kinds},"
            f" {len(recording['sources'])} sources, channels {', '.join(map(str, channels))}): export it as files first"
        )
    row = {"id": id, "audio_filepath": sources[0]["source"], "duration": duration_s, "text": text, "speaker": speaker}
    in_file = sources[0].get("channels", [0])
    if {*channels} != {*in_file}:
        if len(channels) > 1:
            raise InputError(f"channels {', '.join(map(str, channels))} of {len(in_file)}: export one, or all of them")
        row["channel"] = in_file.index(channels[0])
    is_whole = start_s == 0 and abs(duration_s - recording["duration"]) < 1e-3
    return row if is_whole else row | {"offset": start_s}


def _channels(cut_or_supervision: dict[str, Any], default: tuple[int, ...]) -> tuple[int, ...]:
    channels = cut_or_supervision.get("channel", default)
    return (channels,) if isinstance(channels, int) else tuple(sorted({*channels}))


def _channels_of(recording: dict[str, Any]) -> tuple[int, ...]:
    return tuple(sorted({channel for source in recording["sources"] for channel in source.get("channels", [0])}))


def _check(value: dict[str, Any], schema: type, name: str) -> None:
    try:
        check(value, schema)
    except Mismatch as error:
        raise InputError(f"invalid lhotse {name}: {error}") from None
