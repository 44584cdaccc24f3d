"""All ranks stop at the same gate: simulated by threads with random pauses and barriers after some gates."""

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
    monkeypatch.setattr(preemption_agreement, "POLL_INTERVAL_S", 0.01)


def leave(why):
    raise AssertionError(why)


def work(agreement, rank, meeting, micro_batches, stopped, seed):
    """Run through micro-batches; the last one of each step has an all-reduce that needs every rank."""
    random_ = random.Random(seed)
    for gate in range(100_000):
        time.sleep(random_.uniform(0, 0.002))
        if not agreement.pass_gate():
            stopped[rank] = gate
            return
        if gate % micro_batches == micro_batches - 1:
            meeting.wait(LIMIT_S)
            agreement.has_something_to_save = True


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("ranks", "micro_batches"), [(1, 1), (2, 1), (2, 4), (4, 3)])
def test_all_ranks_stop_at_the_same_gate(ranks, micro_batches, seed):
    random_ = random.Random(seed)
    store, meeting, stopped = HashStore(), threading.Barrier(ranks), {}
    agreements = [Agreement(store, rank, ranks, leave) for rank in range(ranks)]
    threads = [
        threading.Thread(target=work, args=(agreement, rank, meeting, micro_batches, stopped, seed + rank), daemon=True)
        for rank, agreement in enumerate(agreements)
    ]
    for thread in threads:
        thread.start()
    wait_for(lambda: any(agreement.has_something_to_save for agreement in agreements))
    time.sleep(random_.uniform(0, 0.04))
    for agreement in random_.sample(agreements, random_.randint(1, ranks)):
        agreement.request()
    for thread in threads:
        thread.join(LIMIT_S)
    assert len(stopped) == ranks
    assert len(set(stopped.values())) == 1
    assert stopped[0] > 0
    assert all(agreement.may_stop_here for agreement in agreements)


def test_as_long_as_nobody_has_anything_to_save_everybody_leaves():
    store, left = HashStore(), []
    agreements = [Agreement(store, rank, 2, lambda *why: left.append(why)) for rank in range(2)]
    assert agreements[0].pass_gate()
    agreements[1].request()
    wait_for(lambda: len(left) == 2)
    assert left == [("SIGTERM before the first step was complete: nothing to save.", START_AGAIN)] * 2


def test_what_was_done_before_the_first_gate_is_worth_stopping_for():
    agreement = Agreement(HashStore(), 0, 1, leave)
    agreement.has_something_to_save = True
    agreement.request()
    wait_for(lambda: agreement.last_gate is not None)
    assert not agreement.pass_gate()


def test_where_another_has_something_to_save_a_rank_comes_to_where_it_can_save_it_too():
    store = HashStore()
    agreements = [Agreement(store, rank, 2, leave) for rank in range(2)]
    assert all(
        agreement.pass_gate() for agreement in agreements
    )  # both are in their first step, and one has completed it:
    agreements[1].has_something_to_save = True
    agreements[0].request()
    wait_for(lambda: agreements[0].last_gate and agreements[1].last_gate)
    assert not any(agreement.pass_gate() for agreement in agreements)


def test_a_rank_that_is_gone_is_not_waited_for_long(monkeypatch):
    monkeypatch.setattr(preemption_agreement, "ANSWER_TIMEOUT_S", 0.1)
    left = []
    agreement = Agreement(HashStore(), 0, 2, left.append)
    assert agreement.pass_gate()
    agreement.request()
    wait_for(lambda: left)
    assert "another process did not answer" in left[0]
    agreement.close()


class SlowStore(HashStore):
    """Store with slow answers; `asked` records the keys."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def check(self, keys):
        self.asked.append(keys)
        time.sleep(0.3)
        return super().check(keys)


@pytest.mark.parametrize("is_wanted", [False, True])
def test_a_closed_one_has_no_thread_any_more(is_wanted):
    """Close while the thread waits for the store, or for an answer that no other rank will give."""
    store = SlowStore()
    agreement = Agreement(store, 0, 2, leave)
    if is_wanted:
        agreement.request()
    wait_for(lambda: store.asked)
    agreement.close()
    assert not agreement._thread.is_alive()


def wait_for(condition):
    give_up_at = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < give_up_at
        time.sleep(0.01)
