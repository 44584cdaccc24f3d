"""FLAC: header and samples.

Source: RFC 9639; STREAMINFO (section 8.2) is always the first block.
"""

from dataclasses import dataclass

import miniaudio
import numpy as np

HEADER_BYTES = 42  # "fLaC", the header of the first block, and the block


@dataclass(frozen=True)
class StreamInfo:
    """Header of a FLAC stream."""

    sample_rate: int
    channels: int
    bits: int  # per sample
    num_samples: int  # per channel; 0 if the encoder did not know it
    md5: bytes  # of the decoded samples; all zero if the encoder did not compute it


def stream_info(data: bytes) -> StreamInfo | None:
    """Parse the header of FLAC `data`; None if the data is not FLAC."""
    if not data.startswith(b"fLaC") or len(data) < HEADER_BYTES:
        return None
    fields = int.from_bytes(data[18:26], "big")  # 20 bits rate, 3 channels, 5 bits per sample, 36 samples
    return StreamInfo(
        sample_rate=fields >> 44,
        channels=(fields >> 41 & 7) + 1,
        bits=(fields >> 36 & 31) + 1,
        num_samples=fields & (1 << 36) - 1,
        md5=data[26:HEADER_BYTES],
    )


def decode_16_bit(data: bytes) -> tuple[np.ndarray, int] | None:
    """Decode a 16-bit FLAC stream with dr_flac; return samples (T, channels), int16, and the sample rate.

    dr_flac gives the same samples as libsndfile at about 1.5 times its speed, but silently drops a damaged frame, so
    that there are fewer samples than the header says. Returns None for such data, and for any other format: the caller
    must use libsndfile for these.
    """
    info = stream_info(data)
    if info is None or info.bits != 16 or info.num_samples == 0:
        return None
    try:
        sound = miniaudio.flac_read_s16(data)
    except miniaudio.DecodeError:
        return None
    samples = np.frombuffer(sound.samples, dtype=np.int16).reshape(-1, info.channels)
    return (samples, info.sample_rate) if len(samples) == info.num_samples else None


def decode_unknown_length(data: bytes) -> tuple[np.ndarray, int]:
    """Decode a FLAC stream whose header has no number of samples, as an encoder that writes to a pipe leaves it.

    Returns:
        Samples (T, channels), float32 in [-1, 1], and the sample rate in Hz.

    Raises:
        miniaudio.DecodeError: it cannot be decoded.
    """
    sound = miniaudio.flac_read_s32(data)
    samples_TC = np.frombuffer(sound.samples, dtype=np.int32).reshape(-1, sound.nchannels)
    return (samples_TC * 2.0**-31).astype(np.float32), sound.sample_rate


def pcm_bytes(samples_TC: np.ndarray, bits: int) -> np.ndarray:
    """Convert integer samples to the form that FLAC's MD5 is computed on: interleaved, little-endian, whole bytes."""
    if bits == 16:
        return samples_TC.astype("<i2")
    as_bytes = samples_TC.astype("<i4").reshape(-1, 1).view(np.uint8)
    return np.ascontiguousarray(as_bytes[:, : (bits + 7) // 8])
