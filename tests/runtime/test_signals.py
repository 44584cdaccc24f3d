"""What SIGTERM does to a process before it trains: at once, with the status that means "start me again"."""

import os
import signal
import subprocess
import sys

import pytest

from w2v_lightning.runtime import signals

WAITS_IN_C = """
import ctypes, sys
from w2v_lightning.runtime import signals
signals.watch.start()
{react}
print("here", flush=True)
for _ in range(9):  # a signal ends one of them
    ctypes.CDLL(None).sleep(60)
"""
ALTERNATE_STACK = """
import ctypes
from w2v_lightning.runtime import signals

class Stack(ctypes.Structure):
    _fields_ = [("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]

def size():
    found = Stack()
    ctypes.CDLL(None).sigaltstack(None, ctypes.byref(found))
    return found.size if found.address else 0

before = size()
signals.watch.start()
print(before, size())
"""
WORKER = """
import ctypes, multiprocessing, os, signal, time
from contextlib import nullcontext
from w2v_lightning.runtime import signals

def begin_thread():  # as a library does, of which Python knows nothing
    libc = ctypes.CDLL(None)
    libc.pthread_create(ctypes.byref(ctypes.c_ulong()), None, ctypes.cast(libc.pause, ctypes.c_void_p), None)

def work(pipe):
    {before_signal}
    pipe.send(os.getpid())
    pipe.recv()
    {behind_signal}
    while signal.SIGTERM in signal.sigpending():  # two that wait would become one
        time.sleep(0.01)
    pipe.send("still here")
    pipe.recv()

if __name__ == "__main__":
    ours, its = multiprocessing.Pipe()
    worker = multiprocessing.get_context({method!r}).Process(target=work, args=(its,))
    with {started_in}:
        worker.start()
    os.system(f"kill {{ours.recv()}}")
    ours.send("")
    print(ours.recv() if ours.poll(20) else "gone")
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
    signals.heed_parent_only()
    time.sleep(600)

if __name__ == "__main__":
    ours, its = multiprocessing.Pipe()
    worker = multiprocessing.get_context({method!r}).Process(target=work, args=(its,))
    worker.start()
    print(ours.recv(), flush=True)
    worker.join()
"""

SIBLING = """
import multiprocessing, os, time
from w2v_lightning.runtime import signals

def work(pipe):
    signals.heed_parent_only()
    pipe.send("")
    time.sleep(600)

def stay():
    os.closerange(1, 3)
    time.sleep(600)

if __name__ == "__main__":
    ours, its = multiprocessing.Pipe()
    context = multiprocessing.get_context("fork")
    context.Process(target=work, args=(its,)).start()
    sibling = context.Process(target=stay)
    sibling.start()
    ours.recv()
    print(sibling.pid, flush=True)
"""


def start(code):
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
    )


def test_it_is_heard_where_the_main_thread_waits_in_c():
    with start(WAITS_IN_C.format(react="")) as process:
        assert process.stdout.readline() == "here\n"
        process.terminate()
        assert process.wait(20) == signals.PREEMPTED == os.EX_TEMPFAIL
        assert "nothing to save. Start the same command again (exit status 75)." in process.stderr.read()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the structure is Linux's")
def test_handlers_have_a_stack_of_their_own():
    with start(ALTERNATE_STACK) as process:
        before, after = map(int, process.stdout.readline().split())
    assert before == 0
    assert after > 4096


def test_what_comes_by_two_ways_is_one_signal():
    react = "signals.watch.react = lambda: print('heard', flush=True)"
    with start(WAITS_IN_C.format(react=react)) as process:
        assert process.stdout.readline() == "here\n"
        process.terminate()
        assert process.stdout.readline() == "heard\n"
        process.terminate()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5 * signals.SAME_SIGNAL_S)
        process.kill()


@pytest.mark.skipif(not hasattr(signal, "sigtimedwait"), reason="SIGTERM's sender is not known on this system")
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_worker_heeds_its_parent_only(method, tmp_path):
    check_survives(tmp_path, method, "nullcontext()", "signals.heed_parent_only()", "pass")


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
            parent.communicate(timeout=20)  # until nobody holds the pipe any more
        except subprocess.TimeoutExpired:
            os.kill(worker, signal.SIGKILL)
            pytest.fail("The worker is still there.")


@pytest.mark.skipif(not hasattr(signal, "sigtimedwait"), reason="SIGTERM's sender is not known on this system")
def test_a_worker_whose_parent_was_killed_does_not_wait_for_those_that_were_forked_later():
    with start(SIBLING) as parent:
        sibling = int(parent.stdout.readline())
        parent.kill()
        try:
            parent.communicate(timeout=20)  # until the worker does not hold the pipe any more
        finally:
            os.kill(sibling, signal.SIGKILL)


@pytest.mark.skipif(not hasattr(signal, "sigtimedwait"), reason="SIGTERM's sender is not known on this system")
def test_a_worker_survives_what_comes_while_it_starts(tmp_path):
    """Also where a library has begun a thread by then, in which SIGTERM would not be blocked."""
    check_survives(tmp_path, "fork", "signals.held_back()", "begin_thread()", "signals.heed_parent_only()")


def check_survives(folder, method, started_in, before_signal, behind_signal):
    """A SIGTERM that is not the parent's, and then ends by one that is."""
    script = folder / "script.py"
    places = {"started_in": started_in, "before_signal": before_signal, "behind_signal": behind_signal}
    script.write_text(WORKER.format(method=method, **places))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False, timeout=90)
    assert done.stdout.split("\n")[:2] == ["still here", "0"], done.stderr


def test_stopping_leaves_everything_as_it_was():
    before = signal.getsignal(signal.SIGTERM)
    assert signals.watch.start()
    assert not signals.watch.start()
    assert signal.getsignal(signal.SIGTERM) is not before
    signals.watch.stop()
    assert signal.getsignal(signal.SIGTERM) is before
    assert signal.set_wakeup_fd(-1) == -1
