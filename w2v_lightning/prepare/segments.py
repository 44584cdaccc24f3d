"""Tables whose rows are parts of recordings: which columns say so, and whether their numbers are seconds."""

import re
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import chain, islice
from pathlib import Path

import soundfile

from w2v_lightning.data.sound import TOLERANCE_S
from w2v_lightning.errors import InputError
from w2v_lightning.prepare.utterance import Item, Utterance

START_COLUMNS = ("start", "start_time", "begin", "begin_time", "offset")
END_COLUMNS = ("end", "end_time", "stop", "stop_time")
LENGTH_COLUMN = "duration"
# Such as start_ms or segment_end: to pass over it would give each row the whole recording.
ALIKE = re.compile(
    r"((segment|seg|audio|clip)_?)?(start|begin|offset|end|stop)(_?time)?"
    r"(_?(in_)?(s|secs?|seconds?|ms|msecs?|milliseconds?|samples?|frames?))?"
)
NUM_CHECKED = 1000  # segments of a table that are held against their recordings before the first is used


def segment_columns(columns: Mapping[str, str], path: Path) -> dict[str, str]:
    """The columns of start and end, or of start and duration; none where rows are whole recordings.

    A duration alone is none: as a rule it is that of the recording.

    Args:
        columns: every column of the table, by its name in lower case.
        path: of the table.

    Raises:
        InputError: one is missing, there are several, or they may have another unit.
    """
    starts, ends = ([columns[name] for name in names if name in columns] for names in (START_COLUMNS, END_COLUMNS))
    others = [column for name, column in columns.items() if ALIKE.fullmatch(name) and column not in starts + ends]
    is_clear = not others and len(starts) == 1 and (len(ends) == 1 or (not ends and LENGTH_COLUMN in columns))
    if not is_clear and (starts or ends or others):
        raise InputError(
            f"{path}: from {', '.join(starts + ends + others)} it is not clear which part of its recording each row is."
            f" Give seconds in one of {', '.join(START_COLUMNS)} and one of {', '.join(END_COLUMNS)}, {LENGTH_COLUMN};"
            " or, if the audio is cut already, give these columns other names."
        )
    if not starts:
        return {}
    return {"start": starts[0], **({"end": ends[0]} if ends else {LENGTH_COLUMN: columns[LENGTH_COLUMN]})}


def segment_of(row: Mapping[str, str]) -> dict[str, float]:
    """`offset` and `duration` in seconds, as a manifest has them; neither where the row leaves start and end empty.

    Raises:
        ValueError: these are no numbers, or not those of a segment.
    """
    if not row.get("start", "").strip() and not row.get("end", "").strip():
        return {}
    start_s = float(row["start"])
    duration_s = float(row["end"]) - start_s if "end" in row else float(row[LENGTH_COLUMN])
    if not (start_s >= 0 and 0 < duration_s < float("inf")):
        raise ValueError("no segment")
    return {"offset": start_s, "duration": duration_s}


def in_seconds(items: Iterator[Item], path: Path) -> Iterator[Item]:
    """The same items.

    Raises:
        InputError: of the first segments, most end after their recordings: their times are no seconds.
    """
    first = list(islice(items, NUM_CHECKED))
    _refuse_other_units([item for item in first if isinstance(item, Utterance)], path)
    return chain(first, items)


def _refuse_other_units(utterances: list[Utterance], path: Path) -> None:
    duration_s = cache(_duration_s)
    ends = [(u, u.audio.start_s + u.audio.duration_s) for u in utterances if u.audio.start_s is not None]
    late = [(u, end_s) for u, end_s in ends if end_s > duration_s(u.audio.url) + TOLERANCE_S]
    if 2 * len(late) > len(ends):
        utterance, end_s = late[0]
        raise InputError(
            f"{path}: {len(late)} of its first {len(ends)} segments end after their recordings, such as"
            f" {utterance.id!r} at {end_s:g} s of the {duration_s(utterance.audio.url):.3f} s of {utterance.audio.url}."
            " Times must be seconds, not milliseconds or samples; or, if the audio is cut already, give these columns"
            " other names."
        )


def _duration_s(path: str) -> float:
    try:
        return soundfile.info(path).duration
    except (OSError, soundfile.SoundFileError):
        return float("inf")  # whoever reads it will say what is wrong
