"""Audio of one utterance: checked, and converted if the recipe says so."""

import io
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from w2v_lightning.data.audio_ref import AudioRef
from w2v_lightning.data.decoded import DecodedFiles
from w2v_lightning.data.opening import opened
from w2v_lightning.data.sound import (
    TOLERANCE_S,
    Sound,
    blocks,
    can_read,
    cancels,
    float_fault,
    mono,
    out_of_range,
    truncation,
)
from w2v_lightning.errors import InputError
from w2v_lightning.prepare.options import Recipe

TOO_SHORT, TOO_LONG = "shorter than", "longer than"  # reasons begin with these
MAX_PEAK = 2.0  # of float samples; a decoder or an equaliser exceeds 1 a little, which is clipped


class UnusableAudioError(InputError):
    """Reason why an utterance is rejected.

    Args:
        reason: one of a few texts, so that utterances can be counted by reason.
        detail: what is wrong with this utterance in particular; may be empty.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.detail = detail


@dataclass(frozen=True)
class Audio:
    """Usable audio of one utterance."""

    duration_s: float
    sample_rate: int  # Hz
    num_bytes: int
    suffix: str
    data: bytes | None  # None: the audio stays in its file
    is_converted: bool = False


@dataclass(frozen=True)
class _Segment:
    """Part of a recording, in seconds."""

    start_s: float
    duration_s: float


def prepare_audio(
    audio: AudioRef | bytes, recipe: Recipe, packed_channel: int | None = None, kept: DecodedFiles | None = None
) -> Audio:
    """Check the audio of an utterance, and return it with its bytes if they go into a shard or were converted.

    Args:
        audio: a location with the channel that is chosen, or bytes.
        recipe: options that determine the output.
        packed_channel: channel that is chosen of audio in bytes; None: all.
        kept: recordings that were decoded for earlier segments.

    Raises:
        UnusableAudioError: the audio is missing, empty, damaged, or outside the limits of duration.
    """
    segment = _segment_of(audio)
    channel = packed_channel if isinstance(audio, bytes) else audio.channel
    try:
        data, path = (audio, "") if isinstance(audio, bytes) else (packed_bytes(audio), audio.url)
        source = path if data is None else io.BytesIO(data)
        with opened(source, path, kept if segment else None) as sound:
            if segment is None and (shortage := truncation(sound, source)):
                raise UnusableAudioError("truncated or damaged", shortage)
            start, size = _extent(sound, segment)
            _check_duration(size / sound.samplerate, recipe)
            if fault := float_fault(sound, blocks(sound, start, size)):
                raise UnusableAudioError(*fault)
            _check_mix(sound, start, size, channel)
            is_packed_channel = isinstance(audio, bytes) and channel is not None and sound.channels > 1
            if is_packed_channel or _must_convert(sound, segment, recipe):
                return _convert(sound, start, size, recipe, channel)
            duration_s, sample_rate, suffix = size / sound.samplerate, sound.samplerate, sound.suffix
            share = size / sound.frames
        if data is None and recipe.shard_size:
            data = Path(path).read_bytes()
        num_bytes = round(share * (os.path.getsize(path) if data is None else len(data)))
        return Audio(duration_s, sample_rate, num_bytes, suffix, data if recipe.shard_size else None)
    except FileNotFoundError:
        raise UnusableAudioError("no audio file", "there is no such file") from None
    except OSError as error:
        raise UnusableAudioError(f"cannot be read: {error.strerror}") from None
    except UnusableAudioError:
        raise
    except InputError as error:  # of the decoder
        reason, _, remedy = str(error).removeprefix(f"{path}: ").partition(". ")
        raise UnusableAudioError(f"{reason.rstrip('.')}.".replace("read as audio", "decoded"), remedy) from None


def packed_bytes(ref: AudioRef) -> bytes | None:
    """Return the bytes of a file within a file; None for audio that is a file itself.

    Raises:
        UnusableAudioError: the file is empty.
        OSError: it cannot be read.
    """
    if os.path.getsize(ref.url) == 0:
        raise UnusableAudioError("an empty file")
    if not ref.num_bytes:
        return None
    with open(ref.url, "rb") as file:
        file.seek(ref.byte_offset)
        return file.read(ref.num_bytes)


def _segment_of(audio: AudioRef | bytes) -> _Segment | None:
    if isinstance(audio, bytes) or audio.start_s is None:
        return None
    return _Segment(audio.start_s, audio.duration_s)


def _extent(sound: Sound, segment: _Segment | None) -> tuple[int, int]:
    """Return first frame and number of frames, after reading the last frame to make sure that it is there."""
    start, size = 0, sound.frames
    if segment is not None:
        start, size = round(segment.start_s * sound.samplerate), round(segment.duration_s * sound.samplerate)
        if start + size > sound.frames + TOLERANCE_S * sound.samplerate:
            segment_end_s, end_s = segment.start_s + segment.duration_s, sound.frames / sound.samplerate
            detail = f"the segment ends at {segment_end_s:.3f} s, the recording at {end_s:.3f} s"
            raise UnusableAudioError("a segment that ends after its recording", detail)
        size = min(size, sound.frames - start)
    if size <= 0:
        raise UnusableAudioError("no audio in it")
    if not can_read(sound, start + size - 1):
        raise UnusableAudioError("truncated or damaged")
    return start, size


def _check_duration(duration_s: float, recipe: Recipe) -> None:
    if recipe.min_duration is not None and duration_s < recipe.min_duration:
        raise UnusableAudioError(f"{TOO_SHORT} {recipe.min_duration:g} s")
    if recipe.max_duration is not None and duration_s > recipe.max_duration:
        raise UnusableAudioError(f"{TOO_LONG} {recipe.max_duration:g} s")


def _must_convert(sound: Sound, segment: _Segment | None, recipe: Recipe) -> bool:
    differs = recipe.resample is not None and (sound.samplerate != recipe.resample or sound.channels != 1)
    return differs or (segment is not None and (recipe.segment or recipe.shard_size is not None))


def _check_mix(sound: Sound, start: int, size: int, channel: int | None) -> None:
    """Refuse a channel that is not there, and channels whose mean, which training decodes, is silent."""
    if channel is not None and channel >= sound.channels:
        raise UnusableAudioError("no such channel", f"channel {channel}, counted from 0, of {sound.channels}")
    if channel is None and cancels(blocks(sound, start, size)):
        raise UnusableAudioError(
            "channels that cancel each other: their mean is silent",
            "one of them is inverted; use one channel: prepare --channel 0",
        )


def _convert(sound: Sound, start: int, size: int, recipe: Recipe, channel: int | None) -> Audio:
    """Encode `size` frames from `start` on as 16-bit FLAC: one channel, or those there are, averaged to resample."""
    sound.seek(start)
    samples = sound.read(size, dtype="float32", always_2d=True)
    if len(samples) < size:
        raise UnusableAudioError("truncated or damaged")
    peak = float(np.abs(samples).max())
    if peak > MAX_PEAK:  # clipping would make a square wave of it
        raise UnusableAudioError(*out_of_range(peak))
    if channel is not None:
        samples = samples[:, channel : channel + 1]
    rate = recipe.resample or sound.samplerate
    if recipe.resample:
        samples = mono(samples, None)
        if rate != sound.samplerate:
            from w2v_lightning.data.decode import resample  # imports torch, which takes seconds

            samples = resample(samples, sound.samplerate, rate)
    file = io.BytesIO()
    # Scaled here and not by libsndfile, so that 16-bit audio stays bit for bit the same.
    samples_16bit = np.clip(np.rint(samples * 32768), -32768, 32767).astype(np.int16)
    soundfile.write(file, samples_16bit, rate, format="FLAC", subtype="PCM_16")
    data = file.getvalue()
    return Audio(len(samples) / rate, rate, len(data), ".flac", data, is_converted=True)
