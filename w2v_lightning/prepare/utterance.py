"""Utterances as every kind of source yields them, and those that are rejected."""

from dataclasses import dataclass

from w2v_lightning.data.audio_ref import AudioRef

AUDIO_SUFFIXES = (
    *(".flac", ".wav", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif"),
    *(".m4a", ".aac", ".amr", ".wma", ".webm", ".caf"),  # read through ffmpeg; without it, named with the remedy
)


@dataclass(frozen=True)
class Utterance:
    """Utterance as its source describes it; its audio has not been checked."""

    id: str
    text: str
    audio: AudioRef | bytes  # its location, or the content of a packed file
    source: str  # path of the file or folder that lists it
    speaker: str = ""
    split: str = ""
    packed_channel: int | None = None  # of audio in bytes, counted from 0; other audio has it in its location


@dataclass(frozen=True)
class Rejected:
    """Utterance that is left out, with the reason."""

    source: str
    id: str
    reason: str
    detail: str = ""  # what is wrong with this utterance in particular


Item = Utterance | Rejected
