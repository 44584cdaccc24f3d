"""Agreement of all ranks to stop at the same point of a run, without a collective operation in every step.

A run is a sequence of gates, the same on every rank: the start of each training micro-batch, and the end of each
validation, before its sums are reduced. Every collective operation (the all-reduce of a step's gradients, a logged
mean, the barrier around a checkpoint) happens between two gates, and each rank counts the gates that it has passed.

In an undisturbed run the training loop only increments a counter under an uncontended lock. A thread asks the store of
the process group (a TCP round trip) twice a second whether a rank wants to stop. Then:

1. each rank's thread closes the gates of its rank and publishes how many it has passed, or -1 while it has nothing to
   save: the first step may take a minute, because it is compiled;
2. once the numbers of all ranks are published, the largest is the last gate to pass on every rank; if it is -1, all
   ranks exit;
3. each rank passes gates up to the last one and stops at the next.

All ranks stop at the same gate. None goes further: it had not passed more gates than the largest number when its gates
were closed, and from then on it asks. And each gets there: up to the last gate it does what the foremost rank has done,
and all ranks take part in every collective operation on the way. The threads answer even while the main thread waits in
a collective operation for a rank that is held at a gate: the answer lets that rank continue.

A rank that publishes -1 has not passed more gates than a rank that does not: a rank with a step to save has passed all
gates of that step, and no rank passes the next gate without having that step, too.

So nothing is assumed about how far ranks are apart: with gradient accumulation it may be several micro-batches, in a
validation any number of batches. Batches of a validation are not gates, because ranks may have different numbers of
them; but there are no collective operations between them, so a rank that has passed its last gate may stop at any.
"""

import threading
import time
from collections.abc import Callable

from torch.distributed import Store

from w2v_lightning.runtime.signals import START_AGAIN

POLL_INTERVAL_S = 0.5
ANSWER_TIMEOUT_S = 30.0  # threads answer within POLL_INTERVAL_S unless their process is dead
CLOSE_TIMEOUT_S = 10.0  # a store on an unreachable host may not answer for minutes
NOTHING = -1  # published by a rank with nothing to save; less than any number of gates


class Agreement:
    """Agreement from the view of a single rank; a run with one rank uses it too, with a HashStore.

    Args:
        store: store shared by the ranks, with unused keys, and for this purpose alone.
        rank: global rank of this process.
        world_size: number of ranks.
        leave: function that ends the process if there is nothing to save or another rank does not answer. It is called
            with the reason and, unless that is to resume from the last checkpoint, a hint what to do next.
    """

    def __init__(self, store: Store, rank: int, world_size: int, leave: Callable[..., None]) -> None:
        self.passed = 0
        self.has_something_to_save = False  # must be set before the next gate is passed
        self.last_gate: int | None = None  # None until the ranks have agreed
        self._store = store
        self._keys = [f"passed/{other_rank}" for other_rank in range(world_size)]
        self._rank = rank
        self._leave = leave
        self._lock = threading.Lock()  # guards `passed` and `_is_closed`
        self._is_closed = False
        self._is_known = threading.Event()
        self._is_over = False
        self._is_wanted = False
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="preemption", daemon=True)
        self._thread.start()

    def request(self) -> None:
        """Request all ranks to stop. Returns at once; any thread may call it, repeatedly."""
        self._is_wanted = True
        self._wake.set()

    def end(self) -> None:
        """Mark that training is over on this rank, so that there is nothing left to stop."""
        self._is_over = True

    def close(self) -> None:
        """End the thread: if it returned from the store while Python shuts down, C++ would abort the process."""
        self._is_over = True
        self._is_wanted = False
        self._wake.set()
        self._thread.join(CLOSE_TIMEOUT_S)

    def pass_gate(self) -> bool:
        """Pass the next gate and return True, or return False to stop here. Waits only after a request to stop."""
        with self._lock:
            if not self._is_closed:
                self.passed += 1
                return True
        self._is_known.wait()  # not for ever: the thread sets it, or ends the process
        if self.may_stop_here:
            return False
        self.passed += 1
        return True

    @property
    def may_stop_here(self) -> bool:
        """True between two gates once all collective operations before the last gate are done."""
        return self.last_gate is not None and self.passed >= self.last_gate

    def _run(self) -> None:
        try:
            if self._wait_for_request():
                self._close_gates()
                if self._wait_for_answers():
                    self._learn_last_gate()
        except RuntimeError:  # the host of the store is gone, and with it the run
            self._is_known.set()

    def _wait_for_request(self) -> bool:
        """Wait until a rank requests to stop; return False once this is closed."""
        while not self._wake.wait(POLL_INTERVAL_S) and not self._store.check(["wanted"]):
            pass
        if self._wake.is_set() and not self._is_wanted:
            return False
        self._store.set("wanted", "")
        return True

    def _close_gates(self) -> None:
        with self._lock:
            self._is_closed = True
            passed = self.passed if self.has_something_to_save else NOTHING
        self._store.set(self._keys[self._rank], str(passed))

    def _wait_for_answers(self) -> bool:
        """Wait for the numbers of all ranks; return False once training is over here."""
        deadline = time.monotonic() + ANSWER_TIMEOUT_S
        while not self._is_over and not self._store.check(self._keys):
            if time.monotonic() > deadline:
                self._leave(f"SIGTERM, but another process did not answer within {ANSWER_TIMEOUT_S:g} s.")
            time.sleep(0.02)
        return not self._is_over

    def _learn_last_gate(self) -> None:
        last_gate = max(int(self._store.get(key)) for key in self._keys)
        if last_gate == NOTHING and not self._is_over:
            time.sleep(POLL_INTERVAL_S)  # lets the other ranks read first: the store may end with this process
            self._leave("SIGTERM before the first step was complete: nothing to save.", START_AGAIN)
        self.last_gate = last_gate
        self._is_known.set()
