"""What the audio tells: each file's header or, if asked, every sample is read once, in threads, and never kept."""

import hashlib
import io
import math
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import soundfile

from w2v_lightning.data import flac
from w2v_lightning.data.audio_ref import AudioRef
from w2v_lightning.data.manifest import Manifest
from w2v_lightning.data.reader import AudioReader
from w2v_lightning.data.remote import is_remote
from w2v_lightning.data.sound import blocks, can_read, cut_off, not_finite
from w2v_lightning.errors import InputError

CHUNK = 16  # utterances per task of a thread: a future for each of ten million would cost more than the work
REMOTE_THREADS = 16  # they wait for answers, 0.05 s each, rather than compute
BLOCK_S = 30  # decoded at a time; a segment may be hours
WINDOW_S = 0.02
SILENCE_DBFS = -60.0
FULL_SCALE = 0.999
FLAC_BITS = {"PCM_S8": 8, "PCM_16": 16, "PCM_24": 24}


@dataclass(frozen=True, slots=True)
class Measurement:
    """What was learnt of one utterance's audio; NaN for what was not looked at."""

    problem: str = ""  # why it cannot be used
    duration_s: float = math.nan  # from the header, or as decoded; of a segment: what of it lies within the file
    content: tuple | None = None  # equal for equal audio; the first part says what was compared
    clipped_share: float = math.nan
    rms_dbfs: float = math.nan
    silent_share: float = math.nan


def measure_all(manifest: Manifest, decode: bool) -> Iterator[Measurement]:
    """A Measurement of each utterance, in order; from the headers alone, or from all samples with `decode`."""
    own = threading.local()  # an AudioReader is for one thread at a time
    num_threads = REMOTE_THREADS if any("://" in path for path in manifest.audio_paths) else None
    chunks = [range(i, min(i + CHUNK, len(manifest))) for i in range(0, len(manifest), CHUNK)]
    # Threads are enough: libsndfile and most of numpy work outside the interpreter lock.
    with ThreadPoolExecutor(num_threads, initializer=lambda: setattr(own, "reader", AudioReader())) as pool:
        yield from chain.from_iterable(
            pool.map(lambda chunk: [measure(manifest.audio(i), own.reader, decode) for i in chunk], chunks)
        )


def measure(ref: AudioRef, reader: AudioReader, decode: bool) -> Measurement:
    """Look at one utterance's audio; what is wrong with it comes back as `problem`, never as an exception."""
    try:
        if not decode and ref.num_bytes and (measured := _from_streaminfo(ref, reader)):
            return measured
        source = _source(ref, reader)
        with soundfile.SoundFile(source) as sound:
            if ref.start_s is None and (shortage := cut_off(sound, source)):
                return Measurement(problem=f"cut off: {shortage}")
            if sound.frames == 0:
                return Measurement(problem="there is no audio in it")
            md5 = _flac_md5(_head(source))
            measured = _decoded(sound, ref, md5) if decode else _from_header(sound, ref)
        return replace(measured, content=_content(source, ref, md5))
    except (InputError, OSError, soundfile.SoundFileError) as error:
        return Measurement(problem=str(error).partition(": ")[2] or str(error))  # what precedes only names the file


# ---- reading --------------------------------------------------------------------------------------------------------


def _from_streaminfo(ref: AudioRef, reader: AudioReader) -> Measurement | None:
    """A FLAC file within a shard, from its first 42 bytes; its last byte is read to see that the shard is whole."""
    size = min(flac.HEADER_BYTES, ref.num_bytes)
    last = replace(ref, byte_offset=ref.byte_offset + ref.num_bytes - 1, num_bytes=1)
    head, _ = reader.read([replace(ref, num_bytes=size), last])
    info = flac.stream_info(head)
    if info is None or not any(info.md5) or not info.sample_rate or not info.num_samples:
        return None
    file_s = info.num_samples / info.sample_rate
    return Measurement(duration_s=_within(ref, file_s), content=_content_of(ref, "FLAC MD5", info.md5.hex()))


def _source(ref: AudioRef, reader: AudioReader) -> str | io.BytesIO:
    if is_remote(ref.url) or ref.num_bytes:
        return io.BytesIO(reader.read([ref])[0])
    if not os.path.isfile(ref.url):
        raise InputError("there is no such file")  # libsndfile would say "System error"
    return ref.url


def _from_header(sound: soundfile.SoundFile, ref: AudioRef) -> Measurement:
    if not can_read(sound, sound.frames - 1):
        return Measurement(problem="truncated or damaged")
    return Measurement(duration_s=_within(ref, sound.frames / sound.samplerate))


def _decoded(sound: soundfile.SoundFile, ref: AudioRef, expected_md5: bytes | None) -> Measurement:
    rate, (start, size) = sound.samplerate, _extent(sound, ref)
    if fault := not_finite(sound, blocks(sound, start, size)):
        return Measurement(problem=fault)
    bits = FLAC_BITS.get(sound.subtype, 0) if expected_md5 and ref.start_s is None else 0
    sound.seek(start)
    num_samples = num_clipped = 0
    md5, powers = hashlib.md5(usedforsecurity=False), []
    for block_TC in sound.blocks(BLOCK_S * rate, frames=size, dtype="float32", always_2d=True):
        num_samples += len(block_TC)
        num_clipped += int((np.abs(block_TC) >= FULL_SCALE).any(axis=1).sum())
        powers.append(_window_powers(block_TC, max(1, round(WINDOW_S * rate))))
        if bits:
            integers_TC = (block_TC * 2.0 ** (bits - 1)).astype(np.int32)  # exact: float32 holds 24 bits
            md5.update(flac.pcm_bytes(integers_TC, bits))
    if num_samples < max(1, size):
        return Measurement(problem=f"only {num_samples / rate:.3f} s of it can be decoded")
    if bits and md5.digest() != expected_md5:
        return Measurement(problem="damaged: the samples do not have the MD5 that the FLAC file carries")
    return _levels(num_samples / rate, num_clipped / num_samples, np.concatenate(powers))


def _extent(sound: soundfile.SoundFile, ref: AudioRef) -> tuple[int, int]:
    """First sample and number of samples of `ref`, as far as the file has them."""
    if ref.start_s is None:
        return 0, sound.frames
    start = min(round(ref.start_s * sound.samplerate), sound.frames)
    return start, min(round(ref.duration_s * sound.samplerate), sound.frames - start)


def _levels(duration_s: float, clipped_share: float, powers_W: np.ndarray) -> Measurement:
    return Measurement(
        duration_s=duration_s,
        clipped_share=clipped_share,
        rms_dbfs=float(_dbfs(powers_W.mean())),
        silent_share=float((_dbfs(powers_W) < SILENCE_DBFS).mean()),
    )


def _dbfs(power: np.ndarray) -> np.ndarray:
    return 10 * np.log10(np.maximum(power, 1e-20))  # digital silence is -200 dBFS, not minus infinity


def _window_powers(block_TC: np.ndarray, window: int) -> np.ndarray:
    """Mean square of each window; the last may be shorter."""
    starts = np.arange(0, len(block_TC), window)
    sums = np.add.reduceat(np.square(block_TC).mean(axis=1, dtype=np.float64), starts)
    return sums / np.diff(np.append(starts, len(block_TC)))


def _within(ref: AudioRef, file_s: float) -> float:
    """Seconds of the file, or of the segment that it holds."""
    return file_s if ref.start_s is None else max(0.0, min(ref.duration_s, file_s - ref.start_s))


# ---- equal audio ----------------------------------------------------------------------------------------------------


def _content(source: str | io.BytesIO, ref: AudioRef, md5: bytes | None) -> tuple:
    if ref.start_s is not None:  # hashing hours of a recording for each of its segments would take for ever
        return _content_of(ref, "place in the file", str(replace(ref, start_s=None, duration_s=0.0)))
    if md5:
        return _content_of(ref, "FLAC MD5", md5.hex())
    if isinstance(source, str):
        with open(source, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    else:
        digest = hashlib.sha256(source.getbuffer()).hexdigest()
    return _content_of(ref, "bytes of the file", digest)


def _content_of(ref: AudioRef, compared: str, digest: str) -> tuple:
    return compared, digest, ref.start_s, ref.duration_s if ref.start_s is not None else None


def _head(source: str | io.BytesIO) -> bytes:
    if isinstance(source, io.BytesIO):
        return source.getvalue()[: flac.HEADER_BYTES]
    with open(source, "rb") as file:
        return file.read(flac.HEADER_BYTES)


def _flac_md5(head: bytes) -> bytes | None:
    """MD5 of the decoded samples that a FLAC file carries; None where its encoder had none."""
    info = flac.stream_info(head)
    return info.md5 if info and any(info.md5) else None
