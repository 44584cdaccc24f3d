"""Sources with one row per utterance: manifests (NeMo's and ours), lhotse cuts and supervisions, CSV and TSV."""

import csv
import gzip
import json
import zlib
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, TextIO

from w2v_lightning.data.audio_ref import AudioRef
from w2v_lightning.data.lhotse import row_from_supervision
from w2v_lightning.data.rows import as_string, checked_row, read_objects, read_rows
from w2v_lightning.errors import InputError
from w2v_lightning.prepare import quoting
from w2v_lightning.prepare.audio_paths import AmbiguousPathError, AudioPaths
from w2v_lightning.prepare.columns import ColumnNames
from w2v_lightning.prepare.segments import in_seconds, segment_columns, segment_of
from w2v_lightning.prepare.utterance import Item, Rejected, Utterance
from w2v_lightning.runtime.schema import Mismatch

MISALIGNED = "more cells than columns"  # such as a text with commas that is not quoted


def open_text(path: Path) -> TextIO:
    """Open a text file, gzipped or not, in UTF-8 or, if it begins with that byte order mark, in UTF-16."""
    opener = gzip.open if path.suffix.lower() == ".gz" else open
    with opener(path, "rb") as file:
        is_utf16 = file.read(2) in (BOM_UTF16_LE, BOM_UTF16_BE)
    return opener(path, "rt", encoding="utf-16" if is_utf16 else "utf-8-sig", newline="")


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
    paths = AudioPaths(path)
    for _, row in read_rows(path):
        yield _item(row, path, paths)
    paths.report()


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
    paths = AudioPaths(path)
    for number, supervision in read_objects(path):
        if str(supervision.get("recording_id")) not in recordings:
            yield Rejected(str(path), str(supervision.get("id", "")), "its recording is not in the RecordingSet")
            continue
        try:
            yield _item(checked_row(row_from_supervision(supervision, recordings)), path, paths)
        except (InputError, Mismatch) as error:
            raise InputError(f"{path}:{number}: {error}.") from None
    paths.report()


def read_table(path: Path, names: ColumnNames = ColumnNames()) -> Iterator[Item]:  # noqa: B008  it is immutable
    """Yield the utterances of a CSV or TSV file.

    Raises:
        InputError: the column for the path or for the text is missing, those for segments are ambiguous or not in
            seconds, or the file is not a valid table.
    """
    return in_seconds(_rows_of_table(path, names), path)


def _rows_of_table(path: Path, names: ColumnNames) -> Iterator[Item]:
    first_line, row_ends = 1, 0
    try:
        with open_text(path) as file:
            dialect = quoting.dialect(file, "," if ".csv" in path.suffixes else "\t")
            file.seek(0)
            table = csv.DictReader(file, **dialect)
            columns = columns_of(table.fieldnames or [], path, names)
            first_line = table.line_num + 1
            paths = AudioPaths(path)
            for row in table:
                row_ends = table.line_num
                surplus = row.pop(None, [])
                if row_ends > first_line and quoting.holds_rows(row.values(), dialect["delimiter"], len(row)):
                    raise csv.Error(f"a quoted cell ends at line {row_ends} only, and holds other rows")
                cells = {key: row[column] or "" for key, column in columns.items()}
                if any(surplus):
                    detail = f"{path}:{row_ends}: {len(row) + len(surplus)} cells for {len(row)} columns"
                    yield Rejected(str(path), cells.get("id") or cells["path"], MISALIGNED, detail)
                else:
                    yield item_of_table(cells, path, row_ends, paths)
                first_line = row_ends + 1
            paths.report()
    except csv.Error as error:
        raise InputError(
            f"{path}:{first_line}: invalid table: {error}. If its quotation marks are ordinary characters, save it"
            " with tabs, as .tsv; otherwise close the quotation mark that this row opens."
        ) from None
    except UnicodeError as error:
        raise InputError(
            f"{path}: not UTF-8 text ({error}). Convert it, for example: iconv -f WINDOWS-1252 -t UTF-8 OLD > NEW"
        ) from None
    except (EOFError, zlib.error) as error:
        raise InputError(f"{path}: invalid table: {error}.") from None


def columns_of(header: Sequence[str], path: Path, names: ColumnNames) -> dict[str, str]:
    """Return the column for each of path, text, speaker, id, start, end, duration; only the first two are required.

    Raises:
        InputError: one that is required is missing, or those for segments are ambiguous.
    """
    return names.find(header, path) | segment_columns({name.strip().lower(): name for name in header}, path)


def item_of_table(row: dict[str, str], path: Path, line: int, paths: AudioPaths) -> Item:
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
    row_of_manifest = {**row, "duration": 0.0, **segment, "id": row.get("id") or name, "audio_filepath": row["path"]}
    return _item(row_of_manifest, path, paths)


def _item(row: Mapping[str, Any], path: Path, paths: AudioPaths) -> Item:
    if "://" in row["audio_filepath"]:
        return Rejected(str(path), row["id"], "audio at a URL is not supported; download it first")
    try:
        audio = paths.find(row["audio_filepath"])
    except AmbiguousPathError as error:
        return Rejected(str(path), row["id"], "no audio file", str(error))
    return Utterance(
        id=row["id"],
        text=row["text"],
        audio=AudioRef(
            audio,
            row.get("byte_offset", 0),
            row.get("num_bytes", 0),
            row.get("offset"),
            row.get("duration", 0.0),
            row.get("channel"),
        ),
        source=str(path),
        speaker=as_string(row.get("speaker")),
        split=as_string(row.get("split")),
    )
