"""SIGTERM handling of this process: `sigterm`, which reacts even while the main thread is blocked in C code.

Python runs a signal's handler only between two instructions of the main thread, so never during a collective operation.
Its C part, however, first writes a byte into a pipe (`signal.set_wakeup_fd`), and a thread reads that pipe.
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

PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: a temporary failure, starting the process again may succeed
# One SIGTERM may be delivered twice, such as to the process group and by torchrun: within this time it counts as one.
SAME_SIGNAL_S = 2.0
PARENT_CHECK_INTERVAL_S = 1.0
START_AGAIN = "Start the same command again"  # the hint where nothing was saved, so nothing is lost
# The hint until `set_resume_hint` is called: only the caller knows the exact command.
DEFAULT_RESUME_HINT = "Start the run again to resume from there"


def use_alternate_signal_stack() -> None:
    """Run the signal handlers of the main thread, which must call this, on a stack of their own.

    Kernels that torch's libraries generate for CPUs use the stack pointer for something else for a while (seen in gdb:
    it points into the heap). A signal handler that runs then writes its frame into the heap, and the process crashes in
    malloc. Python's handlers use an alternate stack if there is one, and `faulthandler.enable` is how the standard
    library sets one up; it also prints a traceback of each thread if the process ever crashes.
    """
    if not faulthandler.is_enabled():
        faulthandler.enable(file=2)


def no_children(_signum: int) -> None:
    """Signal no process: `kill_children` of a process that has started no others."""


class SigtermWatch:
    """Reaction to SIGTERM; a process has one, `sigterm`.

    The first SIGTERM calls the function given to `arm`. A second one ends the process at once. Before `arm`, nothing
    can be saved, so the first one ends the process, too.
    """

    def __init__(self) -> None:
        self._status = PREEMPTED
        self._kill_children: Callable[[int], None] = no_children
        self._react: Callable[[], None] = self.exit_before_training
        self._resume_hint = DEFAULT_RESUME_HINT
        self._stop: Callable[[], None] | None = None
        self._process = 0  # the id of the process that listens; 0: none does
        self._first_at: float | None = None

    def start(self) -> bool:
        """Start to listen; return False if it listens already, or cannot, because this is not the main thread."""
        if self._process or threading.current_thread() is not threading.main_thread():
            return False
        self._first_at = None
        use_alternate_signal_stack()
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        handler = signal.signal(signal.SIGTERM, lambda *_: None)  # without a handler, SIGTERM would end the process
        wakeup_fd = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        threading.Thread(target=self._listen, args=(reader,), name="sigterm", daemon=True).start()

        def stop() -> None:
            signal.set_wakeup_fd(wakeup_fd)
            signal.signal(signal.SIGTERM, handler)
            os.write(writer, b"\0")  # ends the thread
            os.close(writer)

        self._stop, self._process = stop, os.getpid()
        return True

    def arm(
        self,
        *,
        react: Callable[[], None] | None = None,
        status: int | None = None,
        kill_children: Callable[[int], None] | None = None,
    ) -> None:
        """Set how this process reacts; what is not given stays as it is.

        Args:
            react: called on the first SIGTERM, in a thread of its own; it must not block.
            status: exit status of a process that ends at once; default: PREEMPTED.
            kill_children: sends a signal to the processes that this one has started, such as a launcher's `kill`; it is
                called when this process ends at once. Default: `no_children`.
        """
        if status is not None:
            self._status = status
        if kill_children is not None:
            self._kill_children = kill_children
        if react is not None:
            self._react = react

    @property
    def resume_hint(self) -> str:
        """Instruction to resume from the last checkpoint, for messages: a sentence without its period."""
        return self._resume_hint

    def set_resume_hint(self, hint: str) -> None:
        """Set `resume_hint`; `stop` sets it back to the default."""
        self._resume_hint = hint

    def stop(self) -> None:
        """Stop to listen, and restore the signal's handler and all that `arm` sets except the status."""
        if self._stop:
            self._stop()
        self._stop, self._process = None, 0
        self._react, self._kill_children = self.exit_before_training, no_children
        self._resume_hint = DEFAULT_RESUME_HINT

    def after_fork(self) -> None:
        """Restore SIGTERM's default action in a forked process, such as a loader worker: the pipe is the parent's."""
        if self._process:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            self._stop = None
            self.stop()

    def exit_now(self, why: str, hint: str = "") -> NoReturn:
        """End this process at once, whatever its threads are doing, and the processes that it has started.

        Prints `why` and then `hint`, by default `resume_hint`.
        """
        text = f"{why} {hint or self._resume_hint} (exit status {PREEMPTED}).\n"
        os.write(2, text.encode())  # not by print: another thread may hold the lock of the stream
        self._kill_children(signal.SIGTERM)
        os._exit(self._status)

    def exit_before_training(self) -> NoReturn:
        """End this process at once: there is nothing to save yet."""
        self.exit_now("SIGTERM before training: nothing to save.", START_AGAIN)

    def _listen(self, reader: int) -> None:
        while b"\0" not in (signals := os.read(reader, 64)):
            if signal.SIGTERM in signals:
                self._on_sigterm()
        os.close(reader)

    def _on_sigterm(self) -> None:
        now = time.monotonic()
        if self._first_at is None:
            self._first_at = now
            self._react()
        elif now - self._first_at > SAME_SIGNAL_S:
            self.exit_now("Second SIGTERM: stopped at once; the last complete checkpoint is kept.")


sigterm = SigtermWatch()
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=sigterm.after_fork)


@contextmanager
def sigterm_blocked() -> Iterator[None]:
    """Block SIGTERM until the end of this block, in which loader workers are forked: they inherit the blocked signal.

    `accept_sigterm_from_parent_only` alone would be too late for a SIGTERM that arrives while a worker starts. It would
    also miss the worker's other threads: if the parent has called `torch.set_num_threads`, as Lightning does, torch has
    already started that many threads in the worker, and SIGTERM would not be blocked in them.
    """
    if not hasattr(signal, "sigtimedwait") or multiprocessing.get_start_method() != "fork":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def accept_sigterm_from_parent_only(_worker_id: int = 0) -> None:
    """Make this loader worker ignore every SIGTERM but its parent's; call it in the worker.

    torchrun and SLURM send SIGTERM to all processes, and a rank that lost its loader workers could not finish its step.
    A worker whose parent is gone ends, too: torch's own check misses a parent that ended while the worker started.
    """
    if hasattr(signal, "sigtimedwait"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    starter = os.getppid()  # the parent, or a fork server that ends when the parent does
    # `is_alive` alone is not enough: workers that were forked later hold its pipe open, so they would end one by one.
    while parent and parent.is_alive() and os.getppid() == starter:
        received = signal.sigtimedwait({signal.SIGTERM}, PARENT_CHECK_INTERVAL_S)
        if received and received.si_pid == parent.pid:
            break
    os._exit(0)
