"""Validation split of a corpus that has none: whole speakers, or whole recordings where no speaker is known.

A model would know the voices of a validation split that is drawn by utterance, and its score would be too good.
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from w2v_lightning.errors import InputError
from w2v_lightning.prepare.convert import Audio
from w2v_lightning.prepare.parts import MAX_LINES, lines_of, read_headers, write_part
from w2v_lightning.prepare.splits import TEST, VALIDATION
from w2v_lightning.prepare.statistics import Statistics

NAME = "validation"
FIRST_KEYS = ("id", "audio_filepath", "duration", "text", "speaker")  # of a row; the split comes next
REASONS = {"speakers": "", "recordings": " (no speakers to tell apart)", "utterances": " (of one recording)"}


class _Row(NamedTuple):
    """Line of a part, with its details."""

    split: str
    row: dict[str, Any]
    recording: str
    num_bytes: int
    sample_rate: int

    @property
    def speaker(self) -> str:
        """Return the speaker, or the recording if that is not known."""
        speaker = self.row["speaker"]
        return f"speaker {speaker}" if speaker else self.recording


# What a split must not divide; the first kind that makes several groups is used.
GROUPINGS: dict[str, Callable[[_Row], str]] = {
    "speakers": lambda row: row.speaker,
    "recordings": lambda row: row.recording,
    "utterances": lambda row: row.row["id"],
}


def hold_out(folder: Path, percentage: float) -> tuple[Path, dict[str, Any]]:
    """Write the parts in a folder again, in a folder below it, with a validation split.

    It is drawn from the splits that are not for tests. The choice depends on the speakers or recordings, their names
    and durations, and not on their order.

    Args:
        folder: folder of the parts, written with `Parts(..., has_details=True)`.
        percentage: share of the audio, in percent.

    Returns:
        the folder of the new parts and what was held out, for `described`. If the corpus has a validation split, it is
        `folder` itself.

    Raises:
        InputError: there is only one utterance.
    """
    splits = sorted({header["split"] for _, header in read_headers(folder)})
    if existing := [split for split in splits if VALIDATION.search(split)]:
        return folder, {"existing": existing}
    divided = [split for split in splits if not TEST.search(split)] or splits
    kind, seconds = _groups(folder, divided)
    chosen = _chosen(seconds, percentage / 100)
    _write(folder, folder / NAME, lambda row: row.split in divided and GROUPINGS[kind](row) in chosen)
    share = sum(seconds[group] for group in chosen) / sum(seconds.values())
    if kind == "speakers" and not any(group.startswith("speaker ") for group in seconds):
        kind = "recordings"
    return folder / NAME, {"kind": kind, "held_out": len(chosen), "total": len(seconds), "share": round(share, 6)}


def described(outcome: dict[str, Any]) -> str:
    """Return a sentence on what `hold_out` has done."""
    if "existing" in outcome:
        return f"--validation is not used: the sources have a validation split, {', '.join(outcome['existing'])}."
    groups = f"{outcome['held_out']:,} of {outcome['total']:,} {outcome['kind']}{REASONS[outcome['kind']]}"
    return f"Split {NAME}: {groups}, {100 * outcome['share']:.1f} % of the audio."


def _rows(folder: Path) -> Iterator[_Row]:
    for path, header in read_headers(folder):
        for line, details in zip(lines_of(path), header["details"], strict=True):
            yield _Row(header["split"], json.loads(line), *details)


def _groups(folder: Path, splits: list[str]) -> tuple[str, dict[str, float]]:
    """Return the first kind that makes several groups, and the seconds of each group."""
    for kind, group_of in GROUPINGS.items():
        seconds: dict[str, float] = defaultdict(float)
        for row in _rows(folder):
            if row.split in splits:
                seconds[group_of(row)] += row.row["duration"]
        if len(seconds) > 1:
            return kind, seconds
    raise InputError("--validation: there is only one utterance, which leaves none to train on. Drop the option.")


def _chosen(seconds: dict[str, float], share: float) -> set[str]:
    """Return groups with about that share of all seconds: in random order, each that brings the sum nearer to it."""
    missing = share * sum(seconds.values())
    chosen = set()
    for group in sorted(seconds, key=_digest):
        if seconds[group] < 2 * missing:
            chosen.add(group)
            missing -= seconds[group]
    return chosen or {min(seconds, key=lambda group: (seconds[group], _digest(group)))}


def _digest(group: str) -> bytes:
    return hashlib.blake2b(group.encode(), digest_size=16).digest()


def _write(folder: Path, new_folder: Path, is_held_out: Callable[[_Row], bool]) -> None:
    new_folder.mkdir(exist_ok=True)
    statistics: dict[str, Statistics] = defaultdict(Statistics)
    lines: dict[str, list[str]] = defaultdict(list)
    number: Counter[str] = Counter()

    def complete(split: str) -> None:
        header = {"split": split, "statistics": statistics.pop(split).as_json()}
        write_part(new_folder / f"{split}-{number[split]:06}.part", header, lines.pop(split))
        number[split] += 1

    for row in _rows(folder):
        split = NAME if is_held_out(row) else row.split or "train"
        keys = {key: row.row[key] for key in FIRST_KEYS}
        lines[split].append(json.dumps(keys | {"split": split} | {**row.row, "split": split}, ensure_ascii=False))
        audio = Audio(keys["duration"], row.sample_rate, row.num_bytes, "", None)
        statistics[split].add(keys["text"], keys["speaker"], audio)
        if len(lines[split]) >= MAX_LINES:
            complete(split)
    for split in sorted(lines):
        complete(split)
