"""One utterance's audio: looked at, and converted where the options ask for it."""

import io
import os
from dataclasses import dataclass

import numpy as np
import soundfile

from w2v_lightning.data.audio_ref import AudioRef
from w2v_lightning.data.sound import TOLERANCE_S, blocks, can_read, cut_off, not_finite
from w2v_lightning.prepare.options import Options


class UnusableAudioError(Exception):
    """Why an utterance is left out: one of few reasons, so that they can be counted; `detail` is of this one alone."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.detail = detail


@dataclass(frozen=True)
class Audio:
    """Audio that can be used."""

    duration_s: float
    sample_rate: int
    num_bytes: int
    suffix: str
    data: bytes | None  # None: it stays where it is
    is_converted: bool = False


def prepare_audio(audio: AudioRef | bytes, options: Options) -> Audio:
    """The audio as it goes into the corpus: bytes for shards and after conversion, else only what it is.

    Raises:
        UnusableAudioError: it is missing, empty, damaged, or of a duration that is not wanted.
    """
    try:
        data = audio if isinstance(audio, bytes) else _read_packed(audio)
        source = audio.url if data is None else io.BytesIO(data)
        with soundfile.SoundFile(source) as sound:
            if not _is_segment(audio) and (shortage := cut_off(sound, source)):
                raise UnusableAudioError("truncated or damaged", shortage)
            start, size = _extent(sound, audio)
            _check_duration(size / sound.samplerate, options)
            if fault := not_finite(sound, blocks(sound, start, size)):
                raise UnusableAudioError("samples that are NaN or infinite", fault)
            if _must_convert(sound, audio, options):
                return _convert(sound, start, size, options)
            duration_s, sample_rate, suffix = size / sound.samplerate, sound.samplerate, _suffix(sound)
            share = size / sound.frames
        if data is None and options.shard_size:
            with open(audio.url, "rb") as file:
                data = file.read()
        num_bytes = round(share * (os.path.getsize(audio.url) if data is None else len(data)))
        return Audio(duration_s, sample_rate, num_bytes, suffix, data if options.shard_size else None)
    except FileNotFoundError:
        raise UnusableAudioError("no audio file") from None
    except OSError as error:
        raise UnusableAudioError(f"cannot be read: {error.strerror}") from None
    except soundfile.SoundFileError as error:
        raise UnusableAudioError(f"cannot be decoded: {getattr(error, 'error_string', error)}") from None


def _read_packed(ref: AudioRef) -> bytes | None:
    """The bytes of a file within a file; None for a file of its own."""
    if os.path.getsize(ref.url) == 0:
        raise UnusableAudioError("an empty file")
    if not ref.num_bytes:
        return None
    with open(ref.url, "rb") as file:
        file.seek(ref.byte_offset)
        return file.read(ref.num_bytes)


def _is_segment(audio: AudioRef | bytes) -> bool:
    return isinstance(audio, AudioRef) and audio.start_s is not None


def _extent(sound: soundfile.SoundFile, audio: AudioRef | bytes) -> tuple[int, int]:
    """First frame and number of frames; the last one can be read."""
    start, size = 0, sound.frames
    if _is_segment(audio):
        start, size = round(audio.start_s * sound.samplerate), round(audio.duration_s * sound.samplerate)
        if start + size > sound.frames + TOLERANCE_S * sound.samplerate:
            segment_end_s, end_s = audio.start_s + audio.duration_s, sound.frames / sound.samplerate
            detail = f"the segment ends at {segment_end_s:.3f} s, the recording at {end_s:.3f} s"
            raise UnusableAudioError("a segment that ends after its recording", detail)
        size = min(size, sound.frames - start)
    if size <= 0:
        raise UnusableAudioError("no audio in it")
    if not can_read(sound, start + size - 1):
        raise UnusableAudioError("truncated or damaged")
    return start, size


def _check_duration(duration_s: float, options: Options) -> None:
    if options.min_duration is not None and duration_s < options.min_duration:
        raise UnusableAudioError(f"shorter than {options.min_duration:g} s")
    if options.max_duration is not None and duration_s > options.max_duration:
        raise UnusableAudioError(f"longer than {options.max_duration:g} s")


def _must_convert(sound: soundfile.SoundFile, audio: AudioRef | bytes, options: Options) -> bool:
    is_other = options.resample is not None and (sound.samplerate != options.resample or sound.channels != 1)
    return is_other or (_is_segment(audio) and (options.segment or options.shard_size is not None))


def _convert(sound: soundfile.SoundFile, start: int, size: int, options: Options) -> Audio:
    """Those frames as 16-bit FLAC."""
    sound.seek(start)
    samples = sound.read(size, dtype="float32", always_2d=True)
    if len(samples) < size:
        raise UnusableAudioError("truncated or damaged")
    rate = options.resample or sound.samplerate
    if options.resample:
        samples = samples.mean(axis=1)
        if rate != sound.samplerate:
            from w2v_lightning.data.decode import resample  # imports torch, for seconds

            samples = resample(samples, sound.samplerate, rate)
    file = io.BytesIO()
    # Scaled here, because what is 16-bit already must stay the same bit for bit.
    samples_16bit = np.clip(np.rint(samples * 32768), -32768, 32767).astype(np.int16)
    soundfile.write(file, samples_16bit, rate, format="FLAC", subtype="PCM_16")
    data = file.getvalue()
    return Audio(len(samples) / rate, rate, len(data), ".flac", data, is_converted=True)


def _suffix(sound: soundfile.SoundFile) -> str:
    """By what it is, whatever its name says."""
    return {"WAVEX": ".wav", "RF64": ".wav", "MPEG": ".mp3"}.get(sound.format, f".{sound.format.lower()}")
