"""SIGTERM at chosen moments of a run, on one and two processes: nothing is lost.

The runs have dropout and averaged weights; a resumed run ends with exactly the weights of an uninterrupted one.
"""

import os
import re
import signal
import time
from pathlib import Path

import forked
import preempted
import pytest
import torch
from corpus import random_texts, write_split
from lightning.pytorch import Trainer

from w2v_lightning.callbacks.preemption import Preemption
from w2v_lightning.checkpoints import files
from w2v_lightning.runtime import signals


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("corpus")
    write_split(root, "train", random_texts(30, seed=1), speaker="1")
    write_split(root, "dev", random_texts(9, seed=3), speaker="3")
    return root


@pytest.fixture(scope="module")
def whole(root, tmp_path_factory):
    """Folders of uninterrupted runs, by number of ranks."""
    results = {}

    def of(ranks):
        if ranks not in results:
            folder = tmp_path_factory.mktemp(f"whole{ranks}")
            assert forked.ended(preempted.start(root, folder, ranks=ranks), folder) == [0] * ranks
            results[ranks] = folder
        return results[ranks]

    return of


def check_same_end(folder, whole):
    result, expected = preempted.weights(folder), preempted.weights(whole)
    assert result.keys() == expected.keys()
    for name, weight in expected.items():
        assert torch.equal(result[name], weight), name


def checkpoints(folder):
    paths = files.list_checkpoints(str(folder / "checkpoints"))
    assert [path for path in paths if files.find_damage(path)] == []
    return [os.path.basename(path) for path in paths]


PLACES = {  # where the signal arrives, and the number of steps done by then
    "starting": 0,
    "step 0, micro-batch 0": 0,
    "backward of step 0": 0,  # the first step may take a minute, because it is compiled
    "step 1, micro-batch 0": 1,
    "step 2, micro-batch 1": 2,
    "validation after 5, batch 1": 5,
    "sums of validation after 5": 5,
    "saving": 3,
}


@pytest.mark.parametrize("place", PLACES)
def test_a_signal_to_the_only_process(root, whole, place, tmp_path):
    check_preempted(root, whole, place, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("hit", [0, 1])
@pytest.mark.parametrize("place", PLACES)
def test_a_signal_to_one_of_two_processes(root, whole, place, hit, tmp_path):
    """Hold rank 0 and signal it, or the other rank, which runs ahead as far as it can."""
    check_preempted(root, whole, place, tmp_path, ranks=2, hit=hit)


def check_preempted(root, whole, place, folder, ranks=1, hit=0):
    processes = preempted.start(root, folder, place, ranks)
    preempted.wait_until_here(folder, processes)
    began = time.monotonic()
    os.kill(processes[hit].pid, signal.SIGTERM)
    assert forked.ended(processes, folder) == [signals.PREEMPTED] * ranks, forked.logs(folder)
    assert time.monotonic() - began < 30
    log = (folder / "rank0.log").read_text()
    saved = re.search(r"Preempted at step (\d+)\. Saved.*?: (.+)", log)
    assert f"{signals.DEFAULT_RESUME_HINT if saved else signals.START_AGAIN} (exit status 75)." in log
    step = int(saved[1]) if saved else 0
    ahead = ranks - 1 if PLACES[place] else 0
    assert step in (PLACES[place], PLACES[place] + ahead)
    assert checkpoints(folder)[-1:] == ([os.path.basename(saved[2])] if saved else [])

    processes = preempted.start(root, folder, ranks=ranks)
    assert forked.ended(processes, folder) == [0] * ranks, forked.logs(folder)
    check_same_end(folder, whole(ranks))
    assert preempted.validated(folder) == preempted.validated(whole(ranks)) != []


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_second_signal_leaves_at_once_with_what_is_complete(root, whole, ranks, tmp_path):
    processes = preempted.start(root, tmp_path, "step 4, micro-batch 0", ranks, for_ever=True)
    preempted.wait_until_here(tmp_path, processes)
    for _ in range(2):
        os.kill(processes[0].pid, signal.SIGTERM)
        time.sleep(1.5 * signals.SAME_SIGNAL_S)  # a second signal within this time counts as the same
    assert not processes[0].is_alive()
    assert processes[0].exitcode == signals.PREEMPTED
    for process in processes:
        process.kill()
    assert checkpoints(tmp_path) == ["step-00000003.ckpt"]
    processes = preempted.start(root, tmp_path, ranks=ranks)
    assert forked.ended(processes, tmp_path) == [0] * ranks
    check_same_end(tmp_path, whole(ranks))


@pytest.mark.slow
def test_a_signal_to_all_processes_of_both_groups(root, whole, tmp_path):
    """Signal as torchrun does: loader workers receive it too, and ranks twice. No process ends early."""
    processes = preempted.start(root, tmp_path, "step 2, micro-batch 0", ranks=2)
    preempted.wait_until_here(tmp_path, processes)
    for process in processes:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert children
        for pid in (process.pid, *map(int, children), process.pid):
            os.kill(pid, signal.SIGTERM)
    assert forked.ended(processes, tmp_path) == [signals.PREEMPTED] * 2, forked.logs(tmp_path)
    processes = preempted.start(root, tmp_path, ranks=2)
    assert forked.ended(processes, tmp_path) == [0, 0]
    check_same_end(tmp_path, whole(2))


def test_a_loader_worker_that_is_killed_as_well_does_not_keep_from_saving(root, whole, tmp_path):
    processes = preempted.start(
        root, tmp_path, "step 2, micro-batch 0", options={"callbacks": [preempted.KillsWorkers()]}
    )
    preempted.wait_until_here(tmp_path, processes)
    processes[0].terminate()
    assert forked.ended(processes, tmp_path) == [signals.PREEMPTED], forked.logs(tmp_path)
    assert "KILLED" in forked.logs(tmp_path)
    assert checkpoints(tmp_path) == ["step-00000002.ckpt"]
    processes = preempted.start(root, tmp_path)
    assert forked.ended(processes, tmp_path) == [0]
    check_same_end(tmp_path, whole(1))


@pytest.mark.parametrize("place", ["setup", "start"])
def test_a_signal_as_a_run_goes_on_from_where_memory_ran_out(root, place, tmp_path):
    """Signal a second fit whose starting state is not in any checkpoint of the run yet."""
    runs_out = preempted.RunsOutOfMemory(4, signal_at=place)
    processes = preempted.start(root, tmp_path, options={"callbacks": [runs_out], "device_seconds": 9})
    assert forked.ended(processes, tmp_path) == [signals.PREEMPTED], forked.logs(tmp_path)
    assert "Preempted at step 4. Saved" in forked.logs(tmp_path)
    assert checkpoints(tmp_path) == ["step-00000003.ckpt", "step-00000004.ckpt"]
    assert [path.name for path in tmp_path.glob("*.ckpt")] == []


def test_lightnings_own_broadcast_in_every_micro_batch_is_switched_off(tmp_path):
    trainer = Trainer(default_root_dir=tmp_path, logger=False, enable_checkpointing=False, accelerator="cpu")
    loop, connector = trainer.fit_loop.epoch_loop, trainer._signal_connector
    places = (loop, "_broadcast_sigterm_tensor"), (connector, "_sigterm_notifier_fn")
    assert all(callable(getattr(type(owner), name)) for owner, name in places)  # fails if Lightning has changed
    preemption = Preemption()
    preemption.setup(trainer, None, "fit")
    try:
        assert all(getattr(owner, name)() is None and name in vars(owner) for owner, name in places)
    finally:
        preemption.teardown(trainer, None, "fit")
