"""Shard: an uncompressed tar with WebDataset's naming, which reports the byte offset of each member."""

import hashlib
import re
import tarfile
from pathlib import Path

END_BYTES = 2 * tarfile.BLOCKSIZE  # two blocks of zeros
MAX_NAME_BYTES = 200  # file systems allow 255, which must include the suffixes of the file and its temporary copy


class Shard:
    """Tar that is being written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("wb")
        self.size = 0

    def add(self, name: str, data: bytes) -> int:
        """Append a file, and return the offset in the tar at which its data begins.

        The same content always gives the same bytes.
        """
        member = tarfile.TarInfo(name)  # time, owner and group are 0
        member.size = len(data)
        header = member.tobuf(tarfile.PAX_FORMAT)
        padding = -len(data) % tarfile.BLOCKSIZE
        for piece in (header, data, bytes(padding)):
            self._file.write(piece)
        offset = self.size + len(header)
        self.size = offset + len(data) + padding
        return offset

    def close(self) -> None:
        """Write the end of the tar and close the file."""
        self._file.write(bytes(END_BYTES))
        self._file.close()


def member_name(utterance_id: str) -> str:
    """Return the id as a file name without suffix, slashes or dots (WebDataset cuts names at the first dot).

    Different ids have different names.
    """
    name = re.sub(r"[^\w-]", lambda match: "".join(f"%{byte:02X}" for byte in match[0].encode()), utterance_id)
    if len(name.encode()) <= MAX_NAME_BYTES:
        return name
    beginning = name.encode()[: MAX_NAME_BYTES // 2].decode(errors="ignore")
    return f"{beginning}%{hashlib.sha256(utterance_id.encode()).hexdigest()[:32]}"
