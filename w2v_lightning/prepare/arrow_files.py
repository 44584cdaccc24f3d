"""Parquet and Arrow files, read in a child process: pyarrow may crash on a damaged one, which is reported by name."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from multiprocessing import Pipe
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from w2v_lightning.errors import InputError

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    import pyarrow

WORKER = Path(__file__).with_name("arrow_worker.py")


class ArrowFiles:
    """Reader of any number of files by one child process, which a crash replaces; a context manager."""

    _child: subprocess.Popen[bytes]
    _connection: "Connection[bytes, bytes]"
    _is_busy: bool  # the file that was opened last has not been read to its end

    def __enter__(self) -> "ArrowFiles":
        self._start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop()

    def schema(self, path: Path) -> "pyarrow.Schema":
        """Open a file (Parquet by its suffix, else an Arrow stream) and return its schema.

        Raises:
            InputError: it does not exist, or is damaged; names it.
        """
        import pyarrow as pa

        if self._is_busy:
            self._stop()
            self._start()
        self._is_busy = True
        self._connection.send_bytes(os.fsencode(path))
        return pa.ipc.read_schema(pa.py_buffer(self._receive(path)))

    def batches(self, path: Path, columns: Sequence[str]) -> Iterator["pyarrow.RecordBatch"]:
        """Yield the rows of the file that was opened last, a few at a time, with these columns in this order.

        Raises:
            InputError: it is damaged; names it.
        """
        import pyarrow as pa

        self._connection.send_bytes(json.dumps(columns).encode())
        while data := self._receive(path):
            with pa.ipc.open_stream(data) as stream:
                yield stream.read_next_batch()
        self._is_busy = False

    def _start(self) -> None:
        self._is_busy = False
        self._connection, theirs = Pipe()
        with theirs:
            # -P: the folder of the program holds modules with common names, which must not hide installed ones.
            command = [sys.executable, "-P", str(WORKER), str(theirs.fileno())]
            self._child = subprocess.Popen(  # noqa: S603
                command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )

    def _stop(self) -> None:
        self._connection.close()
        self._child.kill()
        self._child.wait()

    def _receive(self, path: Path) -> bytes:
        """Return the content of the next message; empty at the end of the file."""
        try:
            message = self._connection.recv_bytes()
        except (EOFError, ConnectionError):
            status = self._child.wait()
            end = signal.Signals(-status).name if status < 0 else f"status {status}"
            raise InputError(f"{path}: damaged: pyarrow crashes on it ({end}). Download or export it again.") from None
        if message[:1] == b"E" and len(message) > 1:
            reason = " ".join(message[1:].decode().split()).rstrip(".")
            raise InputError(f"{path}: damaged, or not a file of a dataset: {reason}. Download or export it again.")
        return message[1:]
