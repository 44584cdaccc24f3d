"""What a SOURCE is, recognised from what is there."""

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from w2v_lightning.data.lhotse import is_lhotse_cut
from w2v_lightning.errors import InputError
from w2v_lightning.prepare import huggingface, tables
from w2v_lightning.prepare.archive import read_archive
from w2v_lightning.prepare.folder import read_folder, walk
from w2v_lightning.prepare.utterance import AUDIO_SUFFIXES, Item

UNDERSTOOD = """Understood are:
  a LibriSpeech folder, one split of it, or any folder of audio with .txt or .trans.txt beside it
  a .tar, .tar.gz or .tgz of such a folder
  a NeMo manifest, a lhotse CutSet or SupervisionSet (.json, .jsonl, also .gz)
  a .csv or .tsv (also .gz) with a path and a text column; with start and end, or offset and duration, in seconds, its
    rows are segments of recordings
  a folder of a Hugging Face dataset (.parquet, or .arrow as save_to_disk writes it)"""


@dataclass(frozen=True)
class Source:
    """One SOURCE of the command line."""

    path: Path
    kind: str
    reader: Callable[[Path], Iterator[Item]]
    files: tuple[Path, ...]  # what a change is noticed in
    is_packed: bool = False  # its audio does not lie on disk as files
    is_table: bool = False  # one row per utterance; otherwise its size is that of its audio

    def __iter__(self) -> Iterator[Item]:
        return self.reader(self.path)

    def fingerprint(self) -> dict[str, str | int]:
        """Path, size, and a digest of path, size and time of change of every file."""
        digest, size = hashlib.sha256(), 0
        for path in self.files:
            for file, status in _files(path):
                digest.update(f"{file}\0{status.st_size}\0{status.st_mtime_ns}\n".encode(errors="surrogateescape"))
                size += status.st_size
        return {"path": str(self.path), "kind": self.kind, "bytes": size, "digest": digest.hexdigest()[:16]}


def recognise(path: Path) -> Source:
    """What lies at `path`.

    Raises:
        InputError: nothing is there, or nothing that is understood; or what is needed to read it is missing.
    """
    path = path.resolve()
    if path.is_dir():
        return _recognise_folder(path)
    if not path.exists():
        raise InputError(f"There is no {path}. {UNDERSTOOD}")
    name = path.name.lower()
    if name.endswith((".tar", ".tar.gz", ".tgz")):
        return Source(path, "archive", read_archive, (path,), is_packed=True)
    if name.endswith(huggingface.SUFFIXES):
        return _dataset(path)
    suffix = Path(name.removesuffix(".gz")).suffix
    if suffix in (".csv", ".tsv"):
        return Source(path, "table", tables.read_table, (path,), is_table=True)
    if suffix in (".json", ".jsonl"):
        return _recognise_json_lines(path)
    raise InputError(f"{path} is nothing that is understood, to judge by its name. {UNDERSTOOD}")


def _recognise_folder(path: Path) -> Source:
    for _, names in walk(path):
        suffixes = {Path(name).suffix.lower() for name in names}
        if suffixes.intersection(AUDIO_SUFFIXES):
            return Source(path, "folder", read_folder, (path,))
        if suffixes.intersection(huggingface.SUFFIXES):
            return _dataset(path)
    raise InputError(f"{path} holds no audio ({', '.join(AUDIO_SUFFIXES)}) and no dataset. {UNDERSTOOD}")


def _dataset(path: Path) -> Source:
    huggingface.require_pyarrow()
    return Source(path, "Hugging Face dataset", huggingface.read_dataset, (path,), is_packed=True)


def _recognise_json_lines(path: Path) -> Source:
    row = tables.first_json_object(path)
    if "audio_filepath" in row:
        return Source(path, "NeMo manifest", tables.read_manifest, (path,), is_table=True)
    if is_lhotse_cut(row):
        return Source(path, "lhotse cuts", tables.read_manifest, (path,), is_table=True)
    if "recording_id" in row:
        files = (path, tables.recordings_beside(path))
        return Source(path, "lhotse supervisions", tables.read_supervisions, files, is_table=True)
    found = f"an object with {', '.join(row)}" if row else "no JSON object"
    raise InputError(f"{path}: its first line is {found}. {UNDERSTOOD}")


def _files(path: Path) -> Iterator[tuple[Path, os.stat_result]]:
    if path.is_file():
        yield path, path.stat()
        return
    for directory, names in walk(path):
        for name in names:
            file = directory / name
            yield file, os.stat(file, follow_symlinks=file.exists())  # a link to nothing is a finding, not an end
