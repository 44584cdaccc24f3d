"""The output folder copied to S3, or to any other store that fsspec knows."""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from w2v_lightning.errors import InputError

TRIES = 6
FIRST_PAUSE_S = 1.0  # doubled each time: half a minute in all
PARALLEL = 4
PERMANENT = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError, NotImplementedError)

T = TypeVar("T")


class SizeMismatchError(Exception):
    """What arrived is not as long as what was sent."""


class Upload:
    """Files on their way to a store: shards while others are still being made, the rest at the end."""

    def __init__(self, url: str) -> None:
        """Raises InputError where the store is not known or its library is not installed."""
        self._url = url
        self._store, self._root = _open(url)
        self._pool = ThreadPoolExecutor(PARALLEL, thread_name_prefix="upload")
        self._pending: list[Future[None]] = []

    def begin(self, shard: Path) -> None:
        """Upload a shard in the background, unless one of its size is there; raises what befell an earlier one."""
        for future in [future for future in self._pending if future.done()]:
            self._pending.remove(future)
            future.result()
        self._pending.append(self._pool.submit(self._put_unless_there, shard, f"shards/{shard.name}"))

    def finish(self, files: Mapping[str, Path]) -> None:
        """Wait for the shards, then upload files under names, in order: no reader sees a manifest without its shards.

        Raises:
            InputError: something could not be uploaded.
        """
        for future in self._pending:
            future.result()
        for name, path in files.items():
            self._retrying(name, lambda name=name, path=path: self._put(path, name))

    def read(self, name: str) -> bytes | None:
        """What lies there under `name`; None if nothing does."""
        return self._retrying(name, lambda: self._read(name))

    def close(self) -> None:
        """Give up what has not begun."""
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
        """Every store has exceptions of its own, so all but a few are taken to pass; messages may hold credentials."""
        for attempt in range(TRIES):
            time.sleep(FIRST_PAUSE_S * 2 ** (attempt - 1) if attempt else 0)
            try:
                return action()
            except Exception as error:
                problem = type(error).__name__
                if isinstance(error, PERMANENT) or problem.endswith("CredentialsError"):
                    raise InputError(
                        f"--to {self._url}: {name} is refused ({problem}): check bucket and rights."
                    ) from None
        raise InputError(
            f"--to {self._url}: {name} failed {TRIES} times ({problem}). The same command goes on where this one ended."
        )


def _open(url: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs  # only where it is asked for

    try:
        return url_to_fs(url)
    except ImportError as error:
        raise InputError(f"--to {url} needs a library ({error}); run: pip install 'w2v-lightning[aws]'") from None
    except ValueError as error:
        raise InputError(f"--to {url}: {error}") from None
