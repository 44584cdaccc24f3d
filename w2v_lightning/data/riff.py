"""WAV files whose chunks libsndfile does not follow: several with samples, or of size 0 from a pipe."""

import struct
from dataclasses import dataclass

from w2v_lightning.data.sound import UNKNOWN_BYTES

MAX_CHUNKS = 1000


@dataclass(frozen=True)
class Chunks:
    """Content of a WAV file."""

    form: bytes  # of the `fmt ` chunk
    samples: bytes  # of all `data` chunks
    missing_bytes: int  # of samples that the header counts and the file does not hold


def chunks_of(data: bytes) -> Chunks | None:
    """Return the format and the samples of a WAV file; None if the data is not one, or has none.

    A `data` chunk of size 0 that no other chunk follows is from a program that wrote to a pipe: it goes to the end.
    """
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        return None
    form, parts, missing_bytes, position = b"", [], 0, 12
    for _ in range(MAX_CHUNKS):
        if position + 8 > len(data):
            break
        name, size = data[position : position + 4], int.from_bytes(data[position + 4 : position + 8], "little")
        start = position + 8
        if name == b"data" and size == 0 and not data[start : start + 4].isalnum():
            size = len(data) - start
        if name == b"fmt ":
            form = data[start : start + size]
        elif name == b"data":
            parts.append(data[start : start + size])
            if size < UNKNOWN_BYTES:
                missing_bytes += max(0, start + size - len(data))
        position = start + size + size % 2
    return Chunks(form, b"".join(parts), missing_bytes) if form and any(parts) else None


def rewritten(data: bytes) -> bytes | None:
    """Return the same WAV file with one `data` chunk of the true size; None if it has no samples at all."""
    chunks = chunks_of(data)
    if chunks is None:
        return None
    body = b"WAVE" + _chunk(b"fmt ", chunks.form) + _chunk(b"data", chunks.samples)
    return _chunk(b"RIFF", body)


def _chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", min(len(content), 2**32 - 1)) + content + bytes(len(content) % 2)
