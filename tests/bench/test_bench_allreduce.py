"""`bench allreduce`: between processes of this machine, and between emulated hosts whose link is slow."""

import json
import os
import subprocess
import sys

import forked
import pytest

from w2v_lightning.__main__ import main
from w2v_lightning.bench.allreduce import AllreduceOptions, Exchange, gradient_buckets
from w2v_lightning.bench.settings import CONFIGS
from w2v_lightning.command_line import parse
from w2v_lightning.module import Wav2Vec2CTC
from w2v_lightning.study.emulation import Hosts
from w2v_lightning.study.emulation.hosts import TUN

LIMIT_S = 240


def test_bandwidths_are_those_of_nccl_tests():
    exchange = Exchange("4 MB", 4_000_000, 1, seconds=0.002, world_size=4)
    assert exchange.algorithm_bytes_per_s == pytest.approx(2e9)
    assert exchange.bus_bytes_per_s == pytest.approx(3e9)


def test_buckets_hold_all_gradients_and_the_first_one_is_small():
    buckets = gradient_buckets(CONFIGS["base"])
    trained = sum(p.numel() for p in Wav2Vec2CTC(None).parameters() if p.requires_grad)
    assert sum(buckets) == 4 * trained
    assert 2**20 <= buckets[0] < 16 * 2**20
    assert 25 * 2**20 <= buckets[1] < 40 * 2**20


def test_alone_it_says_how_to_start_it(capsys):
    assert main(["bench", "allreduce"]) == 2
    assert "torchrun --nproc_per_node 2 -m w2v_lightning bench allreduce" in capsys.readouterr().err


# The names of models follow; without any, only single messages are measured.
COMMAND = ["-m", "w2v_lightning", "bench", "allreduce", "--backend", "gloo", "--repetitions", "1", "--models"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--models", "huge"], "--models: 'huge' is unknown; choose from base, large."),
        (["--max-mib", "0"], "--max_mib is 0: must be above 0."),
        (["--backend", "mpi"], "--backend is mpi: choose from nccl, gloo."),
    ],
)
def test_wrong_options_end_in_one_line(capsys, options, message):
    assert main(["bench", "allreduce", *options]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_models_replace_the_default():
    def models(*args):
        return parse(AllreduceOptions, "bench allreduce", args).models

    assert models() == ["base", "large"]
    assert models("--models") == []
    assert models("--models", "large") == ["large"]


@pytest.mark.slow
def test_two_processes_of_one_host(tmp_path):
    path = tmp_path / "allreduce.json"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*torchrun, *COMMAND, "base", "--max-mib", "1", "--json", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr
    assert "2 ranks over gloo" in done.stdout
    assert done.stdout.count("1 MiB") == 1  # one rank prints
    report = json.loads(path.read_text())
    assert [exchange["what"] for exchange in report["exchanges"]] == [
        *("4 KiB", "8 KiB", "16 KiB", "32 KiB", "64 KiB", "128 KiB", "256 KiB", "512 KiB", "1 MiB"),
        "gradients of base",
    ]
    assert all(exchange["seconds"] > 0 and exchange["world_size"] == 2 for exchange in report["exchanges"])
    assert report["exchanges"][-1]["num_messages"] == len(gradient_buckets(CONFIGS["base"]))


# ---- two hosts ------------------------------------------------------------------------------------------------------


@pytest.fixture
def namespaces():
    if sys.platform != "linux" or os.geteuid() or not TUN.exists():
        pytest.skip("namespaces need Linux, root and a TUN device")


def allreduce(hosts, path):
    """The exchanges that the first host reports, by message."""
    processes = []
    try:
        for rank, environment in enumerate(forked.torchrun(2)):
            command = [*hosts.prefix(rank), sys.executable, *COMMAND, "--max-mib", "1", "--json", str(path)]
            environment |= os.environ | hosts.environment | {"MASTER_ADDR": hosts.address(0)}
            output = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
            processes.append(subprocess.Popen(command, env=environment, start_new_session=True, **output))
        for process in processes:
            _, errors = process.communicate(timeout=LIMIT_S)
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, 9)
    return {exchange["what"]: exchange for exchange in json.loads(path.read_text())["exchanges"]}


@pytest.mark.slow
@pytest.mark.usefixtures("namespaces")
def test_bandwidth_between_hosts_follows_the_rate_of_their_link(tmp_path):
    for mbit_per_s in (50, 200):
        with Hosts(2, mbit_per_s, delay_ms=0) as hosts:
            found = allreduce(hosts, tmp_path / f"{mbit_per_s}.json")["1 MiB"]
        link_bytes_per_s = mbit_per_s * 1e6 / 8
        assert 0.6 * link_bytes_per_s < found["bus_bytes_per_s"] < 1.1 * link_bytes_per_s


@pytest.mark.slow
@pytest.mark.usefixtures("namespaces")
def test_latency_between_hosts_follows_the_delay_of_their_link(tmp_path):
    latencies_ms = []
    for delay_ms in (4, 12):
        with Hosts(2, 1000, delay_ms) as hosts:
            found = allreduce(hosts, tmp_path / f"{delay_ms}.json")["4 KiB"]
        latencies_ms.append(1000 * found["seconds"])
    assert latencies_ms[0] > 4
    # A latency is the one-way delay times the number of messages that follow each other, which is always the same.
    assert (latencies_ms[1] - latencies_ms[0]) / 8 == pytest.approx(latencies_ms[0] / 4, rel=0.5)
