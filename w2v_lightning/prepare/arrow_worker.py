"""Program that reads Parquet and Arrow files for `arrow_files.py`, because pyarrow may crash on a damaged one.

It is run by path, not imported, and so imports nothing of this package. Messages are bytes; the first byte tells the
kind. The parent sends a path and receives the schema (S). It sends a JSON list of columns and receives record batches
(B), each as an Arrow stream of its own. The last message (E) holds the reason if the file is damaged.
"""

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import pyarrow as pa
from pyarrow import parquet

ROWS_PER_BATCH = 16  # small, because each row may hold a whole audio file


def main(connection: Connection) -> None:
    """Serve one file after the other until the parent closes the connection."""
    while True:
        try:
            path = os.fsdecode(connection.recv_bytes())
        except EOFError:
            return
        reason = ""
        try:
            _send_file(path, connection)
        except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
            reason = str(error) or type(error).__name__
        connection.send_bytes(b"E" + reason.encode(errors="replace"))


def _send_file(path: str, connection: Connection) -> None:
    with _opened(path) as (schema, batches):
        _ = schema.names  # raises here, not in the parent, if they are not UTF-8 text
        connection.send_bytes(b"S" + schema.serialize().to_pybytes())
        columns = json.loads(connection.recv_bytes())
        for batch in (whole.select(columns) for whole in batches(columns)):  # Parquet's come in the file's order
            batch.validate(full=True)  # offsets beyond the data would make the parent crash in place of this process
            sink = pa.BufferOutputStream()
            sink.write(b"B")
            with pa.ipc.new_stream(sink, batch.schema) as stream:
                stream.write_batch(batch)
            connection.send_bytes(sink.getvalue())


@contextmanager
def _opened(path: str) -> Iterator[tuple[pa.Schema, Any]]:
    """Yield the schema, and the function that yields the batches of some columns."""
    if path.endswith(".parquet"):
        # A buffered stream is read piece by piece; without it, pyarrow holds whole columns of a row group in memory.
        with parquet.ParquetFile(path, buffer_size=1 << 20, page_checksum_verification=True) as file:
            yield file.schema_arrow, lambda columns: file.iter_batches(ROWS_PER_BATCH, columns=columns)
    else:
        with pa.memory_map(path) as file, pa.ipc.open_stream(file) as stream:
            yield stream.schema, lambda columns: _slices(stream)


def _slices(stream: Any) -> Iterator[pa.RecordBatch]:
    for batch in stream:
        yield from (batch.slice(i, ROWS_PER_BATCH) for i in range(0, len(batch), ROWS_PER_BATCH))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent, which gets it, too, ends this process
    main(Connection(int(sys.argv[1])))
