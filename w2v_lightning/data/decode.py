"""Decoding of audio files to 16 kHz mono samples."""

import io
from collections.abc import Sequence

import numpy as np
import soundfile
import torch

from w2v_lightning.data.audio_ref import AudioRef
from w2v_lightning.data.batch import SAMPLE_RATE
from w2v_lightning.data.flac import decode_16_bit
from w2v_lightning.data.reader import AudioReader
from w2v_lightning.data.remote import is_remote
from w2v_lightning.data.sound import non_finite, truncation
from w2v_lightning.errors import InputError


def read_audio(ref: AudioRef) -> np.ndarray:
    """Read the audio of a local file, only the segment if `ref` has one, as float32; see `decode`."""
    return _decode_file(ref.url.removeprefix("file://"), ref)


def decode(data: bytes, ref: AudioRef) -> np.ndarray:
    """Decode the audio of `ref` from the bytes of its file, at 16 kHz, channels averaged; shape (T,).

    The result is int16 for a whole file of 16-bit mono FLAC at 16 kHz, half as much to transfer; otherwise float32 in
    [-1, 1].

    Raises:
        InputError: the audio cannot be decoded, is empty, is truncated, ends before the segment does, or has samples
            that are not finite.
    """
    if ref.start_s is None and (decoded := decode_16_bit(data)) is not None:
        samples, sample_rate = decoded
        is_mono_16_khz = samples.shape[1] == 1 and sample_rate == SAMPLE_RATE
        return samples[:, 0] if is_mono_16_khz else _mono_16_khz(as_float(samples), sample_rate)
    return _decode_file(io.BytesIO(data), ref)


def load(refs: Sequence[AudioRef], reader: AudioReader) -> list[np.ndarray]:
    """Read and decode the audio of several utterances, whose bytes are requested together; see `decode`."""
    is_local_segment = [ref.start_s is not None and not ref.num_bytes and not is_remote(ref.url) for ref in refs]
    bodies = iter(reader.read([ref for ref, is_local in zip(refs, is_local_segment, strict=True) if not is_local]))
    return [
        read_audio(ref) if is_local else decode(next(bodies), ref)
        for ref, is_local in zip(refs, is_local_segment, strict=True)
    ]


def _decode_file(file: str | io.BytesIO, ref: AudioRef) -> np.ndarray:
    try:
        with soundfile.SoundFile(file) as sound:
            sample_rate = sound.samplerate
            if ref.start_s is None and (shortage := truncation(sound, file, may_be_unclosed=True)):
                raise InputError(
                    f"{ref}: truncated: {shortage}. Download it again, or save the audio that remains as a new file."
                )
            samples = _read(sound, ref)
            if fault := non_finite(sound, [samples]):
                raise InputError(f"{ref}: {fault}. Leave it out or export it again (`check --decode` lists all).")
    except (soundfile.SoundFileError, OSError) as error:
        raise InputError(f"{ref}: cannot be read as audio: {error}") from error
    if len(samples) == 0:
        raise InputError(f"{ref}: contains no audio.")
    return _mono_16_khz(samples, sample_rate)


def _mono_16_khz(samples: np.ndarray, sample_rate: int) -> np.ndarray:
    waveform_T = samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1)
    return waveform_T if sample_rate == SAMPLE_RATE else resample(waveform_T, sample_rate)


def _read(sound: soundfile.SoundFile, ref: AudioRef) -> np.ndarray:
    if ref.start_s is None:
        return sound.read(dtype="float32", always_2d=True)
    start, size = round(ref.start_s * sound.samplerate), round(ref.duration_s * sound.samplerate)
    if start + size > sound.frames + sound.samplerate // 100:  # 10 ms of tolerance for rounded seconds in a manifest
        raise InputError(
            f"{ref}: the segment ends at {ref.start_s + ref.duration_s:.3f} s, the file at"
            f" {sound.frames / sound.samplerate:.3f} s."
        )
    sound.seek(min(start, sound.frames))
    return sound.read(size, dtype="float32", always_2d=True)


def as_float(samples: np.ndarray) -> np.ndarray:
    """Convert int16 to float32 in [-1, 1], bit for bit as libsndfile does; float32 is returned unchanged."""
    return samples if samples.dtype == np.float32 else samples * np.float32(1 / 2**15)


def resample(waveform_T: np.ndarray, sample_rate: int, to: int = SAMPLE_RATE) -> np.ndarray:
    """Resample a waveform (T,) from `sample_rate` to `to` Hz, by torchaudio's windowed sinc interpolation."""
    from torchaudio.functional import resample  # slow to import, and not needed for LibriSpeech

    return resample(torch.from_numpy(waveform_T), sample_rate, to).numpy()
