import logging
import re
import shutil
import socket
import subprocess
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise

import numpy as np
import pytest
from s3 import PASSING, Fault, every, use_credentials

from w2v_lightning.data import remote
from w2v_lightning.data.audio_ref import AudioRef
from w2v_lightning.data.remote import RemoteFiles
from w2v_lightning.errors import InputError

pytest_plugins = ["s3"]

NUM_UTTERANCES = 16


@pytest.fixture
def utterances(store):
    """Refs into one shard of random bytes, out of order and of all sizes, and their expected bytes."""
    rng = np.random.default_rng(0)
    shard = rng.bytes(400_000)
    url = store.put("shards/one.tar", shard)
    places = list(pairwise(sorted(rng.choice(len(shard), NUM_UTTERANCES + 1, replace=False).tolist())))[::-1]
    return [AudioRef(url, start, end - start) for start, end in places], [shard[s:e] for s, e in places]


def test_ranges_come_in_order_with_one_request_each(store, utterances):
    refs, expected = utterances
    assert RemoteFiles().fetch(refs) == expected
    assert len(store.proxy.requests) == NUM_UTTERANCES
    assert f"bytes={refs[0].byte_offset}-{refs[0].byte_offset + refs[0].num_bytes - 1}" in "".join(store.proxy.requests)


def test_whole_files_and_ends_of_files_come_in_order(store):
    bodies = [b"one" * 1000, b"two" * 2000, b"three" * 3000]
    refs = [AudioRef(store.put(f"{i}.flac", body)) for i, body in enumerate(bodies)]
    assert RemoteFiles().fetch([refs[2], refs[0], refs[1]]) == [bodies[2], bodies[0], bodies[1]]
    assert RemoteFiles().fetch([AudioRef(refs[0].url, byte_offset=2990)]) == [bodies[0][2990:]]


@pytest.mark.parametrize("fault", PASSING, ids=lambda fault: fault.name)
def test_a_passing_fault_costs_time_and_no_byte(store, utterances, fault, monkeypatch):
    if fault is Fault.SILENT:
        monkeypatch.setattr(remote, "READ_TIMEOUT_S", 0.5)
    refs, expected = utterances
    store.proxy.fault_of = every(4, fault)
    assert RemoteFiles().fetch(refs) == expected
    assert store.proxy.num_faults >= NUM_UTTERANCES // 4
    if fault is not Fault.SILENT:  # a busy machine may be too slow for this time-out
        # Only failed ranges are requested again.
        assert len(store.proxy.requests) == NUM_UTTERANCES + store.proxy.num_faults


@pytest.mark.parametrize("fault", [*PASSING, None], ids=str)
def test_whole_files_survive_faults_of_both_their_requests(store, fault, monkeypatch):
    monkeypatch.setattr(remote, "READ_TIMEOUT_S", 0.5)
    bodies = [np.random.default_rng(i).bytes(30_000) for i in range(4)]
    refs = [AudioRef(store.put(f"{i}.flac", body)) for i, body in enumerate(bodies)]
    store.proxy.fault_of = every(3, *([fault] if fault else PASSING))
    assert RemoteFiles().fetch(refs) == bodies
    assert store.proxy.num_faults


def test_all_faults_mixed_cost_time_and_no_byte(store, utterances, monkeypatch):
    monkeypatch.setattr(remote, "READ_TIMEOUT_S", 0.3)
    refs, expected = utterances
    store.proxy.fault_of = every(2, *PASSING)
    files = RemoteFiles()
    for _ in range(2):
        assert files.fetch(refs) == expected
    assert store.proxy.num_faults > 2 * len(PASSING)


@pytest.mark.parametrize("fault", [f for f in PASSING if f is not Fault.RANGE_IGNORED], ids=lambda fault: fault.name)
def test_a_fault_that_never_ends_is_named_when_patience_does(store, utterances, fault, monkeypatch):
    monkeypatch.setattr(remote, "PATIENCE_S", 1.6)
    monkeypatch.setattr(remote, "READ_TIMEOUT_S", 0.2)
    refs, _ = utterances
    files = RemoteFiles()
    files.fetch(refs[:1])  # connect first, so that the time below does not include it
    store.proxy.requests.clear()
    store.proxy.fault_of = every(1, fault)
    remedy = "Check that the store is reachable and that the manifest was made for this version"
    with pytest.raises(InputError, match=remedy) as raised:
        files.fetch(refs[:1])
    attempts = re.search(r"shards/one\.tar \(bytes .*: not read in (\d+) attempts over", str(raised.value))[1]
    # The libraries do not retry on their own, except that aiohttp does once if a reset precedes the response.
    at_most = int(attempts) * (2 if fault is Fault.RESET else 1)
    assert int(attempts) <= len(store.proxy.requests) <= at_most
    assert 2 <= int(attempts) < 40  # the delay doubles


def test_a_server_that_never_knows_ranges_is_named_early(store, utterances):
    store.proxy.fault_of = every(1, Fault.RANGE_IGNORED)
    with pytest.raises(InputError, match="received 400000: this server does not support range requests"):
        RemoteFiles().fetch(utterances[0][:1])
    assert len(store.proxy.requests) == remote.MAX_IGNORED_RANGES


def test_a_range_that_is_ignored_once_behind_other_faults_is_read_again(store, utterances):
    refs, expected = utterances
    faults = [Fault.SLOW_DOWN] * remote.MAX_IGNORED_RANGES + [Fault.RANGE_IGNORED]
    store.proxy.fault_of = lambda number: faults[number - 1] if number <= len(faults) else None
    assert RemoteFiles().fetch(refs[:1]) == expected[:1]
    assert len(store.proxy.requests) == len(faults) + 1


def test_a_store_that_is_down_is_named_when_patience_ends(store, utterances, monkeypatch):
    monkeypatch.setattr(remote, "PATIENCE_S", 0.3)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{unused.getsockname()[1]}")
        with pytest.raises(InputError, match=r"not read in .* attempts .*EndpointConnectionError"):
            RemoteFiles().fetch(utterances[0])


def test_refused_access_fails_at_once(store, utterances):
    store.proxy.fault_of = every(1, Fault.FORBIDDEN)
    with pytest.raises(InputError, match=r"shards/one\.tar.*access denied.*s3:GetObject"):
        RemoteFiles().fetch(utterances[0][:1])
    assert len(store.proxy.requests) == 1


@pytest.mark.parametrize("url", ["s3://{bucket}/missing.tar", "s3://no-such-bucket-here/one.tar"])
def test_a_missing_object_or_bucket_fails_at_once(store, url):
    url = url.format(bucket=store.bucket)
    with pytest.raises(InputError, match="object not found") as raised:
        RemoteFiles().fetch([AudioRef(url, 0, 10)])
    assert str(raised.value).startswith(url)
    assert len(store.proxy.requests) == 1


def test_a_range_behind_the_end_fails_at_once(store, utterances):
    with pytest.raises(InputError, match="the object ends before these bytes"):
        RemoteFiles().fetch([AudioRef(utterances[0][0].url, 500_000, 10)])
    assert len(store.proxy.requests) == 1


def test_missing_credentials_fail_at_once(store, utterances, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with pytest.raises(InputError, match=r"no credentials; .* FSSPEC_S3_ANON=true"):
        RemoteFiles().fetch(utterances[0][:1])
    assert store.proxy.requests == []


def test_a_burst_of_failures_is_one_warning(store, utterances, caplog):
    refs, expected = utterances
    store.proxy.fault_of = every(2, Fault.SLOW_DOWN)
    files = RemoteFiles()
    with caplog.at_level(logging.WARNING, remote.__name__):
        for _ in range(3):
            assert files.fetch(refs) == expected
    (record,) = caplog.records
    assert "Injected; retrying 8 reads for up to 180 s." in record.message


def test_a_server_that_never_answers_is_named_at_once_and_given_up_in_time(monkeypatch, caplog):
    for name, seconds in {"NOTICE_S": 0.2, "SIZE_TIMEOUT_S": 1.0, "READ_TIMEOUT_S": 5.0, "PATIENCE_S": 0.5}.items():
        monkeypatch.setattr(remote, name, seconds)
    with socket.create_server(("127.0.0.1", 0)) as silent, caplog.at_level(logging.WARNING, remote.__name__):
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/a.wav"
        with pytest.raises(InputError, match=rf"{url}: not read in 1 attempts over 1 s: TimeoutError\. Check that"):
            RemoteFiles().fetch([AudioRef(url)])
    (record,) = caplog.records
    assert record.message == f"{url}: no complete answer after 0.2 s; retrying 1 reads for up to 0.5 s."


def test_http_ranges_and_whole_files_are_read_and_faults_survived(store, utterances):
    refs, expected = utterances
    refs = [AudioRef(ref.url.replace("s3:/", store.proxy.url), ref.byte_offset, ref.num_bytes) for ref in refs]
    store.proxy.fault_of = every(3, *(fault for fault in PASSING if fault is not Fault.SILENT))
    assert RemoteFiles().fetch(refs) == expected
    store.proxy.fault_of = every(1, Fault.FORBIDDEN)
    with pytest.raises(InputError, match="access denied") as raised:
        RemoteFiles().fetch([AudioRef(refs[0].url.replace("//", "//user:pass@") + "?X-Amz-Signature=5ec", 0, 10)])
    assert "5ec" not in str(raised.value)
    assert "pass@" not in str(raised.value)


def test_a_plain_web_server_gives_whole_files_and_is_named_where_a_range_is_wanted(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"0123456789")
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/a.wav"
        assert RemoteFiles().fetch([AudioRef(url)]) == [b"0123456789"]
        with pytest.raises(InputError, match="this server does not support range requests"):
            RemoteFiles().fetch([AudioRef(url, 2, 3)])
        with pytest.raises(InputError, match="object not found"):
            RemoteFiles().fetch([AudioRef(url + "x", 2, 3)])
        server.shutdown()


@pytest.fixture
def object_server(tmp_path, monkeypatch):
    """s3rver, a second implementation of S3: it shows what only moto and the reader agree on."""
    if not (command := shutil.which("s3rver")):
        pytest.skip("no second S3 server: npm install --global s3rver")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    options = ["--directory", tmp_path, "--address", "127.0.0.1", "--port", port, "--configure-bucket", "speech"]
    server = subprocess.Popen([command, *map(str, options)], stdout=subprocess.PIPE, text=True)
    assert any("listening" in line for line in server.stdout)
    use_credentials(monkeypatch, "S3RVER", "S3RVER")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{port}")
    yield
    server.kill()
    server.wait()


def test_another_object_server_gives_the_same_bytes_and_names_what_is_missing(object_server):
    import boto3

    shard = np.random.default_rng(0).bytes(100_000)
    boto3.Session().client("s3").put_object(Bucket="speech", Key="one.tar", Body=shard)
    refs = [AudioRef("s3://speech/one.tar", start, 777) for start in (5000, 0, 99_223)]
    assert RemoteFiles().fetch([*refs, AudioRef("s3://speech/one.tar")]) == [
        *(shard[ref.byte_offset : ref.byte_offset + 777] for ref in refs),
        shard,
    ]
    with pytest.raises(InputError, match="object not found"):
        RemoteFiles().fetch([AudioRef("s3://speech/two.tar", 0, 10)])
