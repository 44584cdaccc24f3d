"""A process ends without threads that could abort it while Python shuts down."""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import forked
import pytest
import running
from corpus import random_texts, write_split

from w2v_lightning.__main__ import main
from w2v_lightning.runtime import signals


def fit(arguments, folder):
    try:
        return main(["fit", *arguments])
    finally:
        time.sleep(1)  # a thread that has ended is still listed for a moment
        (folder / f"threads{os.environ['RANK']}").write_text(" ".join(names_of_threads()))


def names_of_threads():
    names = []
    for thread in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended in the meantime
            names.append((thread / "comm").read_text().strip())
    return names


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads have no names on this system")
@pytest.mark.parametrize("is_preempted", [False, True])
def test_no_thread_of_gloo_is_left(tmp_path, is_preempted):
    for split, size in (("train", 20), ("dev", 5)):
        write_split(tmp_path / "corpus", split, random_texts(size, seed=size), speaker=str(size))
    folder = tmp_path / "run"
    config = running.config(tmp_path / "corpus", folder, 3, devices=2)
    if is_preempted:
        (folder / "seen" / "hold").write_text("2")
    processes = forked.start(folder, fit, ["--config", config], folder, ranks=2)
    if is_preempted:
        running.wait_until(lambda line: line["what"] == "held", folder, processes)
        os.kill(processes[1].pid, signal.SIGTERM)
    assert forked.ended(processes, folder) == [signals.PREEMPTED * is_preempted] * 2, forked.logs(folder)
    for rank in range(2):
        assert "gloo" not in (folder / f"threads{rank}").read_text()
