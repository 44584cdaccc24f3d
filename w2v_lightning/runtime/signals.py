"""SIGTERM, heard at once: also where the main thread waits within C code, as in a collective operation.

Python runs a signal's handler only between two instructions of the main thread. But its C part writes a byte into a
pipe first (`signal.set_wakeup_fd`), and a thread reads that.
"""

import faulthandler
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: what failed may succeed when it is started again
# One SIGTERM may come by several ways, such as to the process group and from torchrun: within this time it is the same.
SAME_SIGNAL_S = 2.0
LOOK_AT_PARENT_EVERY_S = 1.0
START_AGAIN = "Start the same command again"  # where nothing is lost, for nothing was saved
GO_ON_FROM_THERE = "Start again from there"  # how is up to who has started it; the command line says it exactly


def give_handlers_a_stack() -> None:
    """A stack of their own for the signal handlers of the main thread, which has to call this.

    Kernels that torch's libraries generate for CPUs use the stack pointer for something else for a while (seen in gdb:
    it points into the heap). A signal that comes then writes there what belongs on the stack, and the process ends in
    malloc. Handlers in Python use another stack where there is one, and what the standard library has to set one up is
    this; it also prints where the threads are, should the process ever crash.
    """
    if not faulthandler.is_enabled():
        faulthandler.enable(file=2)


class SigtermWatch:
    """Calls `react` on the first SIGTERM and leaves the process at once on a second. There is one a process: `watch`.

    `react` runs in a thread and must not wait. Until somebody sets it, there is nothing to save, and the first SIGTERM
    leaves, too.
    """

    def __init__(self) -> None:
        self.status = PREEMPTED  # of a process that leaves at once
        self.end_others: Callable[[int], None] | None = None  # a launcher's `kill`: signals those that it has started
        self.react = self.leave_early
        self.how_to_go_on = GO_ON_FROM_THERE
        self._stop: Callable[[], None] | None = None
        self._process = 0  # the one that listens
        self._first_at: float | None = None

    def start(self) -> bool:
        """Listen from now on; False where that is so already, or not possible: outside the main thread."""
        if self._process or threading.current_thread() is not threading.main_thread():
            return False
        self._first_at = None
        give_handlers_a_stack()
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        handler = signal.signal(signal.SIGTERM, lambda *_: None)  # without one, C's would end the process
        wakeup_fd = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        threading.Thread(target=self._listen, args=(reader,), name="sigterm", daemon=True).start()

        def stop() -> None:
            signal.set_wakeup_fd(wakeup_fd)
            signal.signal(signal.SIGTERM, handler)
            os.write(writer, b"\0")  # ends the thread
            os.close(writer)

        self._stop, self._process = stop, os.getpid()
        return True

    def stop(self) -> None:
        """Be as before `start`."""
        if self._stop:
            self._stop()
        self._stop, self._process, self.react, self.end_others = None, 0, self.leave_early, None
        self.how_to_go_on = GO_ON_FROM_THERE

    def after_fork(self) -> None:
        """In a fork, such as a loader worker: the pipe is the parent's, and SIGTERM what it is to any process."""
        if self._process:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            self._stop = None
            self.stop()

    def leave(self, why: str, what_next: str = "") -> NoReturn:
        """End this process now, whatever it is doing, and those that it has started.

        `why` is printed, and what to do next: by default, what goes on from the last checkpoint.
        """
        text = f"{why} {what_next or self.how_to_go_on} (exit status {PREEMPTED}).\n"
        os.write(2, text.encode())  # not by print: another thread may hold the lock of the stream
        if self.end_others:
            self.end_others(signal.SIGTERM)
        os._exit(self.status)

    def leave_early(self) -> NoReturn:
        self.leave("SIGTERM before training: nothing to save.", START_AGAIN)

    def _listen(self, reader: int) -> None:
        while b"\0" not in (signals := os.read(reader, 64)):
            if signal.SIGTERM in signals:
                self._heard()
        os.close(reader)

    def _heard(self) -> None:
        now = time.monotonic()
        if self._first_at is None:
            self._first_at = now
            self.react()
        elif now - self._first_at > SAME_SIGNAL_S:
            self.leave("A second SIGTERM: left at once, with the last complete checkpoint.")


watch = SigtermWatch()
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=watch.after_fork)


@contextmanager
def held_back() -> Iterator[None]:
    """To start loader workers in: SIGTERM waits for the end of this block, and what is forked in it does not hear it.

    `heed_parent_only` alone would be late, not only for what comes while a worker starts: where its parent has called
    `torch.set_num_threads`, as Lightning does, torch has begun as many threads in it, without SIGTERM blocked.
    """
    if not hasattr(signal, "sigtimedwait") or multiprocessing.get_start_method() != "fork":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def heed_parent_only(_worker_id: int = 0) -> None:
    """To be called in a loader worker: SIGTERM ends it only where it comes from the process that has started it.

    torchrun and SLURM send theirs to all processes; one whose loader workers are gone could not finish its step. Where
    that process is gone, the worker ends, too: torch's own look at it is blind to one that went as the worker started.
    """
    if hasattr(signal, "sigtimedwait"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    started_by = os.getppid()  # it, or a server that forks and ends with it
    # The pipe that `is_alive` looks at is open in workers that were forked later, too: they would end one by one.
    while parent and parent.is_alive() and os.getppid() == started_by:
        heard = signal.sigtimedwait({signal.SIGTERM}, LOOK_AT_PARENT_EVERY_S)
        if heard and heard.si_pid == parent.pid:
            break
    os._exit(0)
