"""Folder of a Hugging Face dataset: parquet files as on the Hub, or arrow files as save_to_disk writes them."""

from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from w2v_lightning.data.rows import as_string
from w2v_lightning.errors import InputError
from w2v_lightning.prepare.arrow_files import ArrowFiles
from w2v_lightning.prepare.columns import ColumnNames
from w2v_lightning.prepare.folder import walk
from w2v_lightning.prepare.readers.arrow_audio import NoAudioError, audio_columns, audio_of_cell, rate_column
from w2v_lightning.prepare.splits import NUMBER, innermost, of_file
from w2v_lightning.prepare.utterance import Item, Rejected, Utterance
from w2v_lightning.runtime.schema import shown

if TYPE_CHECKING:
    import pyarrow

SUFFIXES = (".parquet", ".arrow")


def read_dataset(root: Path, names: ColumnNames) -> Iterator[Item]:
    """Yield the utterances of all parquet and arrow files at or below `root`.

    Raises:
        InputError: pyarrow is not installed, or a file has no column of audio or none of text, or is damaged.
    """
    paths = [root] if root.is_file() else (folder / name for folder, files in walk(root) for name in files)
    with ArrowFiles() as files:
        for path in paths:
            if path.suffix in SUFFIXES:
                yield from _read_file(path, root, names, files)


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
    """Return `train` for train-00000-of-00012.parquet, train.parquet, train/0000.parquet and what save_to_disk writes.

    In a DatasetDict on disk, and before -00000-of-00012, any name is that of a split.
    """
    if path.parent.parent == root and (root / "dataset_dict.json").is_file():
        return path.parent.name
    name, is_numbered = NUMBER.subn("", path.stem)
    if is_numbered and "-of-" in path.stem and name != "data":
        return name
    return of_file(path.name) or innermost(path.relative_to(root).parts[:-1])


def _read_file(path: Path, root: Path, names: ColumnNames, files: ArrowFiles) -> Iterator[Item]:
    columns = _columns(files.schema(path), path, names)
    split = _split_of(path, root)
    folders = [*dict.fromkeys([path.parent, root if root.is_dir() else root.parent, root.parent, Path()])]
    number = 0
    for batch in files.batches(path, list(columns.values())):
        for row in batch.rename_columns(list(columns)).to_pylist():
            yield _item(row, split, path, number, folders)
            number += 1


def _columns(schema: "pyarrow.Schema", path: Path, names: ColumnNames) -> dict[str, str]:
    """Return the columns for audio, text, speaker, id, split and sample rate; only the first two are required."""
    audio = names.path or next(audio_columns(schema), None)
    if audio is None:
        raise InputError(
            f"{path} has no column of audio; its columns are {', '.join(schema.names)}. Name one with --path_column, or"
            " prepare the original of a dataset that was processed for training (input_values, labels)."
        )
    columns = names.find(schema.names, path, required=["text"]) | {"audio": audio}
    columns.pop("path", None)
    rate = rate_column(schema)
    return columns | ({"rate": rate} if rate else {})


def _item(row: dict[str, Any], split: str, path: Path, number: int, folders: list[Path]) -> Item:
    cell = row["audio"]
    name = cell.get("path") if isinstance(cell, dict) else cell
    utterance_id = as_string(row.get("id")) or (PurePath(name).stem if isinstance(name, str) else "")
    utterance_id = utterance_id or f"{path.stem}-{number:08}"
    try:
        audio = audio_of_cell(cell, row.get("rate"), folders)
    except NoAudioError as error:
        return Rejected(str(path), utterance_id, str(error))
    if not isinstance(row["text"], str | int | float | None):
        return Rejected(str(path), utterance_id, "a transcript that is not text", shown(row["text"]))
    text, speaker = as_string(row["text"]), as_string(row.get("speaker"))
    return Utterance(utterance_id, text, audio, str(path), speaker, as_string(row.get("split")) or split)
