"""Upload of the output folder to S3 or any other store that fsspec supports."""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from w2v_lightning.errors import InputError

TRIES = 6
FIRST_PAUSE_S = 1.0  # doubled each time, 31 s in total
PARALLEL = 4
PERMANENT = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError, NotImplementedError)

T = TypeVar("T")


class SizeMismatchError(Exception):
    """Size in the store that differs from that of the local file."""


class Upload:
    """Upload of one run: each shard in the background once it is complete, the other files at the end.

    Args:
        url: destination, such as s3://bucket/prefix.

    Raises:
        InputError: the store is not supported or its library is not installed.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._store, self._root = _open(url)
        self._pool = ThreadPoolExecutor(PARALLEL, thread_name_prefix="upload")
        self._pending: list[Future[None]] = []

    def begin(self, shard: Path) -> None:
        """Upload a shard in the background, unless the store has one of the same name and size.

        Raises:
            InputError: an earlier shard could not be uploaded.
        """
        for future in [future for future in self._pending if future.done()]:
            self._pending.remove(future)
            future.result()
        self._pending.append(self._pool.submit(self._put_unless_there, shard, f"shards/{shard.name}"))

    def finish(self, files: Mapping[str, Path]) -> None:
        """Wait for the shards, then upload the files in order, so that no reader sees a manifest without its shards.

        Args:
            files: local path of each file, by its name in the store.

        Raises:
            InputError: a shard or file could not be uploaded.
        """
        for future in self._pending:
            future.result()
        for name, path in files.items():
            self._retrying(name, partial(self._put, path, name))

    def read(self, name: str) -> bytes | None:
        """Return the content of a file in the store; None if it does not exist."""
        return self._retrying(name, lambda: self._read(name))

    def close(self) -> None:
        """Cancel the uploads that have not begun."""
        self._pool.shutdown(cancel_futures=True)

    def _put_unless_there(self, path: Path, name: str) -> None:
        if self._retrying(name, lambda: self._size(name)) != path.stat().st_size:
            self._retrying(name, lambda: self._put(path, name))

    def _put(self, path: Path, name: str) -> None:
        self._store.put_file(str(path), f"{self._root}/{name}")
        if self._size(name) != path.stat().st_size:
            raise SizeMismatchError

    def _size(self, name: str) -> int | None:
        self._store.invalidate_cache()
        with suppress(FileNotFoundError):
            return self._store.info(f"{self._root}/{name}")["size"]
        return None

    def _read(self, name: str) -> bytes | None:
        with suppress(FileNotFoundError):
            return self._store.cat_file(f"{self._root}/{name}")
        return None

    def _retrying(self, name: str, action: Callable[[], T]) -> T:
        """Run the action, again after a failure.

        Every store has its own exceptions, so all but a few count as temporary. Messages name their type only, because
        their text may contain credentials.
        """
        for attempt in range(TRIES):
            time.sleep(FIRST_PAUSE_S * 2 ** (attempt - 1) if attempt else 0)
            try:
                return action()
            except Exception as error:
                problem = type(error).__name__
                if isinstance(error, PERMANENT) or problem.endswith("CredentialsError"):
                    raise InputError(
                        f"--to {self.url}: {name} was refused ({problem}); check the bucket and your permissions."
                    ) from None
        raise InputError(
            f"--to {self.url}: {name} failed {TRIES} times ({problem})."
            " Run the same command again; it resumes where it stopped."
        )


def _open(url: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs  # slow to import

    try:
        return url_to_fs(url)
    except ImportError as error:
        raise InputError(
            f"--to {url} needs a library that is not installed ({error}); run: pip install 'w2v-lightning[aws]'"
        ) from None
    except ValueError as error:
        raise InputError(f"--to {url}: {error}") from None
