"""Cache of byte ranges on local disk, shared by all processes of a host, limited in size.

    DIR/HASH_OF_URL/OFFSET-LENGTH     one file per range, complete or absent

Guaranteed: a cached range comes from one response of the server, and has the requested length. The key is the URL: if
you upload other bytes to the same URL, delete the cache.
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

# A process scans the whole cache (1 s for 300,000 files) each time it has written this share of the limit. So each
# process that writes may exceed the limit by this share.
SHARE_BETWEEN_SCANS = 0.01
TOUCH_INTERVAL_S = 60.0
_REMOVED = ".removed-"


class RangeCache:
    """Cached ranges of remote objects in `folder`; the least recently used objects are removed first.

    No process waits for another. Any file may be removed at any time; it is then fetched again.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self._written_bytes: float = float("inf")  # since the last scan; the first write of a process scans
        self._touched_s: dict[Path, float] = {}
        self._is_writable = True

    def get(self, ref: AudioRef) -> bytes | None:
        """Return the bytes of `ref`; None if they are not in the cache, or not in full length."""
        path = self._path(ref)
        try:
            data = path.read_bytes()
        except OSError:
            return None
        if not data or (ref.num_bytes and len(data) != ref.num_bytes):  # truncated by a crash of the host
            return None
        self._touch(path.parent)
        return data

    def put(self, ref: AudioRef, data: bytes) -> None:
        """Store `data`. If the disk is full or read-only, warn once and stop caching."""
        if not self._is_writable:
            return
        try:
            self._write(self._path(ref), data)
            self._written_bytes += len(data)
            if self._written_bytes > SHARE_BETWEEN_SCANS * self.max_bytes:
                self._written_bytes = 0
                self._evict()
        except FileNotFoundError:
            pass  # another process has just removed this object
        except OSError as error:
            self._is_writable = False
            problem = "Cannot write to the cache %s: %s. Reading continues without the cache."
            log.warning(problem, self.folder, error.strerror)

    def _path(self, ref: AudioRef) -> Path:
        return self.folder / hashlib.sha256(ref.url.encode()).hexdigest()[:32] / f"{ref.byte_offset}-{ref.num_bytes}"

    def _write(self, path: Path, data: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
        try:
            temporary.write_bytes(data)
            os.replace(temporary, path)  # also updates the folder's modification time, its last use
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def _touch(self, folder: Path) -> None:
        """Record the last use of an object as its folder's modification time, to a precision of TOUCH_INTERVAL_S."""
        now_s = time.monotonic()
        if now_s - self._touched_s.get(folder, -TOUCH_INTERVAL_S) < TOUCH_INTERVAL_S:
            return
        self._touched_s[folder] = now_s
        with suppress(OSError):  # removed, or owned by another user
            os.utime(folder)

    def _evict(self) -> None:
        """Remove whole objects until the rest is within the limit; one process at a time, without blocking others."""
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
            # Rename first, so that no other process finds half an object; files that others have open stay readable.
            removed = path.rename(path.with_name(f"{_REMOVED}{path.name}-{secrets.token_hex(4)}"))
            shutil.rmtree(removed, ignore_errors=True)
            total -= num_bytes


def _num_bytes(folder: str) -> int:
    total = 0
    for entry in os.scandir(folder):
        with suppress(FileNotFoundError):  # a temporary file that was renamed meanwhile
            total += entry.stat().st_size
    return total
