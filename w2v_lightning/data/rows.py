"""Rows of a manifest: read line by line, checked against one schema, the same for manifests of other toolkits.

This is the only place that knows which values a row may have: what comes out of `read_rows` needs no other check.
"""

import gzip
import io
import json
import zlib
from codecs import BOM_UTF8
from collections.abc import Iterator
from functools import partial
from os.path import basename, splitext  # of ten million paths, pathlib's take half a minute
from pathlib import Path
from typing import Annotated, Any, BinaryIO, NotRequired, TypedDict

from w2v_lightning.data.audio_ref import AudioRef
from w2v_lightning.data.lhotse import is_lhotse_cut, rows_from_cut
from w2v_lightning.data.remote import RemoteFiles, is_remote
from w2v_lightning.errors import InputError
from w2v_lightning.runtime.schema import LARGEST_INT, Mismatch, Rule, checker

MAX_LINE_BYTES = 2**26  # 64 MiB; a longer line is not an utterance, and would fill the memory
MAX_SECONDS = 1e9  # 32 years: the number of samples fits in an int64

Name = Annotated[str | int | float | None, Rule("a string or a number")]
Bytes = Annotated[int, Rule("a whole number of bytes", lambda size: 0 <= size < LARGEST_INT)]


class Row(TypedDict):
    """Schema of a row; other keys are ignored, and null means that an optional key is absent."""

    audio_filepath: Annotated[str, Rule("a path or URL", lambda path: path != "")]
    duration: Annotated[float, Rule("a positive number of seconds", lambda seconds: 0 < seconds <= MAX_SECONDS)]
    text: str
    id: NotRequired[Name]
    speaker: NotRequired[Name]
    split: NotRequired[Name]
    offset: NotRequired[Annotated[float, Rule("a number of seconds", lambda s: 0 <= s <= MAX_SECONDS)] | None]
    byte_offset: NotRequired[Bytes | None]
    num_bytes: NotRequired[Annotated[int, Rule("a whole number of bytes", lambda size: size > 0)] | None]
    channel: NotRequired[Annotated[int, Rule("a channel, counted from 0", lambda channel: channel >= 0)] | None]


_check_row = checker(Row)


def read_rows(path: str | Path, escape: bool = False) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, checked row) of each utterance in a manifest, as a stream; see `Manifest.load`.

    Every row has an id and a speaker, as strings, and no value is None. A lhotse cut may make several rows. With
    `escape`, characters that no file can hold (half of a surrogate pair, NUL) become escapes; else they are refused.
    """
    for number, row in read_objects(path):
        try:
            if escape:
                row = {key: _escaped(value) if isinstance(value, str) else value for key, value in row.items()}
            if is_lhotse_cut(row):
                for converted in rows_from_cut(row):
                    yield number, checked_row(converted)
            else:
                yield number, checked_row(row)
        except (InputError, Mismatch) as error:
            raise InputError(f"{path}:{number}: {error}.") from None


def read_objects(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, JSON object) of each line that is not blank.

    Raises:
        InputError: the file cannot be read, or a line is not a JSON object; names file and line.
    """
    try:
        with _open(str(path)) as file:
            for number, line in enumerate(iter(partial(file.readline, MAX_LINE_BYTES), b""), 1):
                if not line.isspace():
                    yield number, _decode(line.removeprefix(BOM_UTF8) if number == 1 else line, path, number)
    except FileNotFoundError:
        raise InputError(f"Manifest not found: {path}.") from None
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None


def checked_row(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row without the keys that are null, and with an id and a speaker as strings.

    Raises:
        Mismatch: a key is missing, or has a value of the wrong type.
    """
    _check_row(row)
    if None in row.values():
        row = {key: value for key, value in row.items() if value is not None}
    row["id"] = as_string(row.get("id")) or _id_from_name(row)
    row["speaker"] = as_string(row.get("speaker"))
    return row


def _escaped(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", r"\x00")


def as_string(value: Any) -> str:
    """Convert an id or speaker to a string: numbers (also 0) are kept, null becomes ''."""
    return "" if value is None else str(value)


def _open(path: str) -> BinaryIO:
    if is_remote(path):
        (data,) = RemoteFiles().fetch([AudioRef(path)])
        file: BinaryIO = io.BytesIO(data)
    else:
        file = open(path.removeprefix("file://"), "rb")  # noqa: SIM115  closed by the caller
    return io.BufferedReader(gzip.open(file)) if path.endswith(".gz") else file


def _decode(line: bytes, path: str | Path, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise InputError(f"{path}:{number}: not UTF-8 text ({error}). Convert the file to UTF-8.") from None
    except (ValueError, RecursionError) as error:
        reason = error if len(line) < MAX_LINE_BYTES else f"the line is over {MAX_LINE_BYTES >> 20} MiB"
        raise InputError(f"{path}:{number}: invalid JSON ({reason}). Write one JSON object per line.") from None
    if not isinstance(row, dict):
        raise InputError(f"{path}:{number}: must be a JSON object, found {type(row).__name__}. Write one per line.")
    return row


def _id_from_name(row: dict[str, Any]) -> str:
    """Make an id, which NeMo's manifests lack: the name of the file, and for a segment its start in ms."""
    stem, _ = splitext(basename(row["audio_filepath"].rstrip("/")))
    return f"{stem}-{round(row['offset'] * 1000):08}" if "offset" in row else stem
