"""What every kind of source is read as: a stream of utterances, and of what had to be left out."""

from dataclasses import dataclass

from w2v_lightning.data.audio_ref import AudioRef

AUDIO_SUFFIXES = (".flac", ".wav", ".ogg", ".opus", ".mp3", ".aiff", ".aif")


@dataclass(frozen=True)
class Utterance:
    """One utterance as its source has it; its audio has not been looked at."""

    id: str
    text: str
    audio: AudioRef | bytes  # where it lies, or the content of its file where it lies packed
    source: str  # the file or folder that named it
    speaker: str = ""
    split: str = ""


@dataclass(frozen=True)
class Rejected:
    """An utterance that is left out, and why."""

    source: str
    id: str
    reason: str
    detail: str = ""  # what the reason, which many share, does not say of this one


Item = Utterance | Rejected
