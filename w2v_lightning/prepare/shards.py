"""A shard: an ordinary uncompressed tar with WebDataset's names, whose members' places are known."""

import hashlib
import re
import tarfile
from pathlib import Path

END_BYTES = 2 * tarfile.BLOCKSIZE  # two blocks of zeros
MAX_NAME_BYTES = 200  # file systems allow 255 with suffix and the name of a temporary file


class Shard:
    """A tar that is being written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("wb")
        self.size = 0

    def add(self, name: str, data: bytes) -> int:
        """Append a file; returns where in the tar its data begins. Equal content gives equal bytes."""
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
        """Complete it."""
        self._file.write(bytes(END_BYTES))
        self._file.close()


def member_name(utterance_id: str) -> str:
    """The id as a file name without a suffix: no dot, at which WebDataset would cut it, and no slash.

    Different ids have different names.
    """
    name = re.sub(r"[^\w-]", lambda match: "".join(f"%{byte:02X}" for byte in match[0].encode()), utterance_id)
    if len(name.encode()) <= MAX_NAME_BYTES:
        return name
    beginning = name.encode()[: MAX_NAME_BYTES // 2].decode(errors="ignore")
    return f"{beginning}%{hashlib.sha256(utterance_id.encode()).hexdigest()[:32]}"
