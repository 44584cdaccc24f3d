"""A cache of byte ranges on local disk, shared by all processes of a host, limited in size.

    DIR/HASH_OF_URL/OFFSET-LENGTH     one file per range, complete or absent

Guaranteed: a range is what one answer of the server held, and has the length that was asked for. The key is the URL:
who uploads other bytes to the same URL must delete the cache.
"""

import hashlib
import logging
import os
import secrets
import shutil
import time
from contextlib import suppress
from pathlib import Path

from w2v_lightning.data.audio_ref import AudioRef

log = logging.getLogger(__name__)

# What a process may write before it looks at the size of the whole cache, which takes 1 s for 300,000 files: the limit
# may be overshot by this share for each process that writes.
SHARE_BETWEEN_SCANS = 0.01
TOUCH_INTERVAL_S = 60.0
_REMOVED = ".removed-"


class RangeCache:
    """Ranges of remote objects in `folder`; the objects that were not used for longest go first.

    No process waits for another, and every file may vanish at any moment: it is then fetched again.
    """

    def __init__(self, folder: Path, max_bytes: int):
        self.folder = folder
        self.max_bytes = max_bytes
        self._written_bytes: float = float("inf")  # since the last scan; the first write of a process scans
        self._touched_s: dict[Path, float] = {}
        self._is_writable = True

    def get(self, ref: AudioRef) -> bytes | None:
        """The bytes of `ref`, or None where they are not in the cache in their full length."""
        path = self._path(ref)
        try:
            data = path.read_bytes()
        except OSError:
            return None
        if not data or (ref.num_bytes and len(data) != ref.num_bytes):  # cut by a crash of the host
            return None
        self._touch(path.parent)
        return data

    def put(self, ref: AudioRef, data: bytes) -> None:
        """Keep `data`. Where the disk is full or read-only, say so once and let go."""
        if not self._is_writable:
            return
        try:
            self._write(self._path(ref), data)
            self._written_bytes += len(data)
            if self._written_bytes > SHARE_BETWEEN_SCANS * self.max_bytes:
                self._written_bytes = 0
                self._evict()
        except FileNotFoundError:
            pass  # another process has removed this object just now
        except OSError as error:
            self._is_writable = False
            log.warning("The cache %s takes no more: %s. Reading goes on without.", self.folder, error.strerror)

    def _path(self, ref: AudioRef) -> Path:
        return self.folder / hashlib.sha256(ref.url.encode()).hexdigest()[:32] / f"{ref.byte_offset}-{ref.num_bytes}"

    def _write(self, path: Path, data: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
        try:
            temporary.write_bytes(data)
            os.replace(temporary, path)  # also makes the folder the one that was used last
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def _touch(self, folder: Path) -> None:
        """An object's last use is its folder's time of modification; that is precise to TOUCH_INTERVAL_S."""
        now_s = time.monotonic()
        if now_s - self._touched_s.get(folder, -TOUCH_INTERVAL_S) < TOUCH_INTERVAL_S:
            return
        self._touched_s[folder] = now_s
        with suppress(OSError):  # removed, or the cache is another user's
            os.utime(folder)

    def _evict(self) -> None:
        """Remove whole objects until the rest is within the limit; one process at a time, the others go on."""
        from filelock import FileLock, Timeout

        try:
            with FileLock(self.folder / ".lock", blocking=False):
                self._remove_oldest()
        except Timeout:
            pass

    def _remove_oldest(self) -> None:
        objects = []
        for entry in os.scandir(self.folder):
            if entry.name.startswith(_REMOVED):
                shutil.rmtree(entry.path, ignore_errors=True)  # left by a process that was killed
            elif entry.is_dir():
                objects.append((entry.stat().st_mtime_ns, _num_bytes(entry.path), Path(entry.path)))
        total = sum(num_bytes for _, num_bytes, _ in objects)
        for _, num_bytes, path in sorted(objects):
            if total <= self.max_bytes:
                return
            # Renamed first, so that no other process finds half an object; a file that it has open stays readable.
            removed = path.rename(path.with_name(f"{_REMOVED}{path.name}-{secrets.token_hex(4)}"))
            shutil.rmtree(removed, ignore_errors=True)
            total -= num_bytes


def _num_bytes(folder: str) -> int:
    total = 0
    for entry in os.scandir(folder):
        with suppress(FileNotFoundError):  # a temporary file that has got its name
            total += entry.stat().st_size
    return total
