"""Tables in JSON: an object per line, or one array of objects, with column names as in a CSV file."""

import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from w2v_lightning.data.rows import read_objects
from w2v_lightning.errors import InputError
from w2v_lightning.prepare.audio_paths import AudioPaths
from w2v_lightning.prepare.columns import ColumnNames
from w2v_lightning.prepare.segments import in_seconds
from w2v_lightning.prepare.tables import columns_of, item_of_table, open_text
from w2v_lightning.prepare.utterance import Item
from w2v_lightning.runtime.schema import shown


def is_array(path: Path) -> bool:
    """Return whether a JSON file holds an array, not lines."""
    try:
        with open_text(path) as file:
            return file.read(64).lstrip()[:1] == "["
    except (OSError, EOFError, UnicodeError, zlib.error):
        return False


def read_json_table(path: Path, names: ColumnNames) -> Iterator[Item]:
    """Yield the utterances of a table in JSON.

    Raises:
        InputError: a row has no path or no text, or a cell is neither a string nor a number.
    """
    return in_seconds(_items(path, names), path)


def _items(path: Path, names: ColumnNames) -> Iterator[Item]:
    columns_of_keys: dict[tuple[str, ...], dict[str, str]] = {}
    paths = AudioPaths(path)
    for number, row in _objects_of_array(path) if is_array(path) else read_objects(path):
        keys = tuple(row)
        if keys not in columns_of_keys:
            columns_of_keys[keys] = columns_of(keys, Path(f"{path}:{number}"), names)
        cells = {key: _cell(row[column], column, f"{path}:{number}") for key, column in columns_of_keys[keys].items()}
        yield item_of_table(cells, path, number, paths)
    paths.report()


def _cell(value: Any, column: str, where: str) -> str:
    if isinstance(value, dict) and isinstance(value.get("path"), str):  # an Audio of a Hugging Face dataset
        value = value["path"]
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise InputError(f"{where}: {column!r} must be a string or a number, found {shown(value)}.")
    return str(value)


def _objects_of_array(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (number of the element, from 1 on, object)."""
    try:
        with open_text(path) as file:
            elements = json.load(file)
    except (OSError, EOFError, zlib.error, ValueError, RecursionError) as error:
        raise InputError(f"{path}: invalid JSON ({error}).") from None
    for number, element in enumerate(elements, 1):
        if not isinstance(element, dict):
            raise InputError(f"{path}: element {number} must be a JSON object, found {shown(element)}.")
        yield number, element
