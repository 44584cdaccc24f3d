"""All ranks stop at the same gate: ranks as threads, with pauses of their own and a barrier behind some gates."""

import random
import threading
import time

import pytest
from torch.distributed import HashStore

from w2v_lightning.callbacks import preemption_agreement
from w2v_lightning.callbacks.preemption_agreement import Agreement
from w2v_lightning.runtime.signals import START_AGAIN

LIMIT_S = 30


@pytest.fixture(autouse=True)
def asks_often(monkeypatch):
    monkeypatch.setattr(preemption_agreement, "ASK_EVERY_S", 0.01)


def leave(why):
    raise AssertionError(why)


def work(own, rank, meeting, micro_batches, stopped, seed):
    """Micro-batches, the last of each step with an all-reduce, for which every rank has to come."""
    random_ = random.Random(seed)
    for gate in range(100_000):
        time.sleep(random_.uniform(0, 0.002))
        if not own.passes_gate():
            stopped[rank] = gate
            return
        if gate % micro_batches == micro_batches - 1:
            meeting.wait(LIMIT_S)
            own.has_something_to_save = True


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("ranks", "micro_batches"), [(1, 1), (2, 1), (2, 4), (4, 3)])
def test_all_ranks_stop_at_the_same_gate(ranks, micro_batches, seed):
    random_ = random.Random(seed)
    store, meeting, stopped = HashStore(), threading.Barrier(ranks), {}
    owns = [Agreement(store, rank, ranks, leave) for rank in range(ranks)]
    threads = [
        threading.Thread(target=work, args=(own, rank, meeting, micro_batches, stopped, seed + rank), daemon=True)
        for rank, own in enumerate(owns)
    ]
    for thread in threads:
        thread.start()
    wait_for(lambda: any(own.has_something_to_save for own in owns))
    time.sleep(random_.uniform(0, 0.04))
    for own in random_.sample(owns, random_.randint(1, ranks)):
        own.request()
    for thread in threads:
        thread.join(LIMIT_S)
    assert len(stopped) == ranks
    assert len(set(stopped.values())) == 1
    assert stopped[0] > 0
    assert all(own.may_stop_here for own in owns)


def test_as_long_as_nobody_has_anything_to_save_everybody_leaves():
    store, left = HashStore(), []
    owns = [Agreement(store, rank, 2, lambda *why: left.append(why)) for rank in range(2)]
    assert owns[0].passes_gate()
    owns[1].request()
    wait_for(lambda: len(left) == 2)
    assert left == [("SIGTERM before the first step was complete: nothing to save.", START_AGAIN)] * 2


def test_what_was_done_before_the_first_gate_is_worth_stopping_for():
    own = Agreement(HashStore(), 0, 1, leave)
    own.has_something_to_save = True
    own.request()
    wait_for(lambda: own.last_gate is not None)
    assert not own.passes_gate()


def test_where_another_has_something_to_save_a_rank_comes_to_where_it_can_save_it_too():
    store = HashStore()
    owns = [Agreement(store, rank, 2, leave) for rank in range(2)]
    assert all(own.passes_gate() for own in owns)  # both are in their first step, and one has it complete:
    owns[1].has_something_to_save = True
    owns[0].request()
    wait_for(lambda: owns[0].last_gate and owns[1].last_gate)
    assert not any(own.passes_gate() for own in owns)


def test_a_rank_that_is_gone_is_not_waited_for_long(monkeypatch):
    monkeypatch.setattr(preemption_agreement, "ANSWER_WITHIN_S", 0.1)
    left = []
    own = Agreement(HashStore(), 0, 2, left.append)
    assert own.passes_gate()
    own.request()
    wait_for(lambda: left)
    assert "another process did not answer" in left[0]
    own.close()


class SlowStore(HashStore):
    """Its answers take a while; `asked` has the keys."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def check(self, keys):
        self.asked.append(keys)
        time.sleep(0.3)
        return super().check(keys)


@pytest.mark.parametrize("is_wanted", [False, True])
def test_a_closed_one_has_no_thread_any_more(is_wanted):
    """Not even one that has just asked the store; or whose question nobody else will answer."""
    store = SlowStore()
    own = Agreement(store, 0, 2, leave)
    if is_wanted:
        own.request()
    wait_for(lambda: store.asked)
    own.close()
    assert not own._thread.is_alive()


def wait_for(condition):
    give_up_at = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < give_up_at
        time.sleep(0.01)
