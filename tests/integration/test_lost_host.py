"""Hosts come and go: torchrun starts the processes again on those that are there, and the run ends as if on one.

Each host is a torchrun of its own on this machine. One that is lost is killed with all that it has started.
"""

import subprocess
import time
from contextlib import ExitStack

import pytest
import running
import witness
from corpus import random_texts, write_split
from torch.distributed import TCPStore

pytestmark = pytest.mark.slow
NUM_STEPS = 24
# How soon torchrun gives up a host that is silent, and how long it waits for more of them (s).
WAITING = "keep_alive_interval=2,keep_alive_max_attempt=3,last_call_timeout=4"


@pytest.fixture
def corpus(tmp_path):
    write_split(tmp_path / "corpus", "train", random_texts(60, seed=1), speaker="1")
    write_split(tmp_path / "corpus", "dev", random_texts(9, seed=3), speaker="3")
    return tmp_path / "corpus"


class Hosts:
    """Those of one run, on which the same command is given, one after the other."""

    def __init__(self, config, folder, stack):
        self._config, self._folder, self._stack = config, folder, stack
        # The store in which hosts find each other outlives them all.
        self._store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self.all = []

    def start(self):
        rendezvous = ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{self._store.port}", "--rdzv-id=run"]
        settings = [f"--rdzv-conf=is_host=0,{WAITING}", "--local-addr=127.0.0.1", "--max-restarts=3"]
        command = ["-m", "torch.distributed.run", "--nnodes=1:4", "--nproc-per-node=1", *rendezvous, *settings]
        arguments, log = [*command, *running.FIT, self._config], self._folder / f"host{len(self.all)}.log"
        # Else torch gives processes that it starts again the store of those before: docs/distributed.md.
        host = running.started(arguments, log, TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1")
        self.all.append(self._stack.enter_context(host))

    def wait_until_held(self, step, world_size):
        def is_held(line):
            return line["what"] == "held" and (line["step"], line["world_size"]) == (step, world_size)

        return running.wait_until(is_held, self._folder, self.all)


WAYS = {  # which host is lost at step 13, and how; what the others go on with: the last checkpoint, or where all stop
    "the first, killed": (0, running.kill, [12]),
    "the last, killed": (2, running.kill, [12]),
    "the second, preempted": (1, subprocess.Popen.terminate, [13, 14]),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_host_joins_and_one_is_lost(corpus, way, tmp_path):
    number, lose, goes_on_with = WAYS[way]
    whole, folder = tmp_path / "whole", tmp_path / "hosts"
    with running.started([*running.FIT, running.config(corpus, whole, NUM_STEPS)], tmp_path / "whole.log") as process:
        assert process.wait(running.LIMIT_S) == 0, running.logs(tmp_path)
    with ExitStack() as stack:
        hosts = Hosts(running.config(corpus, folder, NUM_STEPS), folder, stack)
        hold = folder / "seen" / "hold"
        hold.write_text("7")
        hosts.start()
        hosts.start()
        hosts.wait_until_held(7, world_size=2)
        hosts.start()
        hosts.wait_until_held(7, world_size=3)  # all were preempted, and nothing is done again
        hold.write_text("13")
        before = hosts.wait_until_held(13, world_size=3)
        lost_at_s = time.time()
        lose(hosts.all.pop(number))
        hold.unlink()
        after = running.wait_until(lambda line: is_later(line, before), folder, hosts.all)
        print(f"\nFrom the loss of a host to the first step without it: {after['time_s'] - lost_at_s:.1f} s")
        assert after["step"] in goes_on_with
        assert after["world_size"] == 2
        assert [host.wait(running.LIMIT_S) for host in hosts.all] == [0, 0], running.logs(folder)
    check_same_run(folder, whole)


def is_later(line, before):
    """Of a later start of all processes."""
    return line["start"] != before["start"] and line["time_s"] > before["time_s"]


def check_same_run(folder, whole):
    (found_ids, found_losses), (ids, losses) = (witness.steps(each / "seen") for each in (folder, whole))
    assert list(ids) == list(losses) == list(range(NUM_STEPS))
    assert found_ids == ids
    assert found_losses == pytest.approx(losses, rel=1e-5)
