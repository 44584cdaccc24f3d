"""MP3: its true length is known only once it is decoded.

A file need not say how long it is: without the header of Xing or LAME in its first frame, libsndfile guesses from the
bit rate of that frame, and of joined files such a header counts the first alone. So libsndfile never decodes MP3 here.
"""

import re

import miniaudio
import numpy as np

# A frame header of layer III (two bytes of flags, two of side information), then the count of Xing or LAME.
TAG = re.compile(rb"\xff[\xe2-\xe7\xf2-\xf7]..(?:.{9}|.{17}|.{32})(Xing|Info)", re.DOTALL)
HAS_FRAMES, HAS_BYTES = 1, 2  # flags of the count
TAIL_BYTES = 4096  # of ID3v1, APE or Lyrics3 behind the last frame; more than that is audio


def is_mp3(head: bytes) -> bool:
    """Return whether data is MP3 by its first bytes: a frame header of MPEG layer III, or an ID3 tag without FLAC."""
    if head.startswith(b"ID3"):
        return True
    if len(head) < 3 or head[0] != 0xFF:
        return False
    version, layer, bit_rate, rate = head[1] >> 3 & 3, head[1] >> 1 & 3, head[2] >> 4, head[2] >> 2 & 3
    return head[1] >> 5 == 7 and version != 1 and layer == 1 and bit_rate != 15 and rate != 3


def decode(data: bytes) -> tuple[np.ndarray, int, str]:
    """Decode all of an MP3 file, also of several that were joined.

    Returns:
        Samples (T, channels), float32; the sample rate in Hz; how the file is truncated, "" if it is whole or does not
        tell.

    Raises:
        miniaudio.DecodeError: nothing in it can be decoded.
    """
    tag = TAG.search(data, 0, id3_bytes(data[:10]) + TAIL_BYTES)
    stated_bytes = _stated_bytes(data, tag.start(1)) if tag else 0
    actual_bytes = len(data) - tag.start() if tag else 0
    if stated_bytes and actual_bytes > stated_bytes + TAIL_BYTES:  # the count is that of the first of joined files
        data = TAG.sub(lambda match: match[0][:-4] + bytes(4), data)
    sound = miniaudio.mp3_read_f32(data)
    samples_TC = np.frombuffer(sound.samples, dtype=np.float32).reshape(-1, sound.nchannels)
    actual_s = len(samples_TC) / sound.sample_rate
    is_truncated = actual_bytes < stated_bytes - 1
    header_s = actual_s * stated_bytes / max(actual_bytes, 1)
    shortage = f"its header says about {header_s:.3f} s of audio, {actual_s:.3f} s are there" if is_truncated else ""
    return samples_TC, sound.sample_rate, shortage


def id3_bytes(head: bytes) -> int:
    """Return the size of an ID3v2 tag from its first 10 bytes, 0 if there is none; 7 bits of each byte count."""
    if len(head) < 10 or not head.startswith(b"ID3"):
        return 0
    return 10 + sum((byte & 127) << 7 * (3 - i) for i, byte in enumerate(head[6:10]))


def _stated_bytes(data: bytes, tag: int) -> int:
    """Return the number of bytes from the frame of the tag to the end of the audio; 0 if the tag does not say."""
    flags = int.from_bytes(data[tag + 4 : tag + 8], "big")
    at = tag + 8 + (4 if flags & HAS_FRAMES else 0)
    return int.from_bytes(data[at : at + 4], "big") if flags & HAS_BYTES else 0
