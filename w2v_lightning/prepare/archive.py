"""A .tar or .tar.gz of a corpus, such as OpenSLR's, read as a stream and never unpacked."""

import gzip
import posixpath
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from w2v_lightning.errors import InputError
from w2v_lightning.prepare.pairing import Pairing
from w2v_lightning.prepare.utterance import AUDIO_SUFFIXES, Item

READ_BYTES = 1 << 15  # tarfile copies as much for every header


def read_archive(path: Path) -> Iterator[Item]:
    """The utterances of an archive; audio of a directory waits in memory for its transcripts, or the other way round.

    Raises:
        InputError: the archive is damaged or ends early, or has a member whose name leads out of its folder.
    """
    pairings: dict[PurePosixPath, Pairing] = {}
    for file, data in _files(path):
        pairing = pairings.setdefault(file.parent, Pairing(file.parent, f"{path}:{file.parent}"))
        if file.suffix.lower() in AUDIO_SUFFIXES:
            yield from pairing.add_audio(file.stem, data)
        else:
            yield from pairing.add_transcripts(file.name, data)
        if pairing.is_complete:
            del pairings[file.parent]
    for pairing in pairings.values():
        yield from pairing.unmatched()


def _files(path: Path) -> Iterator[tuple[PurePosixPath, bytes]]:
    """(name, content) of the audio and text files, as they come."""
    last = "its beginning"
    try:
        with _open(path) as file:
            stream = _Watched(file)
            with tarfile.open(fileobj=stream, mode="r|", bufsize=READ_BYTES) as archive:
                while (member := archive.next()) is not None:
                    archive.members.clear()  # tarfile would keep them all
                    _refuse_escape(member, path)
                    name = PurePosixPath(member.name)
                    if member.isfile() and name.suffix.lower() in (*AUDIO_SUFFIXES, ".txt"):
                        yield name, archive.extractfile(member).read()
                    last = member.name
            stream.expect_end()
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path}: damaged or incomplete after {last} ({error}); download it again.") from None


def _open(path: Path) -> BinaryIO:
    with path.open("rb") as file:
        is_gzip = file.read(2) == b"\x1f\x8b"  # browsers like to unpack a .tar.gz and keep its name
    return gzip.open(path) if is_gzip else path.open("rb")


class _Watched:
    """The bytes of an archive; tarfile alone takes one that was cut off between two members for a whole one."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._last_block = b""

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self._last_block = (self._last_block + data[-tarfile.BLOCKSIZE :])[-tarfile.BLOCKSIZE :]
        return data

    def expect_end(self) -> None:
        """Only zeros may follow, and the last block must be one of them; gzip checks its sum at the end too."""
        while data := self.read(READ_BYTES):
            if data.strip(b"\0"):
                raise tarfile.ReadError("a damaged header")
        if self._last_block != tarfile.NUL * tarfile.BLOCKSIZE:
            raise tarfile.ReadError("its end is missing")


def _refuse_escape(member: tarfile.TarInfo, path: Path) -> None:
    places = [member.name]
    if member.issym():
        places.append(posixpath.normpath(posixpath.join(posixpath.dirname(member.name), member.linkname)))
    elif member.islnk():
        places.append(posixpath.normpath(member.linkname))
    if any(posixpath.isabs(place) or ".." in place.split("/") for place in places):
        raise InputError(f"{path}: member {member.name!r} leads out of the archive's folder; it is not to be trusted.")
