"""Lost and added hosts: torchrun restarts the processes on those available, and the run ends as if on one host.

Each host is simulated by a torchrun on this machine. To lose a host, it is killed with all its children.
"""

import subprocess
import time
from contextlib import ExitStack

import forked
import pytest
import running
import witness
from corpus import random_texts, write_split
from torch.distributed import TCPStore

from w2v_lightning.__main__ import main

pytestmark = pytest.mark.slow
NUM_STEPS = 20
# Seconds until torchrun gives up an unresponsive host, and for which it waits for additional hosts.
WAITING = "keep_alive_interval=2,keep_alive_max_attempt=3,last_call_timeout=4"


@pytest.fixture
def corpus(tmp_path):
    write_split(tmp_path / "corpus", "train", random_texts(60, seed=1), speaker="1")
    write_split(tmp_path / "corpus", "dev", random_texts(9, seed=3), speaker="3")
    return tmp_path / "corpus"


class Hosts:
    """Simulated hosts of a run; the same command is started on each."""

    def __init__(self, config, folder, stack):
        self._config, self._folder, self._stack = config, folder, stack
        # The store for the rendezvous outlives all hosts.
        self._store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self.all = []

    def start(self):
        rendezvous = ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{self._store.port}", "--rdzv-id=run"]
        settings = [f"--rdzv-conf=is_host=0,{WAITING}", "--local-addr=127.0.0.1", "--max-restarts=5"]
        command = ["-m", "torch.distributed.run", "--nnodes=1:4", "--nproc-per-node=1", *rendezvous, *settings]
        arguments, log = [*command, *running.FIT, self._config], self._folder / f"host{len(self.all)}.log"
        # Otherwise torch reuses the store of the previous processes after a restart: docs/distributed.md.
        host = running.started(arguments, log, TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1")
        self.all.append(self._stack.enter_context(host))

    def wait_until_held(self, step, world_size):
        def is_held(line):
            return line["what"] == "held" and (line["step"], line["world_size"]) == (step, world_size)

        return running.wait_until(is_held, self._folder, self.all)

    def lose(self, number, how, held_at, world_size, hold_at):
        """Return the step from which the remaining hosts resume; they are held next at `hold_at`."""
        before = self.wait_until_held(held_at, world_size)
        lost_at_s = time.time()
        how(self.all.pop(number))
        self.hold(hold_at)
        after = running.wait_until(lambda line: is_later(line, before), self._folder, self.all)
        print(f"\nFrom the loss of a host to the first step without it: {after['time_s'] - lost_at_s:.1f} s")
        assert after["world_size"] == world_size - 1
        return after["step"]

    def hold(self, step):
        (self._folder / "seen" / "hold").write_text(str(step))


def test_hosts_are_lost_and_another_joins(corpus, tmp_path):
    whole, folder = tmp_path / "whole", tmp_path / "hosts"
    process = forked.start(whole, main, ["fit", "--config", running.config(corpus, whole, NUM_STEPS)])
    assert forked.ended(process, whole) == [0], forked.logs(whole)
    with ExitStack() as stack:
        hosts = Hosts(running.config(corpus, folder, NUM_STEPS), folder, stack)
        hosts.hold(3)
        for _ in range(3):
            hosts.start()
        hosts.wait_until_held(3, world_size=3)  # if a host joined late, all were preempted
        hosts.hold(7)
        # A killed host loses the steps after the last checkpoint; a preempted one loses nothing.
        assert hosts.lose(-1, running.kill, held_at=7, world_size=3, hold_at=11) == 6
        assert hosts.lose(0, running.kill, held_at=11, world_size=2, hold_at=15) == 10
        hosts.wait_until_held(15, world_size=1)
        hosts.start()
        assert hosts.lose(0, subprocess.Popen.terminate, held_at=15, world_size=2, hold_at=NUM_STEPS) in (15, 16)
        assert [host.wait(running.LIMIT_S) for host in hosts.all] == [0], running.logs(folder)
    check_same_run(folder, whole)


def is_later(line, before):
    """Log of a later start of all processes."""
    return line["start"] != before["start"] and line["time_s"] > before["time_s"]


def check_same_run(folder, whole):
    (found_ids, found_losses), (ids, losses) = (witness.steps(each / "seen") for each in (folder, whole))
    assert list(ids) == list(losses) == list(range(NUM_STEPS))
    assert found_ids == ids
    assert found_losses == pytest.approx(losses, rel=1e-5)
