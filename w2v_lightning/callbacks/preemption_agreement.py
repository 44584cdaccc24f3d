"""How all ranks come to stop at the same place of a run, without a collective operation in every step.

A run is a row of gates, the same on every rank: the beginning of each training micro-batch, and the end of each
validation, before its sums are added up. Whatever ranks do together (the all-reduce of a step's gradients, a logged
mean, the barrier around a checkpoint) lies between two gates, and each rank counts the gates that it has passed.

In an undisturbed run nothing else happens in the training loop: a counter and a lock that nobody else wants. A thread
asks the store of the process group (a TCP round trip) twice a second whether somebody wants to stop. Then:

1. each rank's thread closes the gates of its rank, and publishes how many it has passed, or -1 while it has nothing to
   save: its first step may take a minute, in which it is compiled;
2. once the numbers of all ranks are there, the last gate to pass is the largest of them on every rank; at -1 all leave;
3. a rank passes gates up to that one and stops at the next.

All ranks stop at the same gate: none goes beyond the last one, for before its gates were closed it had not passed more
than the largest number, and afterwards it asks. And each comes to it: until then it does what the foremost rank has
done, and all that ranks do together on the way has all of them taking part. The threads answer also while the main
thread waits within a collective operation for a rank that has stopped at a gate: the answer lets that one go on.

A rank that publishes -1 has passed no more gates than one that does not: who has a step to save has passed all gates
of that step, and nobody passes the next one without having it, too.

So nothing is assumed about how far ranks are apart: with accumulation they may be several micro-batches apart, in a
validation as many batches as they like. Batches of a validation are no gates, because ranks may have different numbers
of them; but ranks do nothing together there, so a rank that has no gate left to pass may stop at any of them.
"""

import threading
import time
from collections.abc import Callable

from torch.distributed import Store

from w2v_lightning.runtime.signals import START_AGAIN

ASK_EVERY_S = 0.5
ANSWER_WITHIN_S = 30.0  # threads answer within ASK_EVERY_S; one that does not is dead
CLOSE_WITHIN_S = 10.0  # a store whose host has fallen silent may not answer for minutes
NOTHING = -1  # to save: less than any number of gates


class Agreement:
    """One rank's part. A rank that is alone needs no other way: its store is a HashStore.

    Args:
        store: shared by the ranks and used for nothing else; its keys must be new.
        rank, world_size: of this process.
        leave: called where there is nothing to stop for or nobody to stop with, with the reason and what to do next if
            that is not to go on from the last checkpoint; ends the process.
    """

    def __init__(self, store: Store, rank: int, world_size: int, leave: Callable[..., None]) -> None:
        self.passed = 0
        self.has_something_to_save = False  # to be set before the next gate is passed
        self.last_gate: int | None = None  # once all know it
        self._store = store
        self._keys = [f"passed/{each}" for each in range(world_size)]
        self._rank = rank
        self._leave = leave
        self._lock = threading.Lock()  # of `passed` and `_is_closed`
        self._is_closed = False
        self._is_known = threading.Event()
        self._is_over = False
        self._is_wanted = False
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="preemption", daemon=True)
        self._thread.start()

    def request(self) -> None:
        """Stop all ranks, soon. Returns at once; may be called by any thread, more than once."""
        self._is_wanted = True
        self._wake.set()

    def end(self) -> None:
        """The run is over on this rank: there is nothing left to stop."""
        self._is_over = True

    def close(self) -> None:
        """End the thread. One that is back from the store as Python shuts down would abort the process, in C++."""
        self._is_over = True
        self._is_wanted = False
        self._wake.set()
        self._thread.join(CLOSE_WITHIN_S)

    def passes_gate(self) -> bool:
        """Pass the next gate, or find that this is where to stop. Waits only where somebody wants to stop."""
        with self._lock:
            if not self._is_closed:
                self.passed += 1
                return True
        self._is_known.wait()  # not for ever: the thread finds the answer, or leaves
        if self.may_stop_here:
            return False
        self.passed += 1
        return True

    @property
    def may_stop_here(self) -> bool:
        """At a place between two gates behind all that ranks do together."""
        return self.last_gate is not None and self.passed >= self.last_gate

    def _run(self) -> None:
        try:
            if self._is_somebody_stopping():
                self._close_gates()
                if self._is_answered():
                    self._learn_last_gate()
        except RuntimeError:  # the store's host has left, and with it the run
            self._is_known.set()

    def _is_somebody_stopping(self) -> bool:
        """Waits until somebody wants to stop; False once this is closed."""
        while not self._wake.wait(ASK_EVERY_S) and not self._store.check(["wanted"]):
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

    def _is_answered(self) -> bool:
        """Waits for the numbers of all ranks; False once the run is over here."""
        give_up_at = time.monotonic() + ANSWER_WITHIN_S
        while not self._is_over and not self._store.check(self._keys):
            if time.monotonic() > give_up_at:
                self._leave(f"SIGTERM, but another process did not answer within {ANSWER_WITHIN_S:g} s.")
            time.sleep(0.02)
        return not self._is_over

    def _learn_last_gate(self) -> None:
        last_gate = max(int(self._store.get(key)) for key in self._keys)
        if last_gate == NOTHING and not self._is_over:
            time.sleep(ASK_EVERY_S)  # until the others have read: the store may go with its host
            self._leave("SIGTERM before the first step was complete: nothing to save.", START_AGAIN)
        self.last_gate = last_gate
        self._is_known.set()
