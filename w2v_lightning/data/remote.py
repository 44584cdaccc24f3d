"""Byte ranges of objects in S3 and other stores, and on web servers: a batch at a time, until all of it is here.

What a store does wrong for a while (time-outs, resets, 5xx, bodies of the wrong length) costs time: the ranges that
failed are asked for again, later each time. What no repetition cures is an `InputError` at once.
"""

import asyncio
import logging
import os
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from w2v_lightning.data.audio_ref import AudioRef
from w2v_lightning.errors import InputError

log = logging.getLogger(__name__)

# A store that says SlowDown does so for a minute or two, while it spreads the load; a node that dies is replaced within
# a minute. Ranks that wait for this one give up after 10 minutes (NCCL's default), which must not come first.
PATIENCE_S = 180.0
FIRST_DELAY_S = 0.25
LONGEST_DELAY_S = 15.0
# S3 answers in 0.1-0.2 s; a server that is silent for this long has lost the request.
CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 20.0
# Whole shards come where ranges are not known, so this is not repeated for all of PATIENCE_S.
MAX_IGNORED_RANGES = 3
CONNECTIONS = 32  # per loader worker; botocore's 10 would make the utterances of a batch wait for each other
WARNING_INTERVAL_S = 60.0

# Only these: fsspec knows schemes that run a program, or unpack what lies behind another URL.
PACKAGE_OF_SCHEME = {
    "s3": "'w2v-lightning[aws]'",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "http": "aiohttp",
    "https": "aiohttp",
    "memory": "fsspec",
}

# By module, because a class whose module has not been imported cannot have been raised.
_PASSING_ERRORS = {
    "aiohttp": ("ClientConnectionError", "ClientPayloadError"),
    "azure.core.exceptions": ("ServiceRequestError", "ServiceResponseError"),
    "botocore.exceptions": ("ConnectionError", "FlexibleChecksumError", "HTTPClientError", "IncompleteReadError"),
    "botocore.parsers": ("ResponseParserError",),
}


def is_remote(url: str) -> bool:
    """Whether `url` is for fsspec.

    Raises:
        InputError: it is of a kind that is not read; a manifest from elsewhere must not choose what code runs.
    """
    scheme, separator, _ = url.partition("://")
    if not separator or scheme == "file":
        return False
    if scheme not in PACKAGE_OF_SCHEME or "::" in url:
        known = ", ".join(("file", *PACKAGE_OF_SCHEME))
        raise InputError(f"{url}: files are read from local paths and {known} URLs only, without '::'.")
    return True


class WrongLengthError(OSError):
    """The server says that all is well, and sends another number of bytes than it was asked for."""

    def __init__(self, wanted: int, found: int):
        super().__init__(f"{wanted} bytes were asked for, {found} came")
        self.is_too_long = found > wanted


class RemoteFiles:
    """Reads byte ranges over the network, those of one call all at once.

    One fsspec file system per scheme and process: their event loops and threads do not survive a fork. What a child
    inherits stays untouched, since to close it would take the parent's sockets out of the epoll set that they share.
    """

    def __init__(self) -> None:
        self._file_systems: dict[tuple[int, str], Any] = {}
        self._last_warning_s = -WARNING_INTERVAL_S

    def fetch(self, refs: Sequence[AudioRef]) -> list[bytes]:
        """The bytes of each ref, in order.

        Raises:
            InputError: an object does not exist or may not be read, or it could not be read within PATIENCE_S.
        """
        bodies: dict[int, bytes] = {}
        ignored_ranges: Counter[AudioRef] = Counter()
        started_s = time.monotonic()
        attempt = 0
        while missing := [i for i in range(len(refs)) if i not in bodies]:
            attempt += 1
            answers = dict(zip(missing, self._ask([refs[i] for i in missing]), strict=True))
            bodies |= {i: answer for i, answer in answers.items() if isinstance(answer, bytes)}
            failed = [(refs[i], answer) for i, answer in answers.items() if i not in bodies]
            if failed:
                elapsed_s = time.monotonic() - started_s
                ignored_ranges.update(ref for ref, error in failed if _is_range_ignored(error))
                _give_up(failed, attempt, elapsed_s, ignored_ranges)
                self._warn(failed)
                time.sleep(_delay_s(attempt, elapsed_s))
        return [bodies[i] for i in range(len(refs))]

    def _ask(self, refs: Sequence[AudioRef]) -> list[bytes | Exception]:
        """One attempt: the body of each ref, or why there is none."""
        answers: dict[int, bytes | Exception] = {}
        schemes = [ref.url.partition("://")[0] for ref in refs]
        for scheme in dict.fromkeys(schemes):
            positions = [i for i, other in enumerate(schemes) if other == scheme]
            of_scheme = _read_all(self._file_system(scheme), [refs[i] for i in positions])
            answers |= dict(zip(positions, of_scheme, strict=True))
        return [answers[i] for i in range(len(refs))]

    def _file_system(self, scheme: str) -> Any:
        key = os.getpid(), scheme
        if key not in self._file_systems:
            self._file_systems[key] = _connect(scheme)
        return self._file_systems[key]

    def _warn(self, failed: list[tuple[AudioRef, Exception]]) -> None:
        """Say it once for a burst of failures, which may go on over many batches."""
        now_s = time.monotonic()
        if now_s - self._last_warning_s >= WARNING_INTERVAL_S:
            place, reason = _shown(failed[0][0]), _text(failed[0][1])
            log.warning("%s: %s; %d reads are tried again for up to %g s.", place, reason, len(failed), PATIENCE_S)
        self._last_warning_s = now_s


def _give_up(
    failed: list[tuple[AudioRef, Exception]], attempt: int, elapsed_s: float, ignored_ranges: Counter[AudioRef]
) -> None:
    """Raise for what another attempt does not cure, or when there were enough of them."""
    for ref, error in failed:
        if not _is_passing(error):
            raise InputError(f"{_shown(ref)}: {_remedy(error)} ({_text(error)})") from error
        if _is_range_ignored(error) and ignored_ranges[ref] >= MAX_IGNORED_RANGES:
            raise InputError(
                f"{_shown(ref)}: {error}: this server does not know ranges. Put the shards on one that does, such as"
                " S3, or on a local disk."
            ) from error
    ref, error = failed[0]
    if elapsed_s >= PATIENCE_S:
        raise InputError(
            f"{_shown(ref)}: not read in {attempt} attempts over {elapsed_s:.0f} s: {_text(error)}. Is the store"
            " reachable, and the manifest made for this version of the file? Go on from the last checkpoint."
        ) from error


def _delay_s(attempt: int, elapsed_s: float) -> float:
    """Doubles with each attempt; jitter, lest all workers come back at once."""
    longest_s = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2 ** min(attempt - 1, 10), max(0.0, PATIENCE_S - elapsed_s))
    return longest_s * random.SystemRandom().uniform(0.5, 1)  # the state of `random` in a seeded worker is the user's


def _connect(scheme: str) -> Any:
    import fsspec  # slow to import, and most corpora are local

    try:
        # fsspec's own cache of instances would hand this one to others, who may close it.
        file_system = fsspec.filesystem(scheme, skip_instance_cache=True, **_options(scheme))
    except ImportError as error:
        raise InputError(f"{scheme}:// needs a package: pip install {PACKAGE_OF_SCHEME[scheme]}") from error
    if scheme == "s3":
        file_system.retries = 1  # repetitions are ours alone, so that PATIENCE_S holds
    return file_system


def _options(scheme: str) -> dict[str, Any]:
    if scheme == "s3":
        timeouts = {"connect_timeout": CONNECT_TIMEOUT_S, "read_timeout": READ_TIMEOUT_S}
        config = {"max_pool_connections": CONNECTIONS, "retries": {"total_max_attempts": 1}, **timeouts}
        return {"config_kwargs": config, "use_listings_cache": False}
    if scheme in ("http", "https"):
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=READ_TIMEOUT_S)
        return {"client_kwargs": {"timeout": timeout}}
    return {}


def _read_all(file_system: Any, refs: Sequence[AudioRef]) -> list[bytes | Exception]:
    if not file_system.async_impl:
        return [_read_one(file_system, ref) for ref in refs]
    from fsspec.asyn import sync

    return sync(file_system.loop, _gather, file_system, refs)


async def _gather(file_system: Any, refs: Sequence[AudioRef]) -> list[bytes | Exception]:
    return await asyncio.gather(*(_read_one_async(file_system, ref) for ref in refs), return_exceptions=True)


async def _read_one_async(file_system: Any, ref: AudioRef) -> bytes:
    path = file_system._strip_protocol(ref.url)
    end = _end(ref, None if ref.num_bytes else await file_system._size(path))
    return _checked(await file_system._cat_file(path, start=ref.byte_offset, end=end), end - ref.byte_offset)


def _read_one(file_system: Any, ref: AudioRef) -> bytes | Exception:
    path = file_system._strip_protocol(ref.url)
    try:
        end = _end(ref, None if ref.num_bytes else file_system.size(path))
        return _checked(file_system.cat_file(path, start=ref.byte_offset, end=end), end - ref.byte_offset)
    except Exception as error:
        return error


def _end(ref: AudioRef, size: int | None) -> int:
    """Where the ref's bytes end. Without a size there is no telling a whole file from one that was cut on its way."""
    if ref.num_bytes:
        return ref.byte_offset + ref.num_bytes
    if size is None:
        raise InputError("the server does not tell the file's size; give byte_offset and num_bytes in the manifest")
    if size <= ref.byte_offset:
        raise InputError(f"the file has {size} bytes")
    return size


def _checked(body: bytes, wanted: int) -> bytes:
    if len(body) != wanted:
        raise WrongLengthError(wanted, len(body))
    return body


def _is_range_ignored(error: Exception) -> bool:
    return isinstance(error, WrongLengthError) and error.is_too_long


def _is_passing(error: Exception) -> bool:
    """Whether the same request may go well later."""
    if any(isinstance(e, _passing_types()) for e in _with_causes(error)):
        return True
    status = _http_status(error)
    if status is not None:
        return status in (408, 429) or status >= 500
    return isinstance(error, OSError) and not isinstance(error, FileNotFoundError | PermissionError)


def _passing_types() -> tuple[type[Exception], ...]:
    loaded = [(sys.modules[module], names) for module, names in _PASSING_ERRORS.items() if module in sys.modules]
    return TimeoutError, ConnectionError, *(getattr(module, name) for module, names in loaded for name in names)


def _with_causes(error: BaseException) -> Iterator[BaseException]:
    """The libraries below translate errors: what the server said is in the cause."""
    while error is not None:
        yield error
        error = error.__cause__


def _http_status(error: Exception) -> int | None:
    """As botocore, aiohttp, gcsfs and azure each have it."""
    for e in _with_causes(error):
        response = getattr(e, "response", None)
        metadata = response.get("ResponseMetadata", {}) if isinstance(response, dict) else {}
        if isinstance(status := metadata.get("HTTPStatusCode"), int):
            return status
        for name in ("status", "status_code", "code"):
            if isinstance(status := getattr(e, name, None), int):
                return status
    return None


def _remedy(error: Exception) -> str:
    status = _http_status(error)
    if status == 404 or isinstance(error, FileNotFoundError):
        return "there is no such object; compare the manifest with what lies in the store"
    if status in (401, 403) or isinstance(error, PermissionError):
        return "access is refused; give these credentials the right to read it (s3:GetObject)"
    if status == 416:
        return "the object ends before these bytes; the manifest was made for another version of it"
    if "Credentials" in type(error).__name__:
        return "there are no credentials; configure a profile or a role, or for a public bucket set FSSPEC_S3_ANON=true"
    return "cannot be read"


def _shown(ref: AudioRef) -> str:
    return _without_secrets(ref.url) + str(ref).removeprefix(ref.url)


def _text(error: Exception) -> str:
    return _without_secrets(f"{type(error).__name__}: {error}").rstrip(".")


def _without_secrets(text: str) -> str:
    """Without the query of a URL, where signatures stand, and without user and password."""
    return re.sub(r"://[^/\s'\"]*@", "://", re.sub(r"\?[^\s'\")]*", "", text))
