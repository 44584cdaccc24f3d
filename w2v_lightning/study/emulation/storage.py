"""Emulated slow storage: a folder over HTTP (file_server.py), with a server of its own on each emulated host."""

import subprocess
import sys
from pathlib import Path

from w2v_lightning.data.manifest import Manifest
from w2v_lightning.errors import InputError
from w2v_lightning.study.emulation.hosts import Hosts

LIMIT_S = 30.0
PREPARE = (
    "`python -m w2v_lightning prepare CORPUS --out DIR --shard_size 100MB` makes one, with the audio beside it; give"
    " DIR as data.root."
)


class Storage:
    """Slow storage, as a context manager: within it, `url` is a root for LibriSpeechDataModule.

    Args:
        folder: prepared data.
        mbit_per_s: highest rate at which a host reads, over all its connections.
        hosts: emulated hosts; None: this host.

    Raises:
        InputError: the folder has no manifest, its audio is elsewhere, or a server could not be started.
    """

    def __init__(self, folder: str | Path, mbit_per_s: float, hosts: Hosts | None = None) -> None:
        self._folder = Path(folder).expanduser().resolve()
        self._bytes_per_s = mbit_per_s * 1e6 / 8
        self._prefixes = [hosts.prefix(i) for i in range(len(hosts))] if hosts else [[]]
        self._servers: list[subprocess.Popen] = []
        self.url = ""

    def __enter__(self) -> "Storage":
        self._check()
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
            for stream in (server.stdin, server.stdout):
                assert stream is not None  # opened with PIPE
                stream.close()
            server.wait(LIMIT_S)

    def _check(self) -> None:
        manifests = list(self._folder.glob("*.jsonl*"))
        if not manifests:
            raise InputError(
                f"{self._folder}: slow storage serves prepared data, but this folder has no manifest: {PREPARE}"
            )
        for path in manifests:
            first = Manifest.load(path).audio(0).url
            if not Path(first.removeprefix("file://")).resolve().is_relative_to(self._folder):
                raise InputError(f"{path}: its audio is elsewhere ({first}), where it would not be slow: {PREPARE}")

    def _start(self, prefix: list[str], port: int) -> int:
        """Start the server of one host; the port is the same on all hosts."""
        module = [sys.executable, "-m", "w2v_lightning.study.emulation.file_server"]
        command = [*prefix, *module, str(self._folder), str(self._bytes_per_s), str(port)]
        pipe = subprocess.PIPE
        server = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)  # noqa: S603  (our own command)
        self._servers.append(server)
        assert server.stdout is not None  # opened with PIPE
        line = server.stdout.readline()
        if not line.strip().isdigit():
            raise InputError(f"{self._folder}: slow storage could not be started; see above.")
        return int(line)
