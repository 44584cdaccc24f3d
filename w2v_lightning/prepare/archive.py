"""Reader of a .tar or .tar.gz archive of a corpus, such as OpenSLR's; streams it and never unpacks it to disk."""

import gzip
import io
import posixpath
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import IO, cast

from w2v_lightning.errors import InputError
from w2v_lightning.prepare.hashes import HashSet
from w2v_lightning.prepare.pairing import TRANSCRIPT_SUFFIXES, Pairing
from w2v_lightning.prepare.splits import of_file
from w2v_lightning.prepare.utterance import AUDIO_SUFFIXES, Item, Utterance

READ_BYTES = 1 << 15  # small, because tarfile copies its buffer for every header
SUFFIXES = (".tar", ".tar.gz", ".tgz")
BinaryFile = gzip.GzipFile | io.BufferedReader


def read_archive(path: Path) -> Iterator[Item]:
    """Yield the utterances of an archive.

    Audio files wait in memory for the transcripts of their directory, or transcripts for the audio.

    Raises:
        InputError: the archive is damaged or truncated, or has a member whose path leads outside the archive.
    """
    pairings: dict[PurePosixPath, Pairing] = {}
    matched = HashSet()
    for name, data in _files(path):
        pairing = pairings.setdefault(name.parent, Pairing(name.parent, f"{path}:{name.parent}", matched))
        if name.suffix.lower() in AUDIO_SUFFIXES:
            yield from pairing.add_audio(name.stem, data)
        else:
            yield from pairing.add_transcripts(name.name, data)
        if pairing.is_complete:
            del pairings[name.parent]
    for pairing in pairings.values():
        yield from pairing.unmatched()


def read_archives(folder: Path) -> Iterator[Item]:
    """Yield the utterances of all archives of a folder, such as the shards of a webdataset, in order of their names.

    Raises:
        InputError: an archive is damaged; see `read_archive`.
    """
    for path in sorted(folder.iterdir()):
        if path.name.lower().endswith(SUFFIXES):
            split = of_file(path.name)
            for item in read_archive(path):
                yield replace(item, split=item.split or split) if isinstance(item, Utterance) else item


def _files(path: Path) -> Iterator[tuple[PurePosixPath, bytes]]:
    """Yield name and content of the audio and text files, in the archive's order."""
    last_name = "its beginning"
    try:
        with _open(path) as file:
            stream = _Watched(file)
            # cast: tarfile's stubs ask for a writable file, but mode "r|" only calls `read`
            with tarfile.open(fileobj=cast(IO[bytes], stream), mode="r|", bufsize=READ_BYTES) as archive:
                while (member := archive.next()) is not None:
                    archive.members.clear()  # type: ignore[attr-defined]  # missing in the stubs; it would grow without end
                    refuse_escape(member, path)
                    name = PurePosixPath(member.name)
                    if member.isfile() and name.suffix.lower() in (*AUDIO_SUFFIXES, *TRANSCRIPT_SUFFIXES):
                        content = archive.extractfile(member)
                        assert content is not None, "extractfile returns None for directories and devices only"
                        yield name, content.read()
                    last_name = member.name
            stream.expect_end()
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path}: damaged or truncated after {last_name} ({error}); download it again.") from None


def _open(path: Path) -> BinaryFile:
    with path.open("rb") as file:
        # By content, because browsers may unpack a .tar.gz and keep its name.
        is_gzip = file.read(2) == b"\x1f\x8b"
    return gzip.open(path) if is_gzip else path.open("rb")


class _Watched:
    """File wrapper that remembers the last block, to notice an archive that is truncated between two members.

    tarfile itself accepts such an archive as complete.
    """

    def __init__(self, file: BinaryFile) -> None:
        self._file = file
        self._last_block = b""

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self._last_block = (self._last_block + data[-tarfile.BLOCKSIZE :])[-tarfile.BLOCKSIZE :]
        return data

    def expect_end(self) -> None:
        """Read the rest, where gzip also verifies its checksum.

        Raises:
            tarfile.ReadError: the rest is not all zeros, or the archive does not end with a block of zeros.
        """
        while data := self.read(READ_BYTES):
            if data.strip(b"\0"):
                raise tarfile.ReadError("a damaged header")
        if self._last_block != tarfile.NUL * tarfile.BLOCKSIZE:
            raise tarfile.ReadError("its end is missing")


def refuse_escape(member: tarfile.TarInfo, path: Path) -> None:
    paths = [member.name]
    if member.issym():
        paths.append(posixpath.normpath(posixpath.join(posixpath.dirname(member.name), member.linkname)))
    elif member.islnk():
        paths.append(posixpath.normpath(member.linkname))
    if any(posixpath.isabs(each) or ".." in each.split("/") for each in paths):
        raise InputError(f"{path}: member {member.name!r} leads outside the archive; do not trust this file.")
