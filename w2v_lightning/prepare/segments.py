"""Tables whose rows are segments of recordings: which columns give the times, and whether they are in seconds."""

import re
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import chain, islice
from pathlib import Path

from w2v_lightning.data.audio_ref import AudioRef
from w2v_lightning.data.opening import opened
from w2v_lightning.data.sound import TOLERANCE_S
from w2v_lightning.errors import InputError
from w2v_lightning.prepare.utterance import Item, Utterance

START_COLUMNS = ("start", "start_time", "begin", "begin_time", "offset")
END_COLUMNS = ("end", "end_time", "stop", "stop_time")
LENGTH_COLUMN = "duration"
# Names that look like times, such as start_ms or segment_end. Ignoring them would give each row the whole recording.
ALIKE = re.compile(
    r"((segment|seg|audio|clip)_?)?(start|begin|offset|end|stop)(_?time)?"
    r"(_?(in_)?(s|secs?|seconds?|ms|msecs?|milliseconds?|samples?|frames?))?"
)
NUM_CHECKED = 1000  # first segments of a table, which are compared with their recordings before any is used


def segment_columns(columns: Mapping[str, str], path: Path) -> dict[str, str]:
    """Return the columns of start and end, or of start and duration; empty if the rows are whole recordings.

    A duration column alone does not make segments, because it usually is the duration of the recording.

    Args:
        columns: every column of the table, by its name in lower case.
        path: path of the table, for messages.

    Raises:
        InputError: one of the columns is missing, there are several, or they may be in another unit.
    """
    starts, ends = ([columns[name] for name in names if name in columns] for names in (START_COLUMNS, END_COLUMNS))
    alike = [column for name, column in columns.items() if ALIKE.fullmatch(name) and column not in starts + ends]
    is_clear = not alike and len(starts) == 1 and (len(ends) == 1 or (not ends and LENGTH_COLUMN in columns))
    if not is_clear and (starts or ends or alike):
        raise InputError(
            f"{path}: columns {', '.join(starts + ends + alike)}: cannot tell which part of its recording each row is."
            f" Give seconds in one of {', '.join(START_COLUMNS)} and one of {', '.join(END_COLUMNS)}, {LENGTH_COLUMN};"
            " or, if the audio is cut already, rename these columns."
        )
    if not starts:
        return {}
    return {"start": starts[0], **({"end": ends[0]} if ends else {LENGTH_COLUMN: columns[LENGTH_COLUMN]})}


def segment_of(row: Mapping[str, str]) -> dict[str, float]:
    """Return `offset` and `duration` in seconds, as in a manifest; empty if the row's start and end are empty.

    Raises:
        ValueError: the values are not numbers, or not those of a segment.
    """
    if not row.get("start", "").strip() and not row.get("end", "").strip():
        return {}
    start_s = float(row["start"])
    duration_s = float(row["end"]) - start_s if "end" in row else float(row[LENGTH_COLUMN])
    if not (start_s >= 0 and 0 < duration_s < float("inf")):
        raise ValueError("not a segment")
    return {"offset": start_s, "duration": duration_s}


def in_seconds(items: Iterator[Item], path: Path) -> Iterator[Item]:
    """Return the same items, after checking that the times of the first segments are seconds.

    Raises:
        InputError: most of these segments end after their recordings, so their times are in another unit.
    """
    first_items = list(islice(items, NUM_CHECKED))
    _refuse_other_units([item for item in first_items if isinstance(item, Utterance)], path)
    return chain(first_items, items)


def _refuse_other_units(utterances: list[Utterance], path: Path) -> None:
    duration_s = cache(_duration_s)
    ends = [
        (utterance.id, utterance.audio.url, utterance.audio.start_s + utterance.audio.duration_s)
        for utterance in utterances
        if isinstance(utterance.audio, AudioRef) and utterance.audio.start_s is not None
    ]
    late = [(name, audio, end_s) for name, audio, end_s in ends if end_s > duration_s(audio) + TOLERANCE_S]
    if 2 * len(late) > len(ends):
        name, audio, end_s = late[0]
        raise InputError(
            f"{path}: {len(late)} of its first {len(ends)} segments end after their recordings, such as {name!r}, which"
            f" ends at {end_s:g} s of the {duration_s(audio):.3f} s of {audio}. Times must be in seconds, not"
            " milliseconds or samples; or, if the audio is cut already, rename these columns."
        )


def _duration_s(path: str) -> float:
    try:
        with opened(path, path) as sound:
            return float(sound.frames / sound.samplerate)
    except InputError:
        return float("inf")  # not refused here: prepare_audio rejects the utterance with the reason
