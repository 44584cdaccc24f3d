"""SIGTERM before training: the process ends at once, with the status that asks for a restart."""

import os
import signal
import subprocess
import sys

import pytest

from w2v_lightning.runtime import signals

WAITS_IN_C = """
import ctypes, sys
from w2v_lightning.runtime import signals
signals.sigterm.start()
{react}
print("ready", flush=True)
for _ in range(9):  # a signal interrupts one sleep
    ctypes.CDLL(None).sleep(60)
"""
ALTERNATE_STACK = """
import ctypes
from w2v_lightning.runtime import signals

class Stack(ctypes.Structure):
    _fields_ = [("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]

def size():
    stack = Stack()
    ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack))
    return stack.size if stack.address else 0

before = size()
signals.sigterm.start()
print(before, size())
"""
WORKER = """
import ctypes, multiprocessing, os, signal, time
from contextlib import nullcontext
from w2v_lightning.runtime import signals

def begin_thread():  # as a C library does, without the interpreter knowing of it
    libc = ctypes.CDLL(None)
    libc.pthread_create(ctypes.byref(ctypes.c_ulong()), None, ctypes.cast(libc.pause, ctypes.c_void_p), None)

def work(pipe):
    {before_signal}
    pipe.send(os.getpid())
    pipe.recv()
    {after_signal}
    while signal.SIGTERM in signal.sigpending():  # two pending signals would count as one
        time.sleep(0.01)
    pipe.send("still here")
    pipe.recv()

if __name__ == "__main__":
    parent_end, worker_end = multiprocessing.Pipe()
    worker = multiprocessing.get_context({method!r}).Process(target=work, args=(worker_end,))
    with {started_in}:
        worker.start()
    os.system(f"kill {{parent_end.recv()}}")
    parent_end.send("")
    print(parent_end.recv() if parent_end.poll(20) else "gone")
    worker.terminate()
    worker.join(20)
    print(worker.exitcode, flush=True)
    worker.kill()
"""
ORPHAN = """
import multiprocessing, os, time
from w2v_lightning.runtime import signals

def work(pipe):
    pipe.send(os.getpid())
    while not os.path.exists("parent is gone"):
        time.sleep(0.01)
    signals.accept_sigterm_from_parent_only()
    time.sleep(600)

if __name__ == "__main__":
    parent_end, worker_end = multiprocessing.Pipe()
    worker = multiprocessing.get_context({method!r}).Process(target=work, args=(worker_end,))
    worker.start()
    print(parent_end.recv(), flush=True)
    worker.join()
"""

SIBLING = """
import multiprocessing, os, time
from w2v_lightning.runtime import signals

def work(pipe):
    signals.accept_sigterm_from_parent_only()
    pipe.send("")
    time.sleep(600)

def stay():
    os.closerange(1, 3)
    time.sleep(600)

if __name__ == "__main__":
    parent_end, worker_end = multiprocessing.Pipe()
    context = multiprocessing.get_context("fork")
    context.Process(target=work, args=(worker_end,)).start()
    sibling = context.Process(target=stay)
    sibling.start()
    parent_end.recv()
    print(sibling.pid, flush=True)
"""


def start(code):
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
    )


def test_it_is_heard_where_the_main_thread_waits_in_c():
    with start(WAITS_IN_C.format(react="")) as process:
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        assert process.wait(20) == signals.PREEMPTED == os.EX_TEMPFAIL
        assert "nothing to save. Start the same command again (exit status 75)." in process.stderr.read()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the structure is that of Linux")
def test_handlers_have_a_stack_of_their_own():
    with start(ALTERNATE_STACK) as process:
        before, after = map(int, process.stdout.readline().split())
    assert before == 0
    assert after > 4096


def test_what_comes_by_two_ways_is_one_signal():
    react = "signals.sigterm.arm(react=lambda: print('received', flush=True))"
    with start(WAITS_IN_C.format(react=react)) as process:
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        assert process.stdout.readline() == "received\n"
        process.terminate()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5 * signals.SAME_SIGNAL_S)
        process.kill()


@pytest.mark.skipif(not hasattr(signal, "sigtimedwait"), reason="SIGTERM's sender is not known on this system")
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_worker_heeds_its_parent_only(method, tmp_path):
    check_survives(tmp_path, method, "nullcontext()", "signals.accept_sigterm_from_parent_only()", "pass")


@pytest.mark.skipif(not hasattr(signal, "sigtimedwait"), reason="SIGTERM's sender is not known on this system")
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_worker_whose_parent_was_killed_as_it_started_ends(method, tmp_path):
    (tmp_path / "script.py").write_text(ORPHAN.format(method=method))
    with subprocess.Popen([sys.executable, "script.py"], stdout=subprocess.PIPE, text=True, cwd=tmp_path) as parent:
        worker = int(parent.stdout.readline())
        parent.kill()
        parent.wait()
        (tmp_path / "parent is gone").touch()
        try:
            parent.communicate(timeout=20)  # returns once no process holds the pipe
        except subprocess.TimeoutExpired:
            os.kill(worker, signal.SIGKILL)
            pytest.fail("The worker is still there.")


@pytest.mark.skipif(not hasattr(signal, "sigtimedwait"), reason="SIGTERM's sender is not known on this system")
def test_a_worker_whose_parent_was_killed_does_not_wait_for_those_that_were_forked_later():
    with start(SIBLING) as parent:
        sibling = int(parent.stdout.readline())
        parent.kill()
        try:
            parent.communicate(timeout=20)  # returns once the worker no longer holds the pipe
        finally:
            os.kill(sibling, signal.SIGKILL)


@pytest.mark.skipif(not hasattr(signal, "sigtimedwait"), reason="SIGTERM's sender is not known on this system")
def test_a_worker_survives_what_comes_while_it_starts(tmp_path):
    """Even if a library has already started a thread in which SIGTERM is not blocked."""
    check_survives(
        tmp_path,
        "fork",
        "signals.sigterm_blocked()",
        "begin_thread()",
        "signals.accept_sigterm_from_parent_only()",
    )


def check_survives(folder, method, started_in, before_signal, after_signal):
    """Check that a worker survives a SIGTERM from another process, and ends on one from its parent."""
    script = folder / "script.py"
    places = {"started_in": started_in, "before_signal": before_signal, "after_signal": after_signal}
    script.write_text(WORKER.format(method=method, **places))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False, timeout=90)
    assert done.stdout.split("\n")[:2] == ["still here", "0"], done.stderr


def test_stopping_leaves_everything_as_it_was():
    before = signal.getsignal(signal.SIGTERM)
    assert signals.sigterm.start()
    assert not signals.sigterm.start()
    assert signal.getsignal(signal.SIGTERM) is not before
    signals.sigterm.stop()
    assert signal.getsignal(signal.SIGTERM) is before
    assert signal.set_wakeup_fd(-1) == -1


def test_stopping_resets_the_resume_hint():
    assert signals.sigterm.resume_hint == signals.DEFAULT_RESUME_HINT
    signals.sigterm.set_resume_hint("Run it again")
    assert signals.sigterm.resume_hint == "Run it again"
    signals.sigterm.stop()
    assert signals.sigterm.resume_hint == signals.DEFAULT_RESUME_HINT


def test_a_process_that_ends_at_once_kills_its_children_and_has_the_armed_status():
    arm = "signals.sigterm.arm(status=3, kill_children=lambda signum: print('kill', int(signum), flush=True))"
    with start(WAITS_IN_C.format(react=arm)) as process:
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        assert process.stdout.readline() == f"kill {int(signal.SIGTERM)}\n"
        assert process.wait(20) == 3
