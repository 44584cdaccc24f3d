"""Kaldi's data directory: wav.scp, text, and optionally utt2spk and segments; commands in wav.scp are never executed.

Format: https://kaldi-asr.org/doc/data_prep.html
"""

from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path

from w2v_lightning.data.audio_ref import AudioRef
from w2v_lightning.errors import InputError
from w2v_lightning.prepare.columns import ColumnNames
from w2v_lightning.prepare.readers.kaldi_pipe import audio_of_command
from w2v_lightning.prepare.readers.layout import read_lines
from w2v_lightning.prepare.segments import in_seconds, segment_of
from w2v_lightning.prepare.utterance import Item, Rejected, Utterance


def recognises(folder: Path, names: Collection[str]) -> bool:
    """Return whether a folder is a data directory with transcripts."""
    return "wav.scp" in names and "text" in names


def read(folder: Path, split: str, columns: ColumnNames) -> Iterator[Item]:
    """Yield the utterances of a data directory, in the order of segments, or else of wav.scp.

    Raises:
        InputError: a line is not of Kaldi's format; names file and line.
    """
    return in_seconds(_items(folder, split), folder)


def _items(folder: Path, split: str) -> Iterator[Item]:
    texts, speakers = _values(folder / "text"), _values(folder / "utt2spk")
    recordings = _values(folder / "wav.scp")
    for utterance, (recording, times) in _segments(folder, recordings).items():
        source = str(folder)
        text = texts.pop(utterance, None)
        if text is None:
            yield Rejected(source, utterance, "no transcript")
        elif recording not in recordings:
            yield Rejected(source, utterance, "no audio file", f"recording {recording!r} is not in wav.scp")
        elif (audio := _audio(recordings[recording], folder)) is None:
            detail = f"{recordings[recording]!r} in wav.scp; write its output to a file, and name that file"
            yield Rejected(source, utterance, "a command or an archive in place of an audio file", detail)
        else:
            try:
                segment = segment_of(times)
            except ValueError:
                detail = f"{times['start']} to {times['end']} in segments"
                yield Rejected(source, utterance, "invalid segment times", detail)
                continue
            if segment:
                audio = replace(audio, start_s=segment["offset"], duration_s=segment["duration"])
            yield Utterance(utterance, text, audio, source, speakers.get(utterance, ""), split)
    for utterance in texts:
        yield Rejected(str(folder), utterance, "no audio file", "its id is in neither segments nor wav.scp")


def _segments(folder: Path, recordings: Collection[str]) -> dict[str, tuple[str, dict[str, str]]]:
    """Return recording, and start and end as they are written, of each utterance."""
    path = folder / "segments"
    if not path.is_file():
        return {recording: (recording, {}) for recording in recordings}
    segments = {}
    for utterance, line in _values(path).items():
        fields = line.split()
        if len(fields) not in (3, 4):
            raise InputError(f"{path}: {utterance!r}: must be UTTERANCE RECORDING START END, found {line!r}.")
        segments[utterance] = fields[0], {"start": fields[1], "end": fields[2]}
    return segments


def _values(path: Path) -> dict[str, str]:
    """Return the rest of each line by its first word; empty if there is no such file."""
    values: dict[str, str] = {}
    for number, line in read_lines(path) if path.is_file() else ():
        key, *rest = line.split(maxsplit=1)
        if key in values:
            raise InputError(f"{path}:{number}: {key!r} occurs more than once. Keep one of these lines.")
        values[key] = rest[0].strip() if rest else ""
    return values


def _audio(value: str, folder: Path) -> AudioRef | None:
    """Return the location of a recording; None for what is not a file."""
    plain = audio_of_command(value) if value.endswith("|") else (value, None)
    if plain is None or (path := _find(plain[0], folder)) is None:
        return None
    return AudioRef(str(path), channel=plain[1])


def _find(name: str, folder: Path) -> Path | None:
    """Return a file's path, which Kaldi's scripts write relative to the recipe, two folders above data/train."""
    candidates = [base / name for base in (folder, Path(), folder.parent, folder.parent.parent)]
    file = next((path for path in candidates if path.is_file()), candidates[0])
    is_archive = not file.is_file() and ".ark:" in name
    return None if is_archive else file
