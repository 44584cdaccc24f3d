"""Hosts, links and storage that are emulated do what they were asked to, as measured from inside."""

import asyncio
import json
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from w2v_lightning.errors import InputError
from w2v_lightning.study.emulation import Hosts, Storage
from w2v_lightning.study.emulation.hosts import NAMESPACES, PREFIX, TUN, remove_abandoned

LIMIT_S = 60
PORT = 7000

# Python's own sockets, a process for each end: a message that comes back, and many bytes one way.
SERVER = """
import socket, sys
with socket.create_server((sys.argv[1], {port})) as server:
    print("ready", flush=True)
    connection, _ = server.accept()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while data := connection.recv(2**20):
        connection.sendall(data[-1:] if data.endswith(b"!") else b"")
"""
CLIENT = """
import json, socket, sys, time
with socket.create_connection((sys.argv[1], {port})) as connection:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    def seconds(message):
        began = time.monotonic()
        connection.sendall(message)
        assert connection.recv(1) == b"!"
        return time.monotonic() - began
    # The fastest of some: what is late is this machine, and not the link.
    there_and_back = min(seconds(b"!") for _ in range(9))
    many = bytes(int(sys.argv[2])) + b"!"
    seconds(many)  # TCP finds out what the link carries
    print(json.dumps([there_and_back, min(seconds(many) for _ in range(3))]))
"""


@pytest.fixture(autouse=True)
def namespaces():
    if sys.platform != "linux" or os.geteuid() or not TUN.exists():
        pytest.skip("namespaces need Linux, root and a TUN device")


def python(hosts, host, code, *arguments, **pipes):
    command = [*hosts.prefix(host), sys.executable, "-c", code.format(port=PORT), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **pipes)


def measured(hosts, num_bytes):
    """Seconds there and back, and bytes per second, from the last host to the first."""
    with python(hosts, 0, SERVER, hosts.address(0)) as server:
        try:
            assert server.stdout.readline() == "ready\n"
            with python(hosts, len(hosts) - 1, CLIENT, hosts.address(0), str(num_bytes)) as client:
                output, _ = client.communicate(timeout=LIMIT_S)
        finally:
            server.kill()
    there_and_back_s, many_s = json.loads(output)
    return there_and_back_s, num_bytes / many_s


@pytest.mark.parametrize(("mbit_per_s", "delay_ms"), [(50, 0), (50, 10), (200, 2)])
def test_a_link_has_the_rate_and_the_delay_that_were_set(mbit_per_s, delay_ms):
    with Hosts(2, mbit_per_s, delay_ms) as hosts:
        there_and_back_s, bytes_per_s = measured(hosts, int(mbit_per_s * 1e6 / 8 / 3))  # a third of a second of it
    assert 2e-3 * delay_ms <= there_and_back_s < 2e-3 * delay_ms + 15e-3
    assert 0.6 * mbit_per_s * 1e6 / 8 < bytes_per_s <= 1.02 * mbit_per_s * 1e6 / 8


def test_hosts_see_each_other_and_nothing_else():
    with Hosts(3, 100, 0) as hosts:
        measured(hosts, 1000)
        routes = subprocess.run([*hosts.prefix(1), "ip", "route"], capture_output=True, text=True, timeout=LIMIT_S)
    assert len(routes.stdout.splitlines()) == 1, routes.stdout
    assert "default" not in routes.stdout


def test_nothing_is_left_behind_also_by_a_process_that_was_killed():
    code = (
        "import sys, time\nfrom w2v_lightning.study.emulation import Hosts\n"
        "with Hosts(2, 100, 0) as hosts:\n print(hosts.prefix(1)[-1], flush=True)\n time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as killed:
        name = killed.stdout.readline().strip()
        assert (NAMESPACES / name).exists()
        killed.kill()
    with Hosts(1, 100, 0) as hosts:
        own = hosts.prefix(0)[-1]
        assert not (NAMESPACES / name).exists()
        remove_abandoned()
        assert (NAMESPACES / own).exists()  # its process lives
    assert not list(NAMESPACES.glob(f"{PREFIX}{os.getpid()}-*"))


def get(url, **headers):
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=LIMIT_S) as answer:
        return answer.status, answer.read()


@pytest.fixture
def prepared(tmp_path):
    folder = tmp_path / "prepared"
    folder.mkdir()
    row = {"id": "a", "audio_filepath": "shard.tar", "duration": 1.0, "text": "A", "byte_offset": 0, "num_bytes": 9}
    (folder / "train.jsonl").write_text(json.dumps(row) + "\n")
    (folder / "shard.tar").write_bytes(bytes(range(256)) * 400)
    return folder


def test_storage_gives_files_and_ranges_and_is_no_faster_than_asked(prepared):
    whole = (prepared / "shard.tar").read_bytes()
    with Storage(prepared, mbit_per_s=1.6) as storage:
        began = time.monotonic()
        assert get(f"{storage.url}/shard.tar") == (200, whole)
        assert get(f"{storage.url}/shard.tar", Range="bytes=1000-51199") == (206, whole[1000:51200])
        seconds = time.monotonic() - began
    expected_s = (len(whole) + 50_200) / 200_000
    assert expected_s <= seconds < 3 * expected_s


def test_storage_keeps_its_rate_over_hundreds_of_connections(prepared):
    """Loaders connect all at once; what the server does not take then, the system tries again after seconds."""
    size, number = (prepared / "shard.tar").stat().st_size, 500

    async def received(port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /shard.tar HTTP/1.1\r\nHost: x\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        content = await reader.readexactly(size)
        writer.close()
        return head.startswith(b"HTTP/1.1 200") and len(content)

    async def all_received(port):
        return await asyncio.gather(*(received(port) for _ in range(number)))

    with Storage(prepared, mbit_per_s=200) as storage:
        began = time.monotonic()
        port = int(storage.url.rpartition(":")[2])
        sizes = asyncio.run(asyncio.wait_for(all_received(port), LIMIT_S))
        seconds = time.monotonic() - began
    assert sizes == [size] * number
    assert number * size / 25e6 <= seconds < 2 * number * size / 25e6


def test_storage_gives_nothing_outside_its_folder(prepared):
    (prepared.parent / "secret").write_text("x")
    with Storage(prepared, 100) as storage, pytest.raises(urllib.error.HTTPError, match="404"):
        get(f"{storage.url}/%2e%2e/secret")


def test_storage_without_a_manifest_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"prepare CORPUS --out DIR"):
        Storage(tmp_path, 8).__enter__()


def test_storage_whose_audio_lies_elsewhere_is_refused(prepared, tmp_path):
    row = {"id": "a", "audio_filepath": str(tmp_path / "a.flac"), "duration": 1.0, "text": "A"}
    (prepared / "other.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(InputError, match=r"other\.jsonl: its audio is elsewhere .*--shard_size"):
        Storage(prepared, 8).__enter__()


def test_each_host_has_its_own_storage(prepared):
    code = "import urllib.request, sys; print(len(urllib.request.urlopen(sys.argv[1] + '/shard.tar').read()))"
    with Hosts(2, 100, 0) as hosts, Storage(prepared, 100, hosts) as storage:
        for host in range(2):
            with python(hosts, host, code, storage.url) as client:
                output, _ = client.communicate(timeout=LIMIT_S)
            assert int(output) == Path(prepared, "shard.tar").stat().st_size
