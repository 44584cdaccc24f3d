"""Conversion of lhotse's JSON lines to manifest rows: cuts, and supervisions with their recordings.

Format: lhotse's MonoCut, SupervisionSegment and Recording, version 1.
"""

from typing import Any

from w2v_lightning.errors import InputError


def is_lhotse_cut(row: dict[str, Any]) -> bool:
    """Return whether a JSON line is a cut of a CutSet."""
    return "supervisions" in row and "recording" in row


def row_from_cut(cut: dict[str, Any], where: str) -> dict[str, Any]:
    """Convert a cut to a manifest row; the texts of several supervisions are joined in order of time.

    Args:
        cut: one line of a CutSet.
        where: "file:line" for messages.

    Raises:
        InputError: the cut is of a type that is not one part of one audio file.
    """
    if cut.get("type", "MonoCut") not in ("MonoCut", "Cut", "DataCut"):
        raise InputError(
            f"{where}: lhotse {cut['type']} is unsupported; export it as MonoCut (one channel of a recording)."
        )
    supervisions = sorted(cut["supervisions"], key=lambda supervision: supervision.get("start", 0))
    speakers = {str(s["speaker"]) for s in supervisions if s.get("speaker") is not None}
    return _row(
        cut["recording"],
        where,
        id=cut["id"],
        start_s=cut["start"],
        duration_s=cut["duration"],
        text=" ".join(s["text"].strip() for s in supervisions if s.get("text")),
        speaker=speakers.pop() if len(speakers) == 1 else "",
    )


def row_from_supervision(supervision: dict[str, Any], recordings: dict[str, dict], where: str) -> dict[str, Any]:
    """Convert a supervision to a manifest row; `recordings` is the RecordingSet by id.

    Raises:
        InputError: its recording is missing, or is not one audio file.
    """
    recording = recordings.get(supervision["recording_id"])
    if recording is None:
        raise InputError(f"{where}: recording {supervision['recording_id']!r} is missing in the RecordingSet.")
    return _row(
        recording,
        where,
        id=supervision["id"],
        start_s=supervision["start"],
        duration_s=supervision["duration"],
        text=supervision.get("text") or "",
        speaker=supervision.get("speaker"),
    )


def _row(recording: dict, where: str, *, id: str, start_s: float, duration_s: float, text: str, speaker: Any) -> dict:
    source, *more_sources = recording["sources"]
    if more_sources or source["type"] not in ("file", "url") or len(source.get("channels", [0])) != 1:
        raise InputError(
            f"{where}: recording {recording['id']!r} is not a single audio file of one channel (type"
            f" {source['type']!r}, {1 + len(more_sources)} sources): export it as files first."
        )
    row = {"id": id, "audio_filepath": source["source"], "duration": duration_s, "text": text, "speaker": speaker}
    is_whole = start_s == 0 and abs(duration_s - recording["duration"]) < 1e-3
    return row if is_whole else row | {"offset": start_s}
