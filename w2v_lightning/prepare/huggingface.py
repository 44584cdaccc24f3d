"""Folder of a Hugging Face dataset: parquet files as on the Hub, or arrow files as save_to_disk writes them."""

import re
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from w2v_lightning.data.audio_ref import AudioRef
from w2v_lightning.data.manifest import as_string
from w2v_lightning.errors import InputError
from w2v_lightning.prepare.folder import walk
from w2v_lightning.prepare.tables import SPEAKER_COLUMNS, TEXT_COLUMNS
from w2v_lightning.prepare.utterance import Item, Rejected, Utterance

if TYPE_CHECKING:
    import pyarrow

SUFFIXES = (".parquet", ".arrow")
ROWS_PER_BATCH = 16  # small, because each row holds a whole audio file


def read_dataset(root: Path) -> Iterator[Item]:
    """Yield the utterances of all parquet and arrow files at or below `root`.

    Raises:
        InputError: pyarrow is not installed, or a file has no Audio column or no text column, or is damaged.
    """
    paths = [root] if root.is_file() else (folder / name for folder, names in walk(root) for name in names)
    for path in paths:
        if path.suffix in SUFFIXES:
            yield from _read_file(path, _split_of(path, root))


def require_pyarrow() -> None:
    """Make sure that pyarrow, an optional dependency, is installed.

    Raises:
        InputError: it is not; says how to install it.
    """
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise InputError(
            "Parquet and arrow files are read with pyarrow, which is not installed; run:"
            " pip install 'w2v-lightning[hf]'"
        ) from None


def _split_of(path: Path, root: Path) -> str:
    """Return `train` for train-00000-of-00012.parquet, and for train/data-00000-of-00001.arrow in a DatasetDict."""
    if path.parent.parent == root and (root / "dataset_dict.json").is_file():
        return path.parent.name
    match = re.fullmatch(r"(.+)-\d{5}-of-\d{5}", path.stem)
    return match[1] if match and match[1] != "data" else ""


def _read_file(path: Path, split: str) -> Iterator[Item]:
    import pyarrow as pa

    number = 0
    try:
        for batch in _batches(path):
            for row in batch.to_pylist():
                yield _item(row, split, path, number)
                number += 1
    except pa.ArrowInvalid as error:
        raise InputError(f"{path}: damaged, or not a file of a dataset: {error}.") from None


def _batches(path: Path) -> Iterator["pyarrow.RecordBatch"]:
    import pyarrow as pa
    from pyarrow import parquet

    if path.suffix == ".parquet":
        # A buffered stream is read piece by piece; without it, pyarrow holds whole columns of a row group in memory.
        with parquet.ParquetFile(path, buffer_size=1 << 20) as file:
            columns = list(_columns(file.schema_arrow, path).values())
            yield from _renamed(file.iter_batches(ROWS_PER_BATCH, columns=columns), path)
    else:
        with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as stream:
            batches = (b.slice(i, ROWS_PER_BATCH) for b in stream for i in range(0, len(b), ROWS_PER_BATCH))
            yield from _renamed(batches, path)


def _renamed(batches: Iterator["pyarrow.RecordBatch"], path: Path) -> Iterator["pyarrow.RecordBatch"]:
    """Select the columns that are needed, and rename them to the same names for every dataset."""
    for batch in batches:
        columns = _columns(batch.schema, path)
        yield batch.select(list(columns.values())).rename_columns(list(columns))


def _columns(schema: "pyarrow.Schema", path: Path) -> dict[str, str]:
    """Return the names of the columns for audio, text, speaker and id; the last two may be missing."""
    from pyarrow import types

    audio = [field.name for field in schema if types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0]
    candidates = {"text": TEXT_COLUMNS, "speaker": SPEAKER_COLUMNS, "id": ("id",)}
    columns = {key: name for key, names in candidates.items() for name in reversed(names) if name in schema.names}
    required = {"Audio column": bool(audio), f"column {' or '.join(TEXT_COLUMNS)}": "text" in columns}
    for description, is_there in required.items():
        if not is_there:
            raise InputError(f"{path} has no {description}; its columns are {', '.join(schema.names)}.")
    return {"audio": audio[0], **columns}


def _item(row: dict[str, Any], split: str, path: Path, number: int) -> Item:
    audio = row["audio"] or {}
    name = audio.get("path") or ""
    utterance_id = as_string(row.get("id")) or PurePath(name).stem or f"{path.stem}-{number:08}"
    if audio.get("bytes") is None and not name:
        return Rejected(str(path), utterance_id, "no audio")
    return Utterance(
        id=utterance_id,
        text=row["text"] or "",
        audio=AudioRef(name) if audio.get("bytes") is None else audio["bytes"],
        source=str(path),
        speaker=as_string(row.get("speaker")),
        split=split,
    )
