"""What makes an open sound file unfit: that it is not whole, or that its samples are no numbers."""

import io
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import soundfile

TOLERANCE_S = 0.01  # rounded seconds in a manifest, or a header that counts itself, are no fault
# A program that writes WAV or AIFF to a pipe cannot say how long it will be, and says a number from here on (sox
# 0x7FFFF000 or 0x7F000000, arecord 2**31, ffmpeg 2**32 - 1): 18 h of 16 kHz audio.
UNKNOWN_BYTES = 0x7F000000
# Of libsndfile's log, and nowhere else: the chunk of samples in a WAV or AIFF file is longer than the file.
SHORT_CHUNK = re.compile(r"^ *(?:data|SSND) : (\d+) \(should be (\d+)\)", re.MULTILINE)
# A page of OGG (RFC 3533): 27 bytes, the last of which counts its segments; a byte for the size of each; the segments.
PAGE_HEADER_BYTES = 27
MAX_PAGE_BYTES = PAGE_HEADER_BYTES + 255 + 255 * 255
END_OF_STREAM = 4
BLOCK_FRAMES = 1 << 16
FLOATING_POINT = ("FLOAT", "DOUBLE")  # no other samples can be NaN or infinite


def can_read(sound: soundfile.SoundFile, frame: int) -> bool:
    """Whether that frame can be read: of the last one, it finds truncated files for 0.06 ms more each."""
    try:
        sound.seek(frame)
        return len(sound.read(1)) == 1
    except soundfile.SoundFileError:  # what libsndfile says of it ("Internal psf_fseek() failed") helps nobody
        return False


def cut_off(sound: soundfile.SoundFile, source: str | Path | io.BytesIO, *, may_be_unclosed: bool = False) -> str:
    """By what a file ends before its audio does; empty where it does not, or where nothing tells.

    libsndfile reads such WAV, AIFF and OGG files as if they were shorter, without a word.

    Args:
        sound: the open file.
        source: what it was opened from.
        may_be_unclosed: an OGG file need not end with the last page of a stream: a recorder that was stopped, or a cut
            between two pages, look alike.
    """
    if sound.format == "OGG":
        return _ogg_cut_off(sound, _last_ogg_page(source), may_be_unclosed)
    chunk = SHORT_CHUNK.search(sound.extra_info)
    said_bytes, found_bytes = map(int, chunk.groups()) if chunk else (0, 0)
    found_s = sound.frames / sound.samplerate
    said_s = found_s * said_bytes / max(found_bytes, 1)
    is_cut_off = said_bytes < UNKNOWN_BYTES and said_s > found_s + TOLERANCE_S
    return f"its header says {said_s:.3f} s of audio, {found_s:.3f} s are there" if is_cut_off else ""


def blocks(sound: soundfile.SoundFile, start: int, size: int) -> Iterator[np.ndarray]:
    """`size` frames from `start` on as float32, some at a time: a recording may be hours."""
    sound.seek(start)
    yield from sound.blocks(BLOCK_FRAMES, frames=size, dtype="float32", always_2d=True)


def not_finite(sound: soundfile.SoundFile, parts: Iterable[np.ndarray]) -> str:
    """How many samples are NaN or infinite; empty where none is. One is enough to make all of a model's weights NaN.

    Args:
        sound: the open file.
        parts: its samples as float32; not asked for where they cannot but be finite.
    """
    if sound.subtype not in FLOATING_POINT:
        return ""
    num_samples = num_finite = 0
    for part in parts:
        num_samples += part.size
        num_finite += np.count_nonzero(np.isfinite(part))
    num_others = num_samples - num_finite
    return f"{num_others:,} of {num_samples:,} samples are NaN or infinite" if num_others else ""


def _ogg_cut_off(sound: soundfile.SoundFile, page: bytes, may_be_unclosed: bool) -> str:
    """libsndfile's log knows of neither where the cut lies within the last page of the stream."""
    found = f"{sound.frames / sound.samplerate:.3f} s of audio are there"
    num_segments = page[PAGE_HEADER_BYTES - 1] if len(page) >= PAGE_HEADER_BYTES else 0
    sizes = page[PAGE_HEADER_BYTES : PAGE_HEADER_BYTES + num_segments]
    if len(page) < PAGE_HEADER_BYTES + num_segments + sum(sizes):
        return f"it ends in the middle of a page, {found}"
    is_closed = page[5] & END_OF_STREAM or may_be_unclosed
    return "" if is_closed else f"it has no end-of-stream page, {found}"


def _last_ogg_page(source: str | Path | io.BytesIO) -> bytes:
    """From where it begins to the end of the file."""
    if isinstance(source, io.BytesIO):
        tail = bytes(source.getbuffer()[-MAX_PAGE_BYTES:])
    else:
        with open(source, "rb") as file:
            file.seek(-min(MAX_PAGE_BYTES, file.seek(0, os.SEEK_END)), os.SEEK_END)
            tail = file.read()
    return tail[max(0, tail.rfind(b"OggS")) :]
