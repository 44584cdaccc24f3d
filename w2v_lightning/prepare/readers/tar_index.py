"""Index of an uncompressed tar: where each file in it begins, so that it is read in place and never unpacked."""

import tarfile
from pathlib import Path

from w2v_lightning.errors import InputError
from w2v_lightning.prepare.archive import refuse_escape


def places_in(path: Path) -> dict[str, tuple[int, int]]:
    """Return (byte offset, number of bytes) of each file in a tar, by name.

    Raises:
        InputError: the tar is missing, compressed, damaged or truncated, or has a member whose path leads outside it.
    """
    places = {}
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                refuse_escape(member, path)
                if member.isreg():
                    places[member.name.removeprefix("./")] = (member.offset_data, member.size)
        with path.open("rb") as file:
            file.seek(-tarfile.BLOCKSIZE, 2)
            if file.read().strip(b"\0"):
                raise tarfile.ReadError("its end is missing")
    except (OSError, tarfile.TarError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise InputError(f"{path}: missing, compressed, damaged or truncated ({reason}). Copy it again.") from None
    return places
