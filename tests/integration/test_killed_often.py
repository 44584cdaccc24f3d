"""A run that is killed twenty times, or moves to another machine, ends as if uninterrupted."""

import os
import random
import re
import signal
import subprocess
import sys
import time

import forked
import preempted
import pytest
import yaml
from corpus import random_texts, write_split
from test_preemption import check_same_end
from tiny import TINY_CONFIG

from w2v_lightning.checkpoints import files
from w2v_lightning.runtime import signals

pytestmark = pytest.mark.slow
OPTIONS = {"max_steps": 60, "every": "2 steps"}
# A step has about three micro-batches, so that no run gets far between looking at it and killing it.
SLOWLY = OPTIONS | {"pause_s": 0.03}
NUM_KILLS = 20


@pytest.fixture
def root(tmp_path):
    write_split(tmp_path / "corpus", "train", random_texts(30, seed=1), speaker="1")
    write_split(tmp_path / "corpus", "dev", random_texts(9, seed=3), speaker="3")
    return tmp_path / "corpus"


@pytest.mark.parametrize("ranks", [1, 2])
def test_killed_twenty_times_at_random_moments(root, ranks, tmp_path):
    random_ = random.Random(ranks)
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    assert forked.ended(preempted.start(root, whole, ranks=ranks, options=OPTIONS), whole) == [0] * ranks
    for _ in range(NUM_KILLS):
        processes = preempted.start(root, folder, ranks=ranks, options=SLOWLY)
        wait_for_a_random_moment(random_, folder, processes)
        kill(random_, processes, folder)
    began = time.monotonic()
    processes = preempted.start(root, folder, ranks=ranks, options=OPTIONS)
    wait_for_steps(folder, 1, processes)
    print(f"\nFrom start to the first step after resuming, without imports: {time.monotonic() - began:.2f} s")
    assert forked.ended(processes, folder) == [0] * ranks, forked.logs(folder)
    check_same_end(folder, whole)
    assert preempted.losses(folder) == preempted.losses(whole)


def wait_for_a_random_moment(random_, folder, processes):
    """Wait for the start or a few more steps: so few that the run does not end before it was killed often enough."""
    if random_.random() < 0.3:
        wait_for_steps(folder, 1, processes, at_most_s=random_.uniform(0, 1.5))
    else:
        wait_for_steps(folder, random_.randint(1, 3), processes)
        time.sleep(random_.uniform(0, 0.1))


def wait_for_steps(folder, number, processes, at_most_s=None):
    began, log = time.monotonic(), folder / "rank0.log"
    before = log.read_text().count("\nLOSS") if log.exists() else 0
    while not log.exists() or log.read_text().count("\nLOSS") < before + number:
        waited_s = time.monotonic() - began
        if at_most_s is not None and waited_s > at_most_s:
            return
        assert waited_s < preempted.LIMIT_S, forked.logs(folder)
        assert all(process.is_alive() for process in processes), forked.logs(folder)
        time.sleep(0.01)


def kill(random_, processes, folder):
    number = random_.choice([signal.SIGTERM, signal.SIGKILL])
    rank = random_.randrange(len(processes))
    assert processes[rank].is_alive(), forked.logs(folder)
    os.kill(processes[rank].pid, number)
    processes[rank].join(preempted.LIMIT_S)
    said = forked.logs(folder, rank).strip().rpartition("\n")[2]
    if processes[rank].exitcode != signals.PREEMPTED or "SIGTERM before training" in said:
        for process in processes:  # as a launcher does: the others cannot notice it themselves
            process.kill()
    elif forked.ended(processes, folder) != [signals.PREEMPTED] * len(processes):
        pytest.fail(forked.logs(folder))
    forked.ended(processes, folder)


def test_on_four_processes_then_on_one_then_on_two(root, tmp_path):
    options = {"max_steps": 15, "dropout": 0.0}
    whole, folder = tmp_path / "whole", tmp_path / "moved"
    assert forked.ended(preempted.start(root, whole, options=options), whole) == [0]
    for ranks, place in ((4, "step 4, micro-batch 0"), (1, "step 10, micro-batch 1")):
        processes = preempted.start(root, folder, place, ranks, options=options)
        preempted.wait_until_here(folder, processes)
        os.kill(processes[-1].pid, signal.SIGTERM)
        assert forked.ended(processes, folder) == [signals.PREEMPTED] * ranks, forked.logs(folder)
    assert forked.ended(preempted.start(root, folder, ranks=2, options=options), folder) == [0, 0]
    result, expected = preempted.losses(folder), preempted.losses(whole)
    assert len(expected) == 15
    assert result == pytest.approx(expected, rel=1e-5)


LAUNCHERS = {  # how several processes are started, and the exit status of their parent
    "torchrun": (["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"], [], 1),
    "Lightning": ([], ["--trainer.devices=2"], signals.PREEMPTED),
    "fork": ([], ["--trainer.devices=2", "--trainer.strategy=ddp_fork"], signals.PREEMPTED),
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_signal_to_the_launcher_and_the_same_command_again(root, launcher, tmp_path):
    before, options, status = LAUNCHERS[launcher]
    command = [sys.executable, *before, "-m", "w2v_lightning", "fit", "--config", str(tmp_path / "tiny.yaml"), *options]
    config = {
        "model": {"pretrained": None, "config": TINY_CONFIG, "freeze_feature_encoder": False},
        "data": {"root": str(root), "train_splits": ["train"], "val_splits": ["dev"], "num_workers": 1}
        | {"batch_seconds": 9, "device_seconds": 9},
        "trainer": {"max_steps": 60, "default_root_dir": str(tmp_path / "runs"), "accelerator": "cpu"},
        "checkpoint_every": "2 steps",
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(config))
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    give_up_at = time.monotonic() + 150
    while not files.list_checkpoints(str(tmp_path / "runs" / "checkpoints")):
        assert time.monotonic() < give_up_at, (tmp_path / "log").read_text()
        assert process.poll() is None, (tmp_path / "log").read_text()
        time.sleep(0.05)
    process.terminate()
    assert process.wait(60) == status, (tmp_path / "log").read_text()
    step = re.search(r"Preempted at step (\d+)\. Saved", (tmp_path / "log").read_text())[1]
    again = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"step-{int(step):08}.ckpt" in again.stdout + again.stderr
