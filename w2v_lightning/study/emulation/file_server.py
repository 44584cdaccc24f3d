"""HTTP server of a folder with a limited rate, as a process.

    python -m w2v_lightning.study.emulation.file_server FOLDER BYTES_PER_S PORT

Port 0 is any. It prints its port, and ends when its standard input does.
"""

import os
import re
import sys
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

CHUNK_S = 2e-3  # seconds of data sent at once: shorter sleeps cost more than they last, over hundreds of connections
LEAST_CHUNK_BYTES = 4096
RANGE = re.compile(r"bytes=(\d+)-(\d*)")


class Bucket:
    """Rate limit in bytes a second, shared by all threads."""

    def __init__(self, bytes_per_s: float) -> None:
        self.chunk_bytes = max(LEAST_CHUNK_BYTES, int(CHUNK_S * bytes_per_s))
        self._bytes_per_s = bytes_per_s
        self._free_s = 0.0
        self._lock = threading.Lock()

    def wait_for(self, num_bytes: int) -> None:
        with self._lock:
            self._free_s = max(time.monotonic(), self._free_s) + num_bytes / self._bytes_per_s
            free_s = self._free_s
        time.sleep(max(0.0, free_s - time.monotonic()))


class Handler(BaseHTTPRequestHandler):
    """Handler for files of one folder, whole or in ranges."""

    protocol_version = "HTTP/1.1"
    folder: Path
    bucket: Bucket

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self, with_body: bool) -> None:
        path = (self.folder / unquote(urlsplit(self.path).path).lstrip("/")).resolve()
        if not (path.is_file() and path.is_relative_to(self.folder)):
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        size = path.stat().st_size
        asked = RANGE.fullmatch(self.headers.get("Range", ""))
        first, last = (int(asked[1]), min(int(asked[2] or size - 1), size - 1)) if asked else (0, size - 1)
        self.send_response(HTTPStatus.PARTIAL_CONTENT if asked else HTTPStatus.OK)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(last - first + 1))
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.end_headers()
        if with_body:
            self._send(path, first, last)

    def _send(self, path: Path, first: int, last: int) -> None:
        with path.open("rb") as file:
            file.seek(first)
            while chunk := file.read(min(self.bucket.chunk_bytes, last + 1 - file.tell())):
                self.bucket.wait_for(len(chunk))
                self.wfile.write(chunk)


class Server(ThreadingHTTPServer):
    """Server with a long queue: loaders open hundreds of connections at once, and refused ones wait for seconds."""

    daemon_threads = True
    request_queue_size = 1024


def main(arguments: list[str]) -> None:
    folder, bytes_per_s, port = arguments
    Handler.folder, Handler.bucket = Path(folder), Bucket(float(bytes_per_s))
    server = Server(("127.0.0.1", int(port)), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_port, flush=True)
    while os.read(sys.stdin.fileno(), 1):
        pass


if __name__ == "__main__":
    main(sys.argv[1:])
