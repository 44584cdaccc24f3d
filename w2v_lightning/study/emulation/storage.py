"""Slow storage: a folder over HTTP (file_server.py), on each emulated host one of its own."""

import subprocess
import sys
from pathlib import Path

from w2v_lightning.data.manifest import Manifest
from w2v_lightning.errors import InputError
from w2v_lightning.study.emulation.hosts import Hosts

LIMIT_S = 30.0
PREPARE = (
    "`python -m w2v_lightning prepare CORPUS --out DIR --shard-size 100MB` makes one, with the audio beside it; give"
    " DIR as data.root."
)


class Storage:
    """`with Storage(folder, mbit_per_s=8) as storage:` and then `storage.url` is a root for LibriSpeechDataModule.

    Args:
        folder: prepared data.
        mbit_per_s: what a host reads at most, over all its connections.
        hosts: emulated ones; None: this one.

    Raises:
        InputError: the folder has no manifest, or one whose audio lies elsewhere; or no server could be started.
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
            server.stdin.close()
            server.stdout.close()
            server.wait(LIMIT_S)

    def _check(self) -> None:
        manifests = list(self._folder.glob("*.jsonl*"))
        if not manifests:
            raise InputError(
                f"{self._folder}: slow storage serves prepared data, and there is no manifest here: {PREPARE}"
            )
        for path in manifests:
            first = Manifest.load(path).audio(0).url
            if not Path(first.removeprefix("file://")).resolve().is_relative_to(self._folder):
                raise InputError(f"{path}: its audio lies elsewhere ({first}), where it is not slow: {PREPARE}")

    def _start(self, prefix: list[str], port: int) -> int:
        """Of one host; the same port on all."""
        module = [sys.executable, "-m", "w2v_lightning.study.emulation.file_server"]
        command = [*prefix, *module, str(self._folder), str(self._bytes_per_s), str(port)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        server = subprocess.Popen(command, **pipes)  # noqa: S603 (ourselves)
        self._servers.append(server)
        line = server.stdout.readline()
        if not line.strip().isdigit():
            raise InputError(f"{self._folder}: slow storage could not be started; see above.")
        return int(line)
