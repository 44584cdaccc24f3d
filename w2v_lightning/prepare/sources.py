"""Sources of `prepare`, whose kind is recognised from their files."""

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

SUPPORTED = (
    "Supported are a folder of audio with transcripts, a .tar or .tar.gz of one, a NeMo manifest, a lhotse CutSet or"
    " SupervisionSet, a .csv or .tsv table, and a folder of a Hugging Face dataset; see `prepare --help`."
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

    def __iter__(self) -> Iterator[Item]:
        return self.reader(self.path)

    def fingerprint(self) -> dict[str, str | int]:
        """Return path, kind, size, and a digest of path, size and modification time of every file."""
        digest, size = hashlib.sha256(), 0
        for path in self.files:
            for file, status in _files(path):
                digest.update(f"{file}\0{status.st_size}\0{status.st_mtime_ns}\n".encode(errors="surrogateescape"))
                size += status.st_size
        return {"path": str(self.path), "kind": self.kind, "bytes": size, "digest": digest.hexdigest()[:16]}


def recognise(path: Path) -> Source:
    """Return the source at `path`.

    Raises:
        InputError: `path` does not exist or is not supported, or a library or file that it needs is missing.
    """
    path = path.resolve()
    if path.is_dir():
        return _recognise_folder(path)
    if not path.exists():
        raise InputError(f"{path} does not exist. {SUPPORTED}")
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
    raise InputError(f"{path}: unsupported file type. {SUPPORTED}")


def _recognise_folder(path: Path) -> Source:
    for _, names in walk(path):
        suffixes = {Path(name).suffix.lower() for name in names}
        if suffixes.intersection(AUDIO_SUFFIXES):
            return Source(path, "folder", read_folder, (path,))
        if suffixes.intersection(huggingface.SUFFIXES):
            return _dataset(path)
    raise InputError(f"{path} contains no audio ({', '.join(AUDIO_SUFFIXES)}) and no dataset. {SUPPORTED}")


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
    first_line = f"an object with {', '.join(row)}" if row else "not a JSON object"
    raise InputError(f"{path}: unsupported, its first line is {first_line}. {SUPPORTED}")


def _files(path: Path) -> Iterator[tuple[Path, os.stat_result]]:
    if path.is_file():
        yield path, path.stat()
        return
    for directory, names in walk(path):
        for name in names:
            file = directory / name
            # A broken link must not stop the run: its utterance is rejected later, with the reason.
            yield file, os.stat(file, follow_symlinks=file.exists())
