"""Slow storage: a folder over HTTP, no faster than so many bytes a second; on each emulated host, one of its own.

    python -m launch.study.emulation.storage FOLDER BYTES_PER_S PORT

Port 0 is any. It prints its port and ends when its standard input does.
"""

import os
import re
import subprocess
import sys
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from launch.study.emulation.hosts import Hosts
from w2v_lightning.errors import InputError

CHUNK_BYTES = 4096
RANGE = re.compile(r"bytes=(\d+)-(\d*)")
LIMIT_S = 30.0


class Storage:
    """`with Storage(folder, mbit_per_s=8) as storage:` and then `storage.url` is a root for LibriSpeechDataModule.

    Args:
        folder: prepared data.
        mbit_per_s: what a host reads at most, over all its connections.
        hosts: emulated ones; None: this one.

    Raises:
        InputError: the folder has no manifest; or no server could be started.
    """

    def __init__(self, folder: str | Path, mbit_per_s: float, hosts: Hosts | None = None) -> None:
        self._folder = Path(folder).expanduser().resolve()
        self._bytes_per_s = mbit_per_s * 1e6 / 8
        self._prefixes = [hosts.prefix(i) for i in range(len(hosts))] if hosts else [[]]
        self._servers: list[subprocess.Popen] = []
        self.url = ""

    def __enter__(self) -> "Storage":
        if not list(self._folder.glob("*.jsonl*")):
            raise InputError(
                f"{self._folder}: slow storage serves prepared data, and there is no manifest here:"
                " `python -m w2v_lightning prepare CORPUS --out DIR` makes one; give DIR as data.root."
            )
        port = 0
        try:
            for prefix in self._prefixes:
                port = self._start(prefix, port)
        except BaseException:
            self.__exit__()
            raise
        self.url = f"http://127.0.0.1:{port}"
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers:
            server.stdin.close()
            server.wait(LIMIT_S)

    def _start(self, prefix: list[str], port: int) -> int:
        """Of one host; the same port on all."""
        module = [sys.executable, "-m", "launch.study.emulation.storage"]
        command = [*prefix, *module, str(self._folder), str(self._bytes_per_s), str(port)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        server = subprocess.Popen(command, **pipes)  # noqa: S603 (ourselves)
        self._servers.append(server)
        line = server.stdout.readline()
        if not line.strip().isdigit():
            raise InputError(f"{self._folder}: slow storage could not be started; see above.")
        return int(line)


class Bucket:
    """Lets so many bytes a second through, over all threads."""

    def __init__(self, bytes_per_s: float) -> None:
        self._bytes_per_s = bytes_per_s
        self._free_s = 0.0
        self._lock = threading.Lock()

    def wait_for(self, num_bytes: int) -> None:
        with self._lock:
            self._free_s = max(time.monotonic(), self._free_s) + num_bytes / self._bytes_per_s
            free_s = self._free_s
        time.sleep(max(0.0, free_s - time.monotonic()))


class Handler(BaseHTTPRequestHandler):
    """Whole files and ranges of them, of one folder."""

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
            while chunk := file.read(min(CHUNK_BYTES, last + 1 - file.tell())):
                self.bucket.wait_for(len(chunk))
                self.wfile.write(chunk)


def main(arguments: list[str]) -> None:
    folder, bytes_per_s, port = arguments
    Handler.folder, Handler.bucket = Path(folder), Bucket(float(bytes_per_s))
    server = ThreadingHTTPServer(("127.0.0.1", int(port)), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_port, flush=True)
    while os.read(sys.stdin.fileno(), 1):
        pass


if __name__ == "__main__":
    main(sys.argv[1:])
