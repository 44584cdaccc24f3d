"""Audio in the columns of parquet and arrow files: bytes, samples, or paths, alone or in a struct."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import soundfile

from w2v_lightning.data.audio_ref import AudioRef
from w2v_lightning.prepare.columns import PATH_COLUMNS

if TYPE_CHECKING:
    import pyarrow

RATE_COLUMNS = ("sampling_rate", "sample_rate", "sr")
MAX_RATE_HZ = 1_000_000
# How many 16-bit samples are equal in floating point and in FLAC.
SCALE_16BIT = 32768


class NoAudioError(Exception):
    """Reason why a cell has no usable audio."""


def audio_columns(schema: "pyarrow.Schema") -> Iterator[str]:
    """Yield the names of columns that may hold audio, the most certain first.

    These are an Audio of a Hugging Face dataset (a struct with bytes or an array), binary columns, lists of samples
    beside a column of the sample rate, and strings with the usual name of a column of paths.
    """
    from pyarrow import types

    def has(field: "pyarrow.Field", name: str) -> bool:
        return types.is_struct(field.type) and field.type.get_field_index(name) >= 0

    def is_list(field: "pyarrow.Field") -> bool:
        kind = field.type
        return (types.is_list(kind) or types.is_large_list(kind)) and not types.is_string(kind.value_type)

    yield from (field.name for field in schema if has(field, "bytes"))
    yield from (field.name for field in schema if has(field, "array") and has(field, "sampling_rate"))
    yield from (field.name for field in schema if types.is_binary(field.type) or types.is_large_binary(field.type))
    if rate_column(schema):
        yield from (field.name for field in schema if is_list(field))
    strings = {f.name.lower(): f.name for f in schema if types.is_string(f.type) or types.is_large_string(f.type)}
    yield from (strings[name] for name in PATH_COLUMNS if name in strings)


def rate_column(schema: "pyarrow.Schema") -> str | None:
    """Return the column of the sample rate, of samples that are in a column of their own."""
    return next((name for name in RATE_COLUMNS if name in schema.names), None)


def audio_of_cell(value: Any, rate_hz: Any, folders: list[Path]) -> AudioRef | bytes:
    """Return the audio of a cell.

    Args:
        value: the cell, as pyarrow converts it to Python.
        rate_hz: sample rate of its row, if there is one.
        folders: folders that its path may be relative to.

    Raises:
        NoAudioError: there is no usable audio; says why.
    """
    if isinstance(value, dict):
        if value.get("array") is not None:
            return _encoded(value["array"], value.get("sampling_rate"))
        value = value.get("bytes") if value.get("bytes") is not None else value.get("path")
    if isinstance(value, bytes):
        return value
    if isinstance(value, list):
        return _encoded(value, rate_hz)
    if not isinstance(value, str) or not value:
        raise NoAudioError("no audio")
    candidates = [folder / value for folder in folders]
    return AudioRef(str(next((path for path in candidates if path.is_file()), candidates[0])))


def _encoded(samples: Any, rate_hz: Any) -> bytes:
    """Return samples as FLAC if they are of 16 bits, else as WAV in float32."""
    if type(rate_hz) is not int or not 0 < rate_hz <= MAX_RATE_HZ:
        raise NoAudioError(f"samples with an invalid sample rate ({rate_hz})")
    try:
        array = np.asarray(samples)
        array = array / SCALE_16BIT if array.dtype.kind == "i" else array.astype(np.float32)
    except (ValueError, TypeError):
        raise NoAudioError("samples that are not numbers") from None
    if array.ndim not in (1, 2) or array.size == 0:
        raise NoAudioError("no audio in it")
    array = array.T if array.ndim == 2 and array.shape[0] < array.shape[1] else array  # channels last
    scaled = array * SCALE_16BIT
    file = io.BytesIO()
    is_16bit = bool(np.all(scaled == np.clip(np.rint(scaled), -SCALE_16BIT, SCALE_16BIT - 1)))
    if is_16bit and rate_hz <= 655_350:
        soundfile.write(file, scaled.astype(np.int16), rate_hz, format="FLAC", subtype="PCM_16")
    else:
        soundfile.write(file, array, rate_hz, format="WAV", subtype="FLOAT")
    return file.getvalue()
