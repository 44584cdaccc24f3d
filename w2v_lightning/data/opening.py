"""Opening of audio, the one place that knows the decoders: what libsndfile gets wrong is decoded into memory first.

Every error of a decoder, of any type, becomes an InputError that names the file.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import soundfile

from w2v_lightning.data import ffmpeg, flac, magic, mp3, riff
from w2v_lightning.data.decoded import Decoded, DecodedFiles
from w2v_lightning.data.sound import Sound, truncation
from w2v_lightning.errors import InputError

HEAD_BYTES = 64
UNKNOWN_LENGTH = 2**63 - 1  # libsndfile's number of frames if the header has none
MP3_IN_WAV = b"\x55\x00"  # format tag of a WAV file
READ_BY_LIBSNDFILE = (magic.CAF, magic.OGG)  # with some codecs
BEGIN_OF_STREAM = (b"OggS\x00\x02", b"OggS\x00\x06")


@contextmanager
def opened(source: str | Path | io.BytesIO, name: str, kept: DecodedFiles | None = None) -> Iterator[Sound]:
    """Open audio of any supported format; `sound.frames` is the number of frames that decoding gives.

    Args:
        source: path or content of a file.
        name: what to call it in errors.
        kept: files to take the samples from, and to keep them in; for the many segments of a recording.

    Raises:
        InputError: the file cannot be read; also for any error of a decoder within the `with` block.
    """
    try:
        file = str(source) if isinstance(source, Path) else source
        open_file = partial(_open, file, name)
        with kept.open(file, open_file) if kept and isinstance(file, str) else open_file() as sound:
            yield sound
    except (InputError, MemoryError):
        raise
    except OSError as error:
        raise InputError(f"{name}: cannot be read as audio: {error.strerror or error}.") from error
    except Exception as error:
        reason = str(getattr(error, "error_string", error)).rstrip(".") or type(error).__name__
        raise InputError(f"{name}: cannot be read as audio: {reason}.") from error


def _open(source: str | io.BytesIO, name: str) -> Sound:
    head = _head(source)
    if mp3.is_mp3(head):
        samples_TC, rate, shortage = mp3.decode(_content(source))
        return Decoded.of(samples_TC, rate, ".mp3", shortage).open()
    if head[12:16] == b"fmt " and head[20:22] == MP3_IN_WAV:
        return _mp3_in_wav(_content(source))
    if magic.media(head) not in (*READ_BY_LIBSNDFILE, "") or magic.other(head):  # mpg123 would try, and complain
        return _through_ffmpeg(source, head, name)
    try:
        sound = Sound(source)
    except soundfile.SoundFileError:
        if (wav := riff.rewritten(_content(source)) if head.startswith(b"RIFF") else None) is not None:
            return Sound(io.BytesIO(wav))
        return _through_ffmpeg(source, head, name)
    try:
        return _repaired(sound, source) or sound
    except BaseException:
        sound.close()
        raise


def _repaired(sound: Sound, source: str | io.BytesIO) -> Sound | None:
    """Return the samples where libsndfile's count of frames or its seeking fails; None where they do not."""
    if sound.format == "OGG" and len(parts := _chained(_content(source))) > 1:
        return _joined(parts, sound)
    if sound.format == "WAV" and sound.frames == 0 and (wav := riff.rewritten(_content(source))):
        return Sound(io.BytesIO(wav))
    if sound.subtype == "MPEG_LAYER_III":  # it follows bytes of something else
        samples_TC, rate, shortage = mp3.decode(_content(source))
        return Decoded.of(samples_TC, rate, ".mp3", shortage).open()
    if sound.format == "FLAC" and sound.frames == UNKNOWN_LENGTH:
        return Decoded.of(*flac.decode_unknown_length(_content(source)), ".flac").open()
    if not sound.seekable():
        samples_TC = sound.read(sound.frames, dtype="float32", always_2d=True)
        return Decoded.of(samples_TC, sound.samplerate, sound.suffix, truncation(sound, source)).open()
    return None


def _mp3_in_wav(content: bytes) -> Sound:
    chunks = riff.chunks_of(content)
    if chunks is None:
        raise ValueError("a WAV file without samples")
    samples_TC, rate, _ = mp3.decode(chunks.samples)
    actual_s = len(samples_TC) / rate
    header_s = actual_s * (1 + chunks.missing_bytes / max(1, len(chunks.samples)))
    shortage = f"its header says {header_s:.3f} s of audio, {actual_s:.3f} s are there" if chunks.missing_bytes else ""
    return Decoded.of(samples_TC, rate, ".wav", shortage).open()


def _chained(data: bytes) -> list[bytes]:
    """Return the streams of an OGG file that follow each other (RFC 3533, chaining)."""
    starts = sorted(i for magic_bytes in BEGIN_OF_STREAM for i in _positions(data, magic_bytes))
    return [data[start:end] for start, end in zip(starts, [*starts[1:], len(data)], strict=True)]


def _positions(data: bytes, pattern: bytes) -> Iterator[int]:
    position = data.find(pattern)
    while position >= 0:
        yield position
        position = data.find(pattern, position + 1)


def _joined(parts: list[bytes], first: Sound) -> Sound:
    samples, shortage = [], ""
    for part in parts:
        with Sound(io.BytesIO(part)) as sound:
            if (sound.samplerate, sound.channels) != (first.samplerate, first.channels):
                raise ValueError("a chain of OGG streams with different sample rates or channels: export them as one")
            samples.append(sound.read(dtype="float32", always_2d=True))
            shortage = shortage or truncation(sound, io.BytesIO(part), may_be_unclosed=True)
    return Decoded.of(np.concatenate(samples), first.samplerate, ".ogg", shortage).open()


def _through_ffmpeg(source: str | io.BytesIO, head: bytes, name: str) -> Sound:
    if kind := magic.media(head):
        if not ffmpeg.is_available():
            raise ValueError(
                f"it is {kind}, which needs ffmpeg. Install ffmpeg, or convert the file: {ffmpeg.command_line(name)}"
            )
        return _reopenable(ffmpeg.as_wav(source))
    if not head and isinstance(source, str):
        raise ValueError("it is an empty file: download or export it again")
    if kind := magic.other(head):
        raise ValueError(f"it is {kind}")
    return Sound(source)  # raises libsndfile's error again


def _reopenable(wav: io.BytesIO) -> Sound:
    sound = Sound(wav)
    sound.reopen = lambda: Sound(io.BytesIO(wav.getvalue()))
    return sound


def _head(source: str | io.BytesIO) -> bytes:
    """Return the first bytes; an ID3 tag in front of FLAC or AAC is skipped."""
    if isinstance(source, io.BytesIO):
        data = source.getbuffer()
        head = bytes(data[:HEAD_BYTES])
        after = bytes(data[size : size + HEAD_BYTES]) if (size := mp3.id3_bytes(head)) else b""
    else:
        with open(source, "rb") as file:
            head = file.read(HEAD_BYTES)
            file.seek(size := mp3.id3_bytes(head))
            after = file.read(HEAD_BYTES) if size else b""
    return after if after.startswith(b"fLaC") or magic.media(after) else head


def _content(source: str | io.BytesIO) -> bytes:
    return source.getvalue() if isinstance(source, io.BytesIO) else Path(source).read_bytes()
