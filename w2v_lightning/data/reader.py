"""Reading of encoded audio by (URL, offset, length), from local files, mounts, object stores and web servers."""

import hashlib
import io
import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import soundfile

from w2v_lightning.data import flac
from w2v_lightning.data.audio_ref import AudioRef
from w2v_lightning.data.cache import RangeCache
from w2v_lightning.data.decoded import DecodedFiles
from w2v_lightning.data.remote import RemoteFiles, is_remote
from w2v_lightning.errors import InputError

MAX_OPEN_SHARDS = 64  # per process; a LibriSpeech of 960 h in shards of 512 MB is 120 files


class AudioReader:
    """Reader of encoded audio, for the main process and any number of loader workers.

    Nothing is opened before the first read, a copy in a forked process makes its own connections, and pickling keeps
    only the options. It is not thread-safe.

    Args:
        cache_dir: folder to cache ranges of remote files in; None: no cache. Local files are never cached. See
            `RangeCache` for its guarantees.
        cache_gib: size limit of that folder in GiB; the least recently used files are removed first. Each process that
            writes may exceed it by 1 %.
        verify: compare the decoded samples of every FLAC file with the MD5 in its header; costs as much as decoding,
            about 0.26 ms per second of audio.

    Raises:
        InputError: `cache_gib` is not positive.
    """

    def __init__(self, cache_dir: str | Path | None = None, cache_gib: float = 50.0, verify: bool = False) -> None:
        if not cache_gib > 0:
            raise InputError(f"data.cache_gib must be a positive number of GiB, found {cache_gib}.")
        self.cache_dir = cache_dir
        self.cache_gib = cache_gib
        self.verify = verify
        self._cache = RangeCache(Path(cache_dir).expanduser(), int(cache_gib * 2**30)) if cache_dir else None
        self.kept = DecodedFiles()  # for segments of a local recording
        self._local = _LocalFiles()
        self._remote = RemoteFiles()

    def __reduce__(self) -> tuple:
        return AudioReader, (self.cache_dir, self.cache_gib, self.verify)

    def read(self, refs: Sequence[AudioRef]) -> list[bytes]:
        """Read the file or byte range of each ref, in order; remote ones are requested all at once.

        Raises:
            InputError: a URL scheme is unsupported; a file or object does not exist, may not be read or is too short; a
                store does not recover (`remote.PATIENCE_S`); with `verify`, FLAC data is damaged.
        """
        remote = [i for i, ref in enumerate(refs) if is_remote(ref.url)]
        bodies = dict(zip(remote, self._read_remote([refs[i] for i in remote]), strict=True))
        data = [bodies[i] if i in bodies else self._local.read(ref) for i, ref in enumerate(refs)]
        return [self._verified(ref, body) for ref, body in zip(refs, data, strict=True)] if self.verify else data

    def _read_remote(self, refs: Sequence[AudioRef]) -> list[bytes]:
        if self._cache is None:
            return self._remote.fetch(refs)
        cached = [self._cache.get(ref) for ref in refs]
        missing = [i for i, body in enumerate(cached) if body is None]
        fetched = dict(zip(missing, self._fetch_and_cache([refs[i] for i in missing]), strict=True))
        return [fetched[i] if body is None else body for i, body in enumerate(cached)]

    def _fetch_and_cache(self, refs: Sequence[AudioRef]) -> list[bytes]:
        bodies = self._remote.fetch(refs)
        for ref, body in zip(refs, bodies, strict=True):
            if self._cache is not None:
                self._cache.put(ref, body)
        return bodies

    def _verified(self, ref: AudioRef, body: bytes) -> bytes:
        if has_valid_md5(body):
            return body
        if is_remote(ref.url):  # it may have been damaged in transit, or in the cache
            (body,) = self._fetch_and_cache([ref])
            if has_valid_md5(body):
                return body
        raise InputError(f"{ref}: the FLAC data is damaged: it does not match the MD5 in its header. Replace it.")


def has_valid_md5(data: bytes) -> bool:
    """Return whether FLAC data matches the MD5 in its header; true also without MD5 or length, and for other data."""
    info = flac.stream_info(data)
    if info is None or not any(info.md5) or not info.num_samples:
        return True
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as sound:
            samples = sound.read(dtype="int32", always_2d=True) >> (32 - info.bits)  # libsndfile fills the upper bits
    except soundfile.SoundFileError:
        return False
    return hashlib.md5(flac.pcm_bytes(samples, info.bits).data, usedforsecurity=False).digest() == info.md5


class _LocalFiles:
    """Reader of local files and mounts; the most recently read shards stay open."""

    def __init__(self) -> None:
        self._descriptors: OrderedDict[str, int] = OrderedDict()

    def read(self, ref: AudioRef) -> bytes:
        path = ref.url.removeprefix("file://")
        try:
            if not ref.num_bytes:
                return Path(path).read_bytes()[ref.byte_offset :]
            data = os.pread(self._descriptor(path), ref.num_bytes, ref.byte_offset)
        except OSError as error:
            raise InputError(f"{ref}: cannot be read: {error.strerror}.") from error
        if len(data) != ref.num_bytes:
            raise InputError(
                f"{ref}: expected {ref.num_bytes} bytes, found {len(data)}: the file is truncated, or the manifest was"
                " made for another version of it."
            )
        return data

    def _descriptor(self, path: str) -> int:
        if path in self._descriptors:
            self._descriptors.move_to_end(path)
            return self._descriptors[path]
        if len(self._descriptors) >= MAX_OPEN_SHARDS:
            os.close(self._descriptors.popitem(last=False)[1])
        self._descriptors[path] = os.open(path, os.O_RDONLY)
        return self._descriptors[path]

    def __del__(self) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)
