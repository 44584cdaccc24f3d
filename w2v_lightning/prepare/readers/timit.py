"""TIMIT's transcripts, which begin with the first and the last sample: `0 46797 She had your dark suit`.

Format: https://catalog.ldc.upenn.edu/docs/LDC93S1/
"""

import io
import re
from pathlib import PurePath

from w2v_lightning.data.audio_ref import AudioRef
from w2v_lightning.data.opening import opened
from w2v_lightning.errors import InputError

LINE = re.compile(r"0 (\d{1,12}) (\S.*)")
TOLERANCE = 0.05  # share of the audio; in TIMIT itself, some numbers differ by a few hundred samples


def without_samples(text: str, audio: AudioRef | bytes) -> str:
    """Return a transcript without the two numbers, if they are those of the audio; else as it is."""
    match = LINE.fullmatch(text)
    if match is None:
        return text
    try:
        with opened(io.BytesIO(audio) if isinstance(audio, bytes) else audio.url, "") as sound:
            frames = sound.frames
    except InputError:
        return text
    return match[2] if abs(int(match[1]) - frames) <= TOLERANCE * frames else text


def speaker_and_split(directory: PurePath) -> dict[str, str]:
    """Return speaker and split if the path is (TRAIN|TEST)/DR1/SPEAKER; else nothing."""
    *_, split, region, speaker = ["", "", "", *directory.parts]
    is_timit = split.lower() in ("train", "test") and re.fullmatch(r"DR[1-8]", region, re.IGNORECASE)
    return {"speaker": speaker, "split": split.lower()} if is_timit else {}
