"""Sources of `prepare`, whose kind is recognised from their files."""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from w2v_lightning.data.lhotse import is_lhotse_cut
from w2v_lightning.errors import InputError
from w2v_lightning.prepare import huggingface, splits, tables, unread
from w2v_lightning.prepare.archive import SUFFIXES as ARCHIVE_SUFFIXES
from w2v_lightning.prepare.archive import read_archive, read_archives
from w2v_lightning.prepare.columns import ColumnNames
from w2v_lightning.prepare.folder import read_folder, walk
from w2v_lightning.prepare.readers import fairseq, json_table, ljspeech, nemo_tarred
from w2v_lightning.prepare.readers.layouts import LAYOUTS
from w2v_lightning.prepare.utterance import AUDIO_SUFFIXES, Item, Utterance

SUPPORTED = (
    "Supported are a folder of audio with transcripts, such as LibriSpeech, Common Voice, LJSpeech, MLS, TIMIT,"
    " Kaldi or audiofolder, a .tar or .tar.gz of one, a webdataset, a NeMo manifest, a lhotse CutSet or SupervisionSet,"
    " a Shar folder, a list of fairseq, a table (.csv, .tsv, .json, .jsonl), and a Hugging Face dataset; see"
    " `prepare --help`."
)


@dataclass(frozen=True)
class Source:
    """Corpus that the command line names."""

    path: Path
    kind: str
    reader: Callable[[Path], Iterator[Item]]
    files: tuple[Path, ...]  # files and folders whose changes make another source of it
    is_packed: bool = False  # its audio is inside other files
    is_table: bool = False  # it has one row per utterance, and its size is not that of its audio
    may_hold_others: bool = False  # a folder that may hold corpora of other kinds
    names: ColumnNames = field(default_factory=ColumnNames)
    split: str = ""  # of utterances that the source gives none

    def __iter__(self) -> Iterator[Item]:
        for item in self.reader(self.path):
            if isinstance(item, Utterance):
                split = splits.as_name(item.split or self.split)
                item = item if split == item.split else replace(item, split=split)
            yield item
        if self.may_hold_others:
            unread.report_others(self.path, self.kind)

    def fingerprint(self) -> dict[str, str | int]:
        """Return path, kind, size, named columns, and a digest of path, size and modification time of every file."""
        digest, size = hashlib.sha256(), 0
        for path in self.files:
            for file, status in _files(path):
                digest.update(f"{file}\0{status.st_size}\0{status.st_mtime_ns}\n".encode(errors="surrogateescape"))
                size += status.st_size
        digest_16 = digest.hexdigest()[:16]
        return {"path": str(self.path), "kind": self.kind, "bytes": size, "digest": digest_16, **self.names.given()}


def with_splits(sources: Sequence[Source]) -> list[Source]:
    """Return the sources; several of them are splits of their names, if those are names of splits.

    Otherwise `prepare train.tsv dev.tsv test.tsv` would make one training set of all three. Splits that a source has
    itself come first.
    """
    names = splits.among_several([source.path for source in sources])
    return [replace(source, split=name) for source, name in zip(sources, names, strict=True)]


def recognise(path: Path, names: ColumnNames = ColumnNames()) -> Source:  # noqa: B008  it is immutable
    """Return the source at `path`.

    Args:
        path: path of a file or folder, or a name with a range, as NeMo writes it (_OP_0..127_CL_).
        names: columns that the user names, which apply to tables and datasets.

    Raises:
        InputError: `path` does not exist or is not supported, or a library or file that it needs is missing.
    """
    return replace(_recognise(path.resolve(), names), names=names)


def _recognise(path: Path, names: ColumnNames) -> Source:
    if path.is_dir():
        return _recognise_folder(path, names)
    if not path.exists():
        if len(files := nemo_tarred.expand(path)) > 1:
            return Source(path, "NeMo tarred manifests", nemo_tarred.read_manifest, tuple(files))
        raise InputError(f"{path} does not exist. {SUPPORTED}")
    name = path.name.lower()
    if name.endswith(ARCHIVE_SUFFIXES):
        return Source(path, "archive", read_archive, (path,), is_packed=True)
    if name.endswith(huggingface.SUFFIXES):
        return _dataset(path, names)
    suffix = Path(name.removesuffix(".gz")).suffix
    if fairseq.recognises_list(path):
        return Source(path, "fairseq list", fairseq.read_list, (path, fairseq.transcripts_of(path)), is_table=True)
    if suffix == ".csv" and ljspeech.recognises_table(path):
        return Source(path, "LJSpeech table", ljspeech.read_table, (path,), is_table=True)
    if suffix in (".csv", ".tsv"):
        return Source(path, "table", partial(tables.read_table, names=names), (path,), is_table=True)
    if suffix in (".json", ".jsonl"):
        return _recognise_json(path, names)
    raise InputError(f"{path}: unsupported file type. {SUPPORTED}")


def _recognise_folder(root: Path, names: ColumnNames) -> Source:
    holds_archives = False
    for folder, files in walk(root):
        for layout in LAYOUTS:
            if layout.recognises(folder, files):
                return Source(root, layout.kind, partial(unread.read_layout, layout=layout, names=names), (root,))
        suffixes = {Path(name).suffix.lower() for name in files}
        if suffixes.intersection(AUDIO_SUFFIXES):
            return Source(root, unread.FOLDER, read_folder, (root,), may_hold_others=True)
        if suffixes.intersection(huggingface.SUFFIXES):
            return _dataset(root, names)
        holds_archives |= folder == root and any(name.lower().endswith(ARCHIVE_SUFFIXES) for name in files)
    if holds_archives:  # only where there is nothing else: an archive may lie beside what was unpacked from it
        return Source(root, "archives", read_archives, (root,), is_packed=True)
    raise InputError(f"{root} contains no audio ({', '.join(AUDIO_SUFFIXES)}) and no dataset. {SUPPORTED}")


def _dataset(path: Path, names: ColumnNames) -> Source:
    huggingface.require_pyarrow()
    reader = partial(huggingface.read_dataset, names=names)
    return Source(path, unread.DATASET, reader, (path,), is_packed=True, may_hold_others=path.is_dir())


def _recognise_json(path: Path, names: ColumnNames) -> Source:
    is_array = json_table.is_array(path)
    row = {} if is_array else tables.first_json_object(path)
    if is_array or names.given() or (names.fit(row) and not _is_manifest(row)):
        return Source(path, "JSON table", partial(json_table.read_json_table, names=names), (path,), is_table=True)
    if "shard_id" in row:
        return Source(path, "NeMo tarred manifest", nemo_tarred.read_manifest, (path,), is_table=True)
    if "audio_filepath" in row:
        return Source(path, "NeMo manifest", tables.read_manifest, (path,), is_table=True)
    if is_lhotse_cut(row):
        return Source(path, "lhotse cuts", tables.read_manifest, (path,), is_table=True)
    if "recording_id" in row:
        files = (path, tables.recordings_beside(path))
        return Source(path, "lhotse supervisions", tables.read_supervisions, files, is_table=True)
    first_line = f"an object with {', '.join(row)}" if row else "not a JSON object"
    remedy = "Name its columns with --path_column and --text_column. " if row else ""
    raise InputError(f"{path}: unsupported, its first line is {first_line}. {remedy}{SUPPORTED}")


def _is_manifest(row: dict[str, Any]) -> bool:
    """Return whether a row is one of NeMo's or ours, with keys that a table does not have, or a cut of lhotse's."""
    return {"audio_filepath", "duration", "text"} <= row.keys() or is_lhotse_cut(row) or "recording_id" in row


def _files(path: Path) -> Iterator[tuple[Path, os.stat_result]]:
    if path.is_file():
        yield path, path.stat()
        return
    for directory, names in walk(path):
        for name in names:
            file = directory / name
            # A broken link must not stop the run: its utterance is rejected later, with the reason.
            yield file, os.stat(file, follow_symlinks=file.exists())
