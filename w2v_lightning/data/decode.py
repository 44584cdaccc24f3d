"""Decoding of audio files to mono samples at the rate of a model."""

import io
from collections.abc import Sequence

import numpy as np
import soundfile
import torch

from w2v_lightning.data.audio_ref import AudioRef
from w2v_lightning.data.batch import SAMPLE_RATE
from w2v_lightning.data.decoded import DecodedFiles
from w2v_lightning.data.flac import decode_16_bit
from w2v_lightning.data.opening import opened
from w2v_lightning.data.reader import AudioReader
from w2v_lightning.data.remote import is_remote
from w2v_lightning.data.sound import cancels, float_fault, mono, truncation
from w2v_lightning.errors import InputError


def read_audio(ref: AudioRef, sample_rate: int = SAMPLE_RATE, kept: DecodedFiles | None = None) -> np.ndarray:
    """Read the audio of a local file, only the segment if `ref` has one, as float32; see `decode`."""
    return _decode_file(ref.url.removeprefix("file://"), ref, sample_rate, kept)


def decode(data: bytes, ref: AudioRef, sample_rate: int = SAMPLE_RATE) -> np.ndarray:
    """Decode the audio of `ref` from the bytes of its file, at `sample_rate` (Hz); shape (T,).

    The waveform is the channel that `ref` chooses, or the mean of all. It is int16 for a whole file of 16-bit mono FLAC
    at that rate, half as much to transfer; otherwise float32 in [-1, 1].

    Raises:
        InputError: the audio cannot be decoded, is empty, is truncated, ends before the segment does, has samples that
            are not finite or far beyond [-1, 1], lacks the channel, or its channels cancel each other.
    """
    if ref.start_s is None and (decoded := decode_16_bit(data)) is not None:
        samples_TC, file_rate = decoded
        is_as_wanted = samples_TC.shape[1] == 1 and file_rate == sample_rate
        return samples_TC[:, 0] if is_as_wanted else _mono(as_float(samples_TC), file_rate, ref, sample_rate)
    return _decode_file(io.BytesIO(data), ref, sample_rate)


def load(refs: Sequence[AudioRef], reader: AudioReader, sample_rate: int = SAMPLE_RATE) -> list[np.ndarray]:
    """Read and decode the audio of several utterances, whose bytes are requested together; see `decode`."""
    is_local_segment = [ref.start_s is not None and not ref.num_bytes and not is_remote(ref.url) for ref in refs]
    bodies = iter(reader.read([ref for ref, is_local in zip(refs, is_local_segment, strict=True) if not is_local]))
    return [
        read_audio(ref, sample_rate, reader.kept) if is_local else decode(next(bodies), ref, sample_rate)
        for ref, is_local in zip(refs, is_local_segment, strict=True)
    ]


def _decode_file(
    file: str | io.BytesIO, ref: AudioRef, sample_rate: int, kept: DecodedFiles | None = None
) -> np.ndarray:
    with opened(file, str(ref), kept) as sound:
        file_rate = sound.samplerate
        if ref.start_s is None and (shortage := truncation(sound, file, may_be_unclosed=True)):
            raise InputError(
                f"{ref}: truncated: {shortage}. Download it again, or save the audio that remains as a new file."
            )
        samples_TC = _read(sound, ref)
        if fault := float_fault(sound, [samples_TC]):
            raise InputError(f"{ref}: {fault.detail}. Leave it out or export it again (`check --decode` lists all).")
    if len(samples_TC) == 0:
        raise InputError(f"{ref}: contains no audio.")
    return _mono(samples_TC, file_rate, ref, sample_rate)


def _mono(samples_TC: np.ndarray, file_rate: int, ref: AudioRef, sample_rate: int) -> np.ndarray:
    """Return the channel of `ref`, or the mean of all, at `sample_rate`."""
    num_channels = samples_TC.shape[1]
    if ref.channel is not None and not 0 <= ref.channel < num_channels:
        raise InputError(f"{ref}: has no channel {ref.channel}, counted from 0: it has {num_channels}.")
    if ref.channel is None and cancels([samples_TC]):
        raise InputError(
            f"{ref}: its channels cancel each other: their mean is silent. Choose one: prepare --channel 0."
        )
    waveform_T = np.ascontiguousarray(mono(samples_TC, ref.channel))
    return waveform_T if file_rate == sample_rate else resample(waveform_T, file_rate, sample_rate)


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
