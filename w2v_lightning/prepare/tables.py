"""Sources with one row per utterance: manifests (NeMo's and ours), lhotse cuts and supervisions, CSV and TSV."""

import csv
import gzip
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path, PurePath
from typing import Any, TextIO

from w2v_lightning.data.audio_ref import AudioRef
from w2v_lightning.data.lhotse import row_from_supervision
from w2v_lightning.data.rows import as_string, checked_row, read_objects, read_rows
from w2v_lightning.errors import InputError
from w2v_lightning.prepare.audio_paths import AudioPaths
from w2v_lightning.prepare.columns import ColumnNames
from w2v_lightning.prepare.segments import in_seconds, segment_columns, segment_of
from w2v_lightning.prepare.utterance import Item, Rejected, Utterance
from w2v_lightning.runtime.schema import Mismatch

QUOTED = re.compile(r'"(?:[^"]|"")*""(?:[^"]|"")*"')  # a cell that csv quotes because it holds a quotation mark


def open_text(path: Path) -> TextIO:
    """Open a text file, gzipped or not."""
    opener = gzip.open if path.suffix.lower() == ".gz" else open
    return opener(path, "rt", encoding="utf-8-sig", newline="")


def first_json_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in the first line that is not blank; empty if it is not one."""
    try:
        with open_text(path) as file:
            row = json.loads(next((line for line in file if line.strip()), "{}"))
    except (OSError, EOFError, ValueError, RecursionError, zlib.error):
        return {}
    return row if isinstance(row, dict) else {}


def count_rows(path: Path) -> int:
    """Return the number of lines, about the number of utterances; 0 if the file cannot be read."""
    try:
        with open_text(path) as file:
            return sum(1 for line in file)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError):
        return 0  # the reader raises the error


def read_manifest(path: Path) -> Iterator[Item]:
    """Yield the utterances of a NeMo manifest, of a manifest of ours, or of a lhotse CutSet."""
    for _, row in read_rows(path):
        yield _item(row, path)


def recordings_beside(supervisions: Path) -> Path:
    """Return the path of the RecordingSet of a SupervisionSet: lhotse's names differ only in "recordings".

    Raises:
        InputError: the file does not exist.
    """
    recordings = supervisions.with_name(supervisions.name.replace("supervisions", "recordings"))
    need = f"{supervisions} holds lhotse supervisions, which need their RecordingSet"
    if recordings == supervisions:
        raise InputError(
            f'{need}, found by writing "recordings" for "supervisions" in the file name.'
            " Rename both files, or export a CutSet."
        )
    if not recordings.is_file():
        raise InputError(f"{need}: {recordings.name} is missing beside it. Put it there, or export a CutSet.")
    return recordings


def read_supervisions(path: Path) -> Iterator[Item]:
    """Yield the utterances of a lhotse SupervisionSet; its RecordingSet is held in memory."""
    recordings = {str(recording.get("id")): recording for _, recording in read_objects(recordings_beside(path))}
    for number, supervision in read_objects(path):
        if str(supervision.get("recording_id")) not in recordings:
            yield Rejected(str(path), str(supervision.get("id", "")), "its recording is not in the RecordingSet")
            continue
        try:
            yield _item(checked_row(row_from_supervision(supervision, recordings)), path)
        except (InputError, Mismatch) as error:
            raise InputError(f"{path}:{number}: {error}.") from None


def read_table(path: Path, names: ColumnNames = ColumnNames()) -> Iterator[Item]:  # noqa: B008  it is immutable
    """Yield the utterances of a CSV or TSV file.

    Raises:
        InputError: the column for the path or for the text is missing, those for segments are ambiguous or not in
            seconds, or the file is not a valid table.
    """
    return in_seconds(_rows_of_table(path, names), path)


def _rows_of_table(path: Path, names: ColumnNames) -> Iterator[Item]:
    row_ends = 0  # line
    try:
        with open_text(path) as file:
            dialect = _dialect(file, "," if ".csv" in path.suffixes else "\t")
            file.seek(0)
            table = csv.DictReader(file, **dialect)
            header = table.fieldnames or []
            columns = columns_of(header, path, names)
            if split := next((name for name in header if name.strip().lower() == "split"), None):
                columns["split"] = split
            for row in table:
                row_ends = table.line_num
                cells = {key: row[column] or "" for key, column in columns.items()}
                yield item_of_table(cells, path, row_ends)
    except csv.Error as error:
        raise InputError(
            f"{path}:{row_ends + 1}: invalid table: {error}. If its quotation marks are ordinary characters, save it"
            " with tabs, as .tsv; otherwise close the quotation mark that this row opens."
        ) from None
    except (UnicodeDecodeError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: invalid table: {error}.") from None


def _dialect(file: Iterable[str], usual: str) -> dict[str, Any]:
    """Return the arguments of csv's reader for a table.

    The delimiter is another than its suffix says if the header has only that. In Common Voice's .tsv files, and in
    tables with |, quotation marks are ordinary characters, unless a spreadsheet or pandas has written the file again.
    """
    lines = iter(file)
    header = next(lines, "")
    delimiter = usual if usual in header else next((each for each in "|;\t," if each in header), usual)
    if delimiter in "\t|" and not _is_quoted(lines, delimiter):
        return {"delimiter": delimiter, "quoting": csv.QUOTE_NONE}
    return {"delimiter": delimiter, "strict": True}


def _is_quoted(lines: Iterable[str], delimiter: str) -> bool:
    """Return True if every cell with a quotation mark is in the form that csv writes, and there is one."""
    has_quoted = False
    for cell in (cell for line in lines if '"' in line for cell in line.rstrip("\r\n").split(delimiter)):
        if '"' in cell:
            if not QUOTED.fullmatch(cell):
                return False
            has_quoted = True
    return has_quoted


def columns_of(header: Sequence[str], path: Path, names: ColumnNames) -> dict[str, str]:
    """Return the column for each of path, text, speaker, id, start, end, duration; only the first two are required.

    Raises:
        InputError: one that is required is missing, or those for segments are ambiguous.
    """
    return names.find(header, path) | segment_columns({name.strip().lower(): name for name in header}, path)


def item_of_table(row: dict[str, str], path: Path, line: int) -> Item:
    """Return the utterance in a row of `path`, whose cells are named as by `columns_of`."""
    if not row["path"]:
        return Rejected(str(path), row.get("id", ""), "no audio file")
    if any("\0" in cell for cell in row.values()):
        raise InputError(f"{path}:{line}: holds a NUL byte: the file is damaged, or is not a text file.")
    audio = PurePath(row["path"])
    name = audio.stem if audio.is_absolute() else str(audio.with_suffix(""))
    try:
        segment = segment_of(row)
    except ValueError:
        times = ", ".join(f"{key} {row[key]!r}" for key in ("start", "end", "duration") if key in row)
        utterance_id, detail = row.get("id") or name, f"{path}:{line}: {times}"
        return Rejected(str(path), utterance_id, "invalid segment times", detail)
    if segment:
        name = f"{name}-{round(1000 * segment['offset']):08}"  # the same id as for a manifest without ids
    return _item({**row, "duration": 0.0, **segment, "id": row.get("id") or name, "audio_filepath": row["path"]}, path)


def _item(row: Mapping[str, Any], path: Path) -> Item:
    if "://" in row["audio_filepath"]:
        return Rejected(str(path), row["id"], "audio at a URL is not supported; download it first")
    return Utterance(
        id=row["id"],
        text=row["text"],
        audio=AudioRef(
            _paths_of(path).find(row["audio_filepath"]),
            row.get("byte_offset", 0),
            row.get("num_bytes", 0),
            row.get("offset"),
            row.get("duration", 0.0),
            row.get("channel"),
        ),
        source=str(path),
        speaker=as_string(row.get("speaker")),
        split=PurePath(str(row.get("split") or "")).name,  # without folders, because it becomes part of a file name
    )


@lru_cache(4)  # the tables that are being read
def _paths_of(table: Path) -> AudioPaths:
    return AudioPaths(table)
