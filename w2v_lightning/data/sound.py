"""Checks of an open sound file: that it is complete, and that its samples are finite."""

import io
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile

TOLERANCE_S = 0.01  # tolerates rounded seconds in a manifest, and headers that count themselves
# A program that writes WAV or AIFF to a pipe does not know the length in advance, and writes a number at or above this
# (sox 0x7FFFF000 or 0x7F000000, arecord 2**31, ffmpeg 2**32 - 1), which is 18 h of 16 kHz audio.
UNKNOWN_BYTES = 0x7F000000
# Line of libsndfile's log if the sample chunk of a WAV or AIFF file is longer than the file; only the log has this.
SHORT_CHUNK = re.compile(r"^ *(?:data|SSND) : (\d+) \(should be (\d+)\)", re.MULTILINE)
# OGG page (RFC 3533): 27 bytes, the last one the number of segments; one byte per segment with its size; the segments.
PAGE_HEADER_BYTES = 27
MAX_PAGE_BYTES = PAGE_HEADER_BYTES + 255 + 255 * 255
END_OF_STREAM = 4
BLOCK_FRAMES = 1 << 16
FLOATING_POINT = ("FLOAT", "DOUBLE")  # samples of other types cannot be NaN, infinite or beyond 1
INTEGER_PEAK = 100.0  # integers that were saved as floats exceed it, at any number of bits; audio in [-1, 1] never does
CANCELLED = 1e-3  # power of the mean of all channels relative to theirs: 30 dB below


class Fault(NamedTuple):
    """Reason why samples are unusable, in the same words for all files, and what it is in this one."""

    reason: str
    detail: str


class Sound(soundfile.SoundFile):
    """Open sound file that remembers what it was made from.

    Attributes:
        suffix: of the format of the content, which the file's name may contradict.
        shortage: how it is truncated, if decoding told.
        reopen: function that opens it again from memory, if it was decoded as a whole.
    """

    shortage = ""
    reopen: "Callable[[], Sound] | None" = None

    def __init__(self, file: str | io.BytesIO, **raw: Any) -> None:
        super().__init__(file, **raw)
        self.suffix = {"WAVEX": ".wav", "RF64": ".wav", "MPEG": ".mp3"}.get(self.format, f".{self.format.lower()}")


def can_read(sound: soundfile.SoundFile, frame: int) -> bool:
    """Return whether a frame can be read; trying the last one detects truncated files, at 0.06 ms per file."""
    try:
        sound.seek(frame)
        return len(sound.read(1)) == 1
    except soundfile.SoundFileError:  # its message ("Internal psf_fseek() failed") would not help the user
        return False


def truncation(sound: soundfile.SoundFile, source: str | Path | io.BytesIO, *, may_be_unclosed: bool = False) -> str:
    """Describe how a file is truncated; "" if it is complete, or if nothing in the file tells.

    libsndfile silently reads truncated WAV, AIFF and OGG files as if they were shorter.

    Args:
        sound: the open file.
        source: the path or file object that it was opened from.
        may_be_unclosed: accept an OGG file without the last page of a stream: that of a recorder that was stopped looks
            the same as one truncated between two pages.
    """
    if shortage := getattr(sound, "shortage", ""):
        return str(shortage)
    if sound.format == "OGG":
        return _ogg_truncation(sound, _last_ogg_page(source), may_be_unclosed)
    chunk = SHORT_CHUNK.search(sound.extra_info)
    header_bytes, actual_bytes = map(int, chunk.groups()) if chunk else (0, 0)
    actual_s = sound.frames / sound.samplerate
    header_s = actual_s * header_bytes / max(actual_bytes, 1)
    is_truncated = header_bytes < UNKNOWN_BYTES and header_s > actual_s + TOLERANCE_S
    return f"its header says {header_s:.3f} s of audio, {actual_s:.3f} s are there" if is_truncated else ""


def blocks(sound: soundfile.SoundFile, start: int, size: int) -> Iterator[np.ndarray]:
    """Yield `size` frames from `start` on as float32, in blocks: a recording may last hours."""
    sound.seek(start)
    yield from sound.blocks(BLOCK_FRAMES, frames=size, dtype="float32", always_2d=True)


def mono(samples_TC: np.ndarray, channel: int | None) -> np.ndarray:
    """Return the samples (T,) of a channel, counted from 0; None: the mean of all channels."""
    if channel is None and samples_TC.shape[1] > 1:
        return samples_TC.mean(axis=1)
    return samples_TC[:, channel or 0]


def cancels(parts: Iterable[np.ndarray]) -> bool:
    """Return whether the mean of all channels is silent although they are not: one is the other inverted."""
    power_of_mean = power_of_channels = 0.0
    for samples_TC in parts:
        if samples_TC.shape[1] == 1:
            return False
        power_of_mean += float(np.square(samples_TC.mean(axis=1), dtype=np.float64).sum())
        power_of_channels += float(np.square(samples_TC, dtype=np.float64).mean(axis=1).sum())
    return power_of_mean < CANCELLED * power_of_channels


def float_fault(sound: soundfile.SoundFile, parts: Iterable[np.ndarray]) -> Fault | None:
    """Return why samples of floating point cannot be used; None if they can.

    One NaN is enough to make all weights of a model NaN, and integers that were never scaled are noise to a model.

    Args:
        sound: the open file.
        parts: its samples as float32; not read if the samples are integers.
    """
    if sound.subtype not in FLOATING_POINT:
        return None
    num_samples, num_finite, peak = 0, 0, 0.0
    for part in parts:
        num_samples += part.size
        num_finite += int(np.count_nonzero(np.isfinite(part)))
        peak = max(peak, float(np.abs(part).max(initial=0)))
    if num_bad := num_samples - num_finite:
        detail = f"{num_bad:,} of {num_samples:,} samples are NaN or infinite"
        return Fault("samples that are NaN or infinite", detail)
    return out_of_range(peak) if peak > INTEGER_PEAK else None


def out_of_range(peak: float) -> Fault:
    """Return what is wrong with float samples that reach `peak`."""
    return Fault(
        "float samples far beyond [-1, 1], where nothing tells their scale",
        f"the peak is {peak:g}; divide by full scale (32768 for 16 bits) where it was exported",
    )


def _ogg_truncation(sound: soundfile.SoundFile, page: bytes, may_be_unclosed: bool) -> str:
    """Describe how the last page is truncated: libsndfile's log does not report it for OGG."""
    rest = f"{sound.frames / sound.samplerate:.3f} s of audio are there"
    num_segments = page[PAGE_HEADER_BYTES - 1] if len(page) >= PAGE_HEADER_BYTES else 0
    sizes = page[PAGE_HEADER_BYTES : PAGE_HEADER_BYTES + num_segments]
    if len(page) < PAGE_HEADER_BYTES + num_segments + sum(sizes):
        return f"it ends in the middle of a page, {rest}"
    is_closed = page[5] & END_OF_STREAM or may_be_unclosed
    return "" if is_closed else f"it has no end-of-stream page, {rest}"


def _last_ogg_page(source: str | Path | io.BytesIO) -> bytes:
    """Return the last page, up to the end of the file."""
    if isinstance(source, io.BytesIO):
        tail = bytes(source.getbuffer()[-MAX_PAGE_BYTES:])
    else:
        with open(source, "rb") as file:
            file.seek(-min(MAX_PAGE_BYTES, file.seek(0, os.SEEK_END)), os.SEEK_END)
            tail = file.read()
    return tail[max(0, tail.rfind(b"OggS")) :]
