"""An S3 server on loopback, and a proxy before it that injects faults. Fixtures: `pytest_plugins = ["s3"]`.

PYTEST_DONT_REWRITE: the tests import names from here before pytest does.
"""

import http.client
import itertools
import os
import secrets
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from enum import Enum, auto
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import pytest

from w2v_lightning.data import remote


class Fault(Enum):
    SILENT = auto()  # until the client gives up
    RESET = auto()
    RESET_IN_BODY = auto()
    SLOW_DOWN = auto()
    INTERNAL_ERROR = auto()
    CUT_OFF = auto()  # fewer bytes than Content-Length says
    SHORT = auto()  # fewer bytes than asked for, and Content-Length agrees
    RANGE_IGNORED = auto()
    FORBIDDEN = auto()


PASSING = [fault for fault in Fault if fault is not Fault.FORBIDDEN]
STATUS_AND_CODE = {
    Fault.SLOW_DOWN: (503, "SlowDown"),
    Fault.INTERNAL_ERROR: (500, "InternalError"),
    Fault.FORBIDDEN: (403, "AccessDenied"),
}


def every(n: int, *faults: Fault) -> Callable[[int], Fault | None]:
    """The n-th, 2n-th, ... request meets the faults in turn."""
    in_turn = itertools.cycle(faults)
    return lambda number: None if number % n else next(in_turn)


class Proxy(ThreadingHTTPServer):
    """Passes requests on, one per connection; `fault_of(number)` says what goes wrong with the number-th (from 1)."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, upstream: tuple[str, int]):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = upstream
        self.fault_of: Callable[[int], Fault | None] = lambda number: None
        self.requests: list[str] = []
        self.num_faults = 0
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def next_fault(self, request: str) -> Fault | None:
        with self._lock:
            self.requests.append(request)
            fault = self.fault_of(len(self.requests))
            self.num_faults += fault is not None
            return fault

    def handle_error(self, request, client_address) -> None:
        """A client that hangs up is part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        fault = self.server.next_fault(f"{self.command} {self.path} {self.headers.get('Range', '')}")
        self.close_connection = True
        if fault is Fault.SILENT:
            self.connection.recv(1)  # returns when the client hangs up
        elif fault is Fault.RESET:
            self._reset()
        elif fault in STATUS_AND_CODE:
            status, code = STATUS_AND_CODE[fault]
            self._answer(status, f"<Error><Code>{code}</Code><Message>Injected.</Message></Error>".encode())
        else:
            self._pass_on(fault)

    do_HEAD = do_PUT = do_POST = do_GET

    def _pass_on(self, fault: Fault | None) -> None:
        connection = http.client.HTTPConnection(*self.server.upstream)
        dropped = ("connection", "range") if fault is Fault.RANGE_IGNORED else ("connection",)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in dropped}
        sent = self.rfile.read(int(self.headers["Content-Length"] or 0))
        connection.request(self.command, self.path, sent, headers)
        answer = connection.getresponse()
        body = answer.read()
        length = int(answer.headers["Content-Length"] or 0) if self.command == "HEAD" else len(body)
        connection.close()
        if fault is Fault.SHORT and self.command == "GET":
            body, length = body[: len(body) // 2], length // 2
        if fault in (Fault.CUT_OFF, Fault.RESET_IN_BODY):
            body = body[: len(body) // 2]
        self._answer(answer.status, body, length, answer.getheader("ETag"))
        if fault is Fault.RESET_IN_BODY:
            self._reset()

    def _answer(self, status: int, body: bytes, length: int | None = None, etag: str | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.send_header("Connection", "close")
        if etag:
            self.send_header("ETag", etag)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _reset(self) -> None:
        """Close without a farewell: the client gets ECONNRESET."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        os.close(self.connection.detach())

    def log_message(self, *args) -> None:
        pass


class Store:
    """A bucket, written to directly and read through the proxy."""

    def __init__(self, client: Any, proxy: Proxy):
        self.bucket = f"bucket-{secrets.token_hex(4)}"
        self.proxy = proxy
        self._client = client
        client.create_bucket(Bucket=self.bucket)

    def put(self, key: str, body: bytes) -> str:
        self._client.put_object(Bucket=self.bucket, Key=key, Body=body, ACL="public-read")  # for http://, unsigned
        return f"s3://{self.bucket}/{key}"


@pytest.fixture(scope="session")
def moto() -> Iterator[Any]:
    """A boto3 client of moto's server, which runs in this process."""
    pytest.importorskip("s3fs", reason="pip install 'w2v-lightning[aws]'")
    server_module = pytest.importorskip("moto.server", reason="pip install 'moto[server]'")
    server = server_module.ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    import boto3

    keys = {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "region_name": "us-east-1"}
    yield boto3.Session(**keys).client("s3", endpoint_url="http://{}:{}".format(*server.get_host_and_port()))
    server.stop()


def use_credentials(monkeypatch: pytest.MonkeyPatch, key: str = "key", secret: str = "secret") -> None:
    """For tests, so that the user's own are neither needed nor used."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture
def store(moto, monkeypatch) -> Iterator[Store]:
    """A new bucket behind a new proxy, and short delays between attempts."""
    import s3fs

    use_credentials(monkeypatch)
    address = urlsplit(moto.meta.endpoint_url)
    proxy = Proxy((address.hostname, address.port))
    threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
    monkeypatch.setattr(remote, "FIRST_DELAY_S", 0.01)
    s3fs.S3FileSystem.clear_instance_cache()  # those of an earlier test know its proxy
    yield Store(moto, proxy)
    proxy.shutdown()
    proxy.server_close()
