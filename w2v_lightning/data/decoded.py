"""Samples of files that were decoded as a whole, as no decoder seeks in them, for many segments of one recording."""

import io
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np

from w2v_lightning.data.sound import Sound


@dataclass(frozen=True)
class Decoded:
    """Samples of a whole file: float32, little-endian, channels interleaved."""

    content: bytes
    sample_rate: int  # Hz
    num_channels: int
    suffix: str  # of the format that they were decoded from
    shortage: str = ""  # how the file is truncated

    @classmethod
    def of(cls, samples_TC: np.ndarray, sample_rate: int, suffix: str, shortage: str = "") -> "Decoded":
        """Return the samples (T, C), which are copied."""
        content = np.ascontiguousarray(samples_TC, dtype="<f4").tobytes()
        return cls(content, sample_rate, samples_TC.shape[1], suffix, shortage)

    def open(self) -> Sound:
        """Return the samples as an open sound, without a copy."""
        raw = {"format": "RAW", "subtype": "FLOAT", "endian": "LITTLE"}
        sound = Sound(io.BytesIO(self.content), samplerate=self.sample_rate, channels=self.num_channels, **raw)
        sound.suffix, sound.shortage, sound.reopen = self.suffix, self.shortage, self.open
        return sound


class DecodedFiles:
    """The last files that were decoded as a whole, an hour of mono at 44.1 kHz in 0.6 GB; threads may share them.

    Args:
        max_files: number of files that are kept.
    """

    def __init__(self, max_files: int = 1) -> None:
        self._max_files = max_files
        self._lock = threading.Lock()
        self._files: OrderedDict[tuple[str, int, int], Future[Callable[[], Sound] | None]] = OrderedDict()

    def open(self, path: str, open_file: Callable[[], Sound]) -> Sound:
        """Return an open file: from memory if it is kept, else by `open_file`, whose samples are then kept."""
        status = os.stat(path)
        key = (path, status.st_mtime_ns, status.st_size)
        with self._lock:
            future, is_new = self._files.get(key), key not in self._files
            if future is None:
                future = self._files[key] = Future()
                while len(self._files) > self._max_files:
                    self._files.popitem(last=False)
        if not is_new:  # another thread may still decode it
            return (future.result() or open_file)()
        try:
            sound = open_file()
        except BaseException:
            future.set_result(None)
            raise
        future.set_result(sound.reopen)
        return sound
