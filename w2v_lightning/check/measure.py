"""Measurements of the audio, from each header or from every sample decoded once, in threads, keeping no samples."""

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
from w2v_lightning.data.opening import opened
from w2v_lightning.data.reader import AudioReader
from w2v_lightning.data.remote import is_remote
from w2v_lightning.data.sound import blocks, can_read, cancels, float_fault, mono, truncation
from w2v_lightning.errors import InputError

CHUNK = 16  # utterances per task, because a future for each of ten million would cost more than the work
REMOTE_THREADS = 16  # more than cores, because they mostly wait for answers, 0.05 s each
BLOCK_S = 30  # decoded at a time, because a segment may take hours
WINDOW_S = 0.02
SILENCE_DBFS = -60.0
FULL_SCALE = 0.999
FLAC_BITS = {"PCM_S8": 8, "PCM_16": 16, "PCM_24": 24}

Content = tuple[str, str, float | None, float | None]  # see _content_of


@dataclass(frozen=True, slots=True)
class Measurement:
    """Measurement of one utterance's audio; NaN for values that were not measured."""

    problem: str = ""  # why it cannot be used
    duration_s: float = math.nan  # from the header, or as decoded; of a segment: the part within the file
    content: Content | None = None  # equal for equal audio
    clipped_share: float = math.nan
    rms_dbfs: float = math.nan
    silent_share: float = math.nan


def measure_all(manifest: Manifest, decode: bool) -> Iterator[Measurement]:
    """Yield a Measurement of each utterance, in order; from the headers alone, or from all samples with `decode`."""
    local = threading.local()  # each thread needs its own AudioReader
    num_threads = REMOTE_THREADS if any("://" in path for path in manifest.audio_paths) else None
    chunks = [range(i, min(i + CHUNK, len(manifest))) for i in range(0, len(manifest), CHUNK)]
    # Threads are enough: libsndfile and most of numpy release the interpreter lock.
    with ThreadPoolExecutor(num_threads, initializer=lambda: setattr(local, "reader", AudioReader())) as pool:
        yield from chain.from_iterable(
            pool.map(lambda chunk: [measure(manifest.audio(i), local.reader, decode) for i in chunk], chunks)
        )


def measure(ref: AudioRef, reader: AudioReader, decode: bool) -> Measurement:
    """Measure one utterance's audio; a fault is returned as `problem`, never raised."""
    try:
        if not decode and ref.num_bytes and (measured := _from_streaminfo(ref, reader)):
            return measured
        source = _source(ref, reader)
        with opened(source, str(ref)) as sound:
            if ref.start_s is None and (shortage := truncation(sound, source)):
                return Measurement(problem=f"truncated: {shortage}")
            if sound.frames == 0:
                return Measurement(problem="no audio in the file")
            md5 = _flac_md5(_head(source))
            measured = _decoded(sound, ref, md5) if decode else _from_header(sound, ref)
        return replace(measured, content=_content(source, ref, md5))
    except (InputError, OSError) as error:
        return Measurement(problem=str(error).removeprefix(f"{ref}: "))


# ---- reading --------------------------------------------------------------------------------------------------------


def _from_streaminfo(ref: AudioRef, reader: AudioReader) -> Measurement | None:
    """Measure a FLAC file within a shard from its first 42 bytes; None if they do not suffice.

    Its last byte is read too, to notice a truncated shard.
    """
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
        raise InputError("no such file")  # libsndfile would say "System error"
    return ref.url


def _from_header(sound: soundfile.SoundFile, ref: AudioRef) -> Measurement:
    if not can_read(sound, sound.frames - 1):
        return Measurement(problem="truncated or damaged")
    return Measurement(duration_s=_within(ref, sound.frames / sound.samplerate))


def _decoded(sound: soundfile.SoundFile, ref: AudioRef, expected_md5: bytes | None) -> Measurement:
    rate, (start, size) = sound.samplerate, _extent(sound, ref)
    if ref.channel is not None and ref.channel >= sound.channels:
        return Measurement(problem=f"no channel {ref.channel}, counted from 0: it has {sound.channels}")
    if fault := float_fault(sound, blocks(sound, start, size)):
        return Measurement(problem=fault.detail)
    if ref.channel is None and cancels(blocks(sound, start, size)):
        return Measurement(problem="its channels cancel each other: their mean is silent")
    bits = FLAC_BITS.get(sound.subtype, 0) if expected_md5 and ref.start_s is None else 0
    sound.seek(start)
    num_samples = num_clipped = 0
    md5, powers = hashlib.md5(usedforsecurity=False), []
    for block_TC in sound.blocks(BLOCK_S * rate, frames=size, dtype="float32", always_2d=True):
        num_samples += len(block_TC)
        num_clipped += int((np.abs(block_TC) >= FULL_SCALE).any(axis=1).sum())
        powers.append(_window_powers(mono(block_TC, ref.channel), max(1, round(WINDOW_S * rate))))
        if bits:
            integers_TC = (block_TC * 2.0 ** (bits - 1)).astype(np.int32)  # exact: float32 holds 24 bits
            md5.update(flac.pcm_bytes(integers_TC, bits).data)
    if num_samples < max(1, size):
        return Measurement(problem=f"only {num_samples / rate:.3f} s can be decoded")
    if bits and md5.digest() != expected_md5:
        return Measurement(problem="damaged: the MD5 of the samples differs from the one in the FLAC header")
    return _levels(num_samples / rate, num_clipped / num_samples, np.concatenate(powers))


def _extent(sound: soundfile.SoundFile, ref: AudioRef) -> tuple[int, int]:
    """Return first sample and number of samples of `ref` that are within the file."""
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


def _window_powers(samples_T: np.ndarray, window: int) -> np.ndarray:
    """Return the mean square of each window; the last may be shorter."""
    starts = np.arange(0, len(samples_T), window)
    sums = np.add.reduceat(np.square(samples_T, dtype=np.float64), starts)
    return sums / np.diff(np.append(starts, len(samples_T)))


def _within(ref: AudioRef, file_s: float) -> float:
    """Return the duration of the file, or of the part of the segment that is within the file, in seconds."""
    return file_s if ref.start_s is None else max(0.0, min(ref.duration_s, file_s - ref.start_s))


# ---- equal audio ----------------------------------------------------------------------------------------------------


def _content(source: str | io.BytesIO, ref: AudioRef, md5: bytes | None) -> Content:
    if ref.start_s is not None:  # hashing a long recording for each of its segments would be too slow
        return _content_of(ref, "position in the file", str(replace(ref, start_s=None, duration_s=0.0)))
    if md5:
        return _content_of(ref, "FLAC MD5", md5.hex())
    if isinstance(source, str):
        with open(source, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    else:
        digest = hashlib.sha256(source.getbuffer()).hexdigest()
    return _content_of(ref, "bytes of the file", digest)


def _content_of(ref: AudioRef, compared: str, digest: str) -> Content:
    """Return the values that are equal for equal audio: what was compared, its digest, and the segment."""
    if ref.channel is not None:
        digest += f", channel {ref.channel}"
    return compared, digest, ref.start_s, ref.duration_s if ref.start_s is not None else None


def _head(source: str | io.BytesIO) -> bytes:
    if isinstance(source, io.BytesIO):
        return source.getvalue()[: flac.HEADER_BYTES]
    with open(source, "rb") as file:
        return file.read(flac.HEADER_BYTES)


def _flac_md5(head: bytes) -> bytes | None:
    """Return the MD5 of the decoded samples from a FLAC header; None if its encoder wrote none."""
    info = flac.stream_info(head)
    return info.md5 if info and any(info.md5) else None
