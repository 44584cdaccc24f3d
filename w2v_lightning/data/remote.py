"""Reading of byte ranges from S3, other object stores and web servers, a batch at a time, with retries.

Transient errors (time-outs, resets, 5xx, bodies of the wrong length) cost only time: failed ranges are requested again,
with increasing delays. An error that a retry cannot cure raises `InputError` at once.
"""

import asyncio
import logging
import os
import random
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from w2v_lightning.data.audio_ref import AudioRef
from w2v_lightning.errors import InputError

log = logging.getLogger(__name__)

# A store answers SlowDown for a minute or two, while it spreads the load; a failed node is replaced within a minute.
# The limit must be shorter than 10 minutes (NCCL's default), after which other ranks stop waiting for this one.
PATIENCE_S = 180.0
FIRST_DELAY_S = 0.25
LONGEST_DELAY_S = 15.0
# S3 answers in 0.1-0.2 s; a server that sends nothing for this long has lost the request.
CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 20.0
SIZE_TIMEOUT_S = 30.0  # fsspec asks for a size twice, by HEAD and GET, and each may time out
NOTICE_S = 5.0  # nobody should wonder for longer why nothing happens
# A server that ignores ranges sends whole shards, so this is not retried for all of PATIENCE_S.
MAX_IGNORED_RANGES = 3
CONNECTIONS = 32  # per loader worker; botocore's 10 would make the utterances of a batch wait for each other
WARNING_INTERVAL_S = 60.0

# Only these schemes: fsspec has others that run a program, or unpack the content of another URL.
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

# Listed by module: a class whose module has not been imported cannot have been raised.
_TRANSIENT_ERRORS = {
    "aiohttp": ("ClientConnectionError", "ClientPayloadError"),
    "azure.core.exceptions": ("ServiceRequestError", "ServiceResponseError"),
    "botocore.exceptions": ("ConnectionError", "FlexibleChecksumError", "HTTPClientError", "IncompleteReadError"),
    "botocore.parsers": ("ResponseParserError",),
}


def is_remote(url: str) -> bool:
    """Return whether `url` must be read with fsspec.

    Raises:
        InputError: the scheme is unsupported: a foreign manifest must not choose what code runs.
    """
    scheme, separator, _ = url.partition("://")
    if not separator or scheme == "file":
        return False
    if scheme not in PACKAGE_OF_SCHEME or "::" in url:
        known = ", ".join(("file", *PACKAGE_OF_SCHEME))
        raise InputError(f"{url}: files are read from local paths and {known} URLs only, without '::'.")
    return True


class WrongLengthError(OSError):
    """Successful response of a server with a number of bytes that was not requested."""

    def __init__(self, requested: int, received: int) -> None:
        super().__init__(f"requested {requested} bytes, received {received}")
        self.is_too_long = received > requested


class RemoteFiles:
    """Reader of byte ranges over the network; the ranges of one call are requested all at once.

    There is one fsspec file system per scheme and process, since their event loops and threads do not survive a fork. A
    child leaves inherited ones untouched: closing them would remove the parent's sockets from the shared epoll set.
    """

    def __init__(self) -> None:
        self._file_systems: dict[tuple[int, str], Any] = {}
        self._last_warning_s = -WARNING_INTERVAL_S

    def fetch(self, refs: Sequence[AudioRef]) -> list[bytes]:
        """Read the bytes of each ref, in order.

        Raises:
            InputError: an object does not exist, may not be read, or could not be read within PATIENCE_S.
        """
        bodies: dict[int, bytes] = {}
        ignored_ranges: Counter[AudioRef] = Counter()
        started_s = time.monotonic()
        attempt = 0
        while missing := [i for i in range(len(refs)) if i not in bodies]:
            attempt += 1
            answers = dict(zip(missing, self._request([refs[i] for i in missing]), strict=True))
            bodies |= {i: answer for i, answer in answers.items() if isinstance(answer, bytes)}
            failed = [(refs[i], answer) for i, answer in answers.items() if not isinstance(answer, bytes)]
            if failed:
                elapsed_s = time.monotonic() - started_s
                ignored_ranges.update(ref for ref, error in failed if _is_range_ignored(error))
                _raise_if_hopeless(failed, attempt, elapsed_s, ignored_ranges)
                self._warn([ref for ref, _ in failed], _text(failed[0][1]))
                time.sleep(_delay_s(attempt, elapsed_s))
        return [bodies[i] for i in range(len(refs))]

    def _request(self, refs: Sequence[AudioRef]) -> list[bytes | BaseException]:
        """Make one attempt; return the body of each ref, or the error."""
        answers: dict[int, bytes | BaseException] = {}
        schemes = [ref.url.partition("://")[0] for ref in refs]
        for scheme in dict.fromkeys(schemes):
            positions = [i for i, other in enumerate(schemes) if other == scheme]
            with self._notice([refs[i] for i in positions]):
                bodies_or_errors = _read_all(self._file_system(scheme), [refs[i] for i in positions])
            answers |= dict(zip(positions, bodies_or_errors, strict=True))
        return [answers[i] for i in range(len(refs))]

    def _file_system(self, scheme: str) -> Any:
        key = os.getpid(), scheme
        if key not in self._file_systems:
            self._file_systems[key] = _connect(scheme)
        return self._file_systems[key]

    @contextmanager
    def _notice(self, refs: Sequence[AudioRef]) -> Iterator[None]:
        """Warn if the block takes longer than NOTICE_S: a server that never answers makes no error for a while."""
        timer = threading.Timer(NOTICE_S, self._warn, (refs, f"no complete answer after {NOTICE_S:g} s"))
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _warn(self, refs: Sequence[AudioRef], problem: str) -> None:
        """Warn once per burst of failures, which may last for many batches."""
        now_s = time.monotonic()
        if now_s - self._last_warning_s >= WARNING_INTERVAL_S:
            log.warning("%s: %s; retrying %d reads for up to %g s.", _shown(refs[0]), problem, len(refs), PATIENCE_S)
        self._last_warning_s = now_s


def _raise_if_hopeless(
    failed: list[tuple[AudioRef, BaseException]], attempt: int, elapsed_s: float, ignored_ranges: Counter[AudioRef]
) -> None:
    """Raise InputError for an error that another attempt cannot cure, or after the last attempt."""
    for ref, error in failed:
        if not _is_transient(error):
            raise InputError(f"{_shown(ref)}: {_remedy(error)} ({_text(error)})") from error
        if _is_range_ignored(error) and ignored_ranges[ref] >= MAX_IGNORED_RANGES:
            raise InputError(
                f"{_shown(ref)}: {error}: this server does not support range requests. Put the shards on one that does,"
                " such as S3, or on a local disk."
            ) from error
    ref, error = failed[0]
    if elapsed_s >= PATIENCE_S:
        raise InputError(
            f"{_shown(ref)}: not read in {attempt} attempts over {elapsed_s:.0f} s: {_text(error)}. Check"
            " that the store is reachable and that the manifest was made for this version of the file, then resume from"
            " the last checkpoint."
        ) from error


def _delay_s(attempt: int, elapsed_s: float) -> float:
    """Return the delay before the next attempt: it doubles each time, with jitter to spread the workers."""
    longest_s = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2 ** min(attempt - 1, 10), max(0.0, PATIENCE_S - elapsed_s))
    # SystemRandom leaves the state of `random`, which the user may have seeded, unchanged.
    return longest_s * random.SystemRandom().uniform(0.5, 1)


def _connect(scheme: str) -> Any:
    import fsspec  # slow to import, and most corpora are local

    try:
        # fsspec's cache of instances would share this one with other code, which may close it.
        file_system = fsspec.filesystem(scheme, skip_instance_cache=True, **_options(scheme))
    except ImportError as error:
        raise InputError(f"{scheme}:// needs a package: pip install {PACKAGE_OF_SCHEME[scheme]}") from error
    if scheme == "s3":
        file_system.retries = 1  # only we retry, so that PATIENCE_S holds
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


def _read_all(file_system: Any, refs: Sequence[AudioRef]) -> list[bytes | BaseException]:
    if not file_system.async_impl:
        return [_read_one(file_system, ref) for ref in refs]
    from fsspec.asyn import sync

    return sync(file_system.loop, _gather, file_system, refs)


async def _gather(file_system: Any, refs: Sequence[AudioRef]) -> list[bytes | BaseException]:
    return await asyncio.gather(*(_read_one_async(file_system, ref) for ref in refs), return_exceptions=True)


async def _read_one_async(file_system: Any, ref: AudioRef) -> bytes:
    path = file_system._strip_protocol(ref.url)
    size = None if ref.num_bytes else await asyncio.wait_for(file_system._size(path), SIZE_TIMEOUT_S)
    end = _end(ref, size)
    return _checked(await file_system._cat_file(path, start=ref.byte_offset, end=end), end - ref.byte_offset)


def _read_one(file_system: Any, ref: AudioRef) -> bytes | Exception:
    path = file_system._strip_protocol(ref.url)
    try:
        end = _end(ref, None if ref.num_bytes else file_system.size(path))
        return _checked(file_system.cat_file(path, start=ref.byte_offset, end=end), end - ref.byte_offset)
    except Exception as error:
        return error


def _end(ref: AudioRef, size: int | None) -> int:
    """Return the end of the ref's bytes. Without a size, a body that was truncated in transit would go unnoticed."""
    if ref.num_bytes:
        return ref.byte_offset + ref.num_bytes
    if size is None:
        raise InputError("the server does not report the file's size; give byte_offset and num_bytes in the manifest")
    if size <= ref.byte_offset:
        raise InputError(f"the file has {size} bytes")
    return size


def _checked(body: bytes, num_bytes: int) -> bytes:
    if len(body) != num_bytes:
        raise WrongLengthError(num_bytes, len(body))
    return body


def _is_range_ignored(error: BaseException) -> bool:
    return isinstance(error, WrongLengthError) and error.is_too_long


def _is_transient(error: BaseException) -> bool:
    """Return whether the same request may succeed later."""
    if any(isinstance(e, _transient_types()) for e in _with_causes(error)):
        return True
    status = _http_status(error)
    if status is not None:
        return status in (408, 429) or status >= 500
    return isinstance(error, OSError) and not isinstance(error, FileNotFoundError | PermissionError)


def _transient_types() -> tuple[type[Exception], ...]:
    loaded = [(sys.modules[module], names) for module, names in _TRANSIENT_ERRORS.items() if module in sys.modules]
    return TimeoutError, ConnectionError, *(getattr(module, name) for module, names in loaded for name in names)


def _with_causes(error: BaseException) -> Iterator[BaseException]:
    """Yield the error and its causes: libraries translate errors, and the server's answer is in the cause."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def _http_status(error: BaseException) -> int | None:
    """Return the HTTP status of an error of botocore, aiohttp, gcsfs or azure; None if it has none."""
    for e in _with_causes(error):
        response = getattr(e, "response", None)
        metadata = response.get("ResponseMetadata", {}) if isinstance(response, dict) else {}
        if isinstance(status := metadata.get("HTTPStatusCode"), int):
            return status
        for name in ("status", "status_code", "code"):
            if isinstance(status := getattr(e, name, None), int):
                return status
    return None


def _remedy(error: BaseException) -> str:
    status = _http_status(error)
    if status == 404 or isinstance(error, FileNotFoundError):
        return "object not found; compare the manifest with the contents of the store"
    if status in (401, 403) or isinstance(error, PermissionError):
        return "access denied; allow these credentials to read it (s3:GetObject)"
    if status == 416:
        return "the object ends before these bytes; the manifest was made for another version of it"
    if "Credentials" in type(error).__name__:
        return "no credentials; configure a profile or a role, or for a public bucket set FSSPEC_S3_ANON=true"
    return "cannot be read"


def _shown(ref: AudioRef) -> str:
    return _without_secrets(ref.url) + str(ref).removeprefix(ref.url)


def _text(error: BaseException) -> str:
    error = next((cause for cause in _with_causes(error) if isinstance(cause, _transient_types())), error)
    return _without_secrets(f"{type(error).__name__}: {error}").rstrip(": .")


def _without_secrets(text: str) -> str:
    """Remove the query of a URL, which may hold a signature, and user and password."""
    return re.sub(r"://[^/\s'\"]*@", "://", re.sub(r"\?[^\s'\")]*", "", text))
