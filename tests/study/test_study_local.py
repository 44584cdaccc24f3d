"""Cells on this host: what is started, how it ends, and a command that is killed in the middle of it."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest
import yaml
from filelock import FileLock
from running import LIMIT_S, started
from tiny import TINY_CONFIG, write_corpus

from w2v_lightning.__main__ import main as fit
from w2v_lightning.perf_model import runs
from w2v_lightning.sagemaker import study_run
from w2v_lightning.sagemaker.command import main
from w2v_lightning.study import local, processes
from w2v_lightning.study.local import Local
from w2v_lightning.study.queue import LostError
from w2v_lightning.study.spec import load


@pytest.fixture
def study(tmp_path):
    """Writes a study of these cells that trains a tiny model, and returns its path."""

    def written(*cells, **keys):
        options = {
            "model": {"pretrained": None, "config": TINY_CONFIG, "freeze_feature_encoder": False},
            "data": {"root": str(tmp_path / "corpus"), "train_splits": ["train"], "val_splits": ["dev"]}
            | {"num_workers": 0, "batch_seconds": 9, "device_seconds": 4},
            "trainer": {"log_every_n_steps": 2, "num_sanity_val_steps": 0, "check_val_every_n_epoch": 4},
            "checkpoint_every": "20 steps",
        }
        (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(options))
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump({"config": "tiny.yaml", "cells": list(cells), "steps": 8} | keys))
        return path

    return written


def marked(folder):
    """Processes that belong to a run."""
    return processes._living(folder, ())


def wait_until(happened, *, command=None, log=None):
    give_up_at = time.monotonic() + LIMIT_S
    while not (found := happened()):
        assert time.monotonic() < give_up_at, "it does not happen"
        assert command is None or command.poll() is None, log.read_text()
        time.sleep(0.05)
    return found


# ---- what is started ------------------------------------------------------------------------------------------------


class TwoHosts:
    def prefix(self, host):
        return ["on", f"host-{host}"]

    def address(self, host):
        return f"10.0.0.{host + 1}"


def test_one_process_needs_no_launcher_and_several_have_torchrun(study):
    found = load(study({"devices": [1, 4]}))
    one, four = (local._command(cell, found.config, {"a.b": 1}, 0, None) for cell in found.cells)
    assert one == [sys.executable, "-m", "w2v_lightning", "fit", f"--config={found.config[0]}", "--a.b=1"]
    assert four[1:5] == ["-m", "torch.distributed.run", "--nproc_per_node=4", "--standalone"]
    assert four[5:] == one[1:]


def test_emulated_hosts_find_the_first_one(study):
    found = load(study({"hosts": 2, "devices": 3, "link": {"mbit_per_s": 100}}))
    second = local._command(found.cells[0], found.config, {}, 1, TwoHosts())
    assert second[:2] == ["on", "host-1"]
    place = ["--nnodes=2", "--node_rank=1", "--local_addr=10.0.0.2", "--master_addr=10.0.0.1"]
    assert [word for word in second if word.split("=")[0] in {part.split("=")[0] for part in place}] == place


def test_a_process_on_the_cpu_has_one_thread_unless_the_cell_says_otherwise(study):
    found = load(study({"devices": 1, "threads": [1, 2]}))
    runner = Local(found)
    environments = [runner._environment(cell) for cell in found.cells]
    assert [environment["OMP_NUM_THREADS"] for environment in environments] == ["1", "2"]
    assert environments[0]["cores"] >= 1
    assert environments[0]["gib"] > 0


def test_gpus_are_counted_and_emulated_hosts_are_none_of_theirs(study, monkeypatch):
    found = load(study({"devices": [2, 4]}, {"hosts": 2, "link": {"mbit_per_s": 9}}))
    runner = Local(found)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,6,7")
    assert runner._variables(found.cells[0]) == {"CUDA_VISIBLE_DEVICES": "5,6"}
    assert runner.obstacle(found.cells[0]) is None
    assert runner.obstacle(found.cells[1]) == "it needs 4 GPUs, this host has 2"
    with pytest.raises(ValueError, match=r"trainer\.accelerator: cpu"):
        runner.obstacle(found.cells[2])


# ---- how it ends ----------------------------------------------------------------------------------------------------

FORK = (
    "import subprocess, sys, time;"
    " subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True);"
    " print('started', flush=True); time.sleep(600)"
)


@pytest.fixture
def scripted(study, monkeypatch, tmp_path):
    """Runs a script of Python in the place of `fit`; polls until it has ended."""

    def run(script, **keys):
        found = load(study({"devices": 1}, **keys))
        monkeypatch.setattr(local, "_command", lambda *_: [sys.executable, "-c", script])
        cell, folder = found.cells[0], tmp_path / "out" / "x"
        with Local(found) as runner:
            handle = runner.start(cell, folder, runner.plan(cell))
            return wait_until(lambda: runner.poll(cell, folder, handle))

    return run


def test_why_it_has_failed_is_the_outcome(scripted):
    script = "import sys; print('error: data.root: there is no /x.'); print('later'); sys.exit(2)"
    assert scripted(script).outcome == "exit status 2: data.root: there is no /x."
    assert "MemoryError: it is full" in scripted("raise MemoryError('it is full')").outcome


def test_what_takes_too_long_is_stopped(scripted, tmp_path):
    run = scripted(FORK, max_hours=3 / 3600)
    assert run.outcome.startswith("stopped after")
    assert 3 <= run.training_s < LIMIT_S
    assert not marked(tmp_path / "out" / "x")


def test_what_is_preempted_goes_on(scripted):
    with pytest.raises(LostError, match="preempted"):
        scripted("import sys; sys.exit(75)")


def test_a_host_that_fails_takes_the_others_with_it(study, monkeypatch, tmp_path):
    found = load(study({"devices": 1}))
    cell, folder = found.cells[0], tmp_path / "x"
    monkeypatch.setattr(local, "GRACE_S", 0.1)
    with Local(found) as runner:
        handle = runner.plan(cell)
        folder.mkdir()
        commands = [[sys.executable, "-c", script] for script in (FORK, "raise SystemExit(3)")]
        runner._started[folder] = local.Started(
            processes.start(commands, folder, {}), local.ExitStack(), local.datetime.now(local.UTC), time.monotonic()
        )
        run = wait_until(lambda: runner.poll(cell, folder, handle))
    assert run.outcome.startswith("exit status 3")
    assert not marked(folder)


def test_everything_that_a_run_has_started_is_found_and_nothing_else(tmp_path):
    own, other = tmp_path / "run", tmp_path / "run-2"
    own.mkdir()
    other.mkdir()
    found = [processes.start([[sys.executable, "-c", FORK]], folder, {})[0] for folder in (own, other)]
    try:
        wait_until(lambda: len(marked(own)) == 2 and len(marked(other)) == 2)
        processes.kill(own)
        assert not marked(own)
        assert len(marked(other)) == 2
    finally:
        processes.kill(own, found[:1])
        processes.kill(other, found[1:])


def test_two_commands_do_not_run_one_study(study, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / study_run.LOCK):
        assert main(["study", "run", str(study({"devices": 1})), "--to", str(tmp_path / "out")]) == 2
    assert "is in use by another `study run`" in capsys.readouterr().err


def test_a_wrong_option_is_said_before_anything_runs(study, tmp_path, capsys):
    path = study({"devices": 1}, {"devices": 2, "options": {"data.batch_secods": 3}})
    assert main(["study", "run", str(path), "--to", str(tmp_path / "out")]) == 2
    assert "Did you mean data.batch_seconds" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_here_a_study_of_instances_runs_as_far_as_there_are_devices(monkeypatch, capsys):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    shipped = Path(__file__).parents[2] / "configs" / "study_g4dn.yaml"
    assert main(["study", "run", str(shipped), "--where", "local", "--dry-run"]) == 0
    printed = capsys.readouterr()
    assert "g4dn: 3 runs" in printed.out
    assert all(f"local-x{number}-r1" in printed.out for number in (1, 2, 4))
    assert all(f"left out: local-x{number}: it needs {number} devices" in printed.err for number in (8, 12, 16))


# ---- all of it ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_study_that_is_stopped_and_killed_goes_on(study, tmp_path):
    """SIGTERM in the middle of its second cell; then SIGKILL to the command alone, whose processes are left behind."""
    write_corpus(tmp_path / "corpus")
    path, out, log = study({"devices": 1}, {"devices": 2, "steps": 200}), tmp_path / "out", tmp_path / "command.log"
    command = ["-m", "w2v_lightning", "study", "run", str(path), "--to", str(out)]
    first, second = out / "local-x1-r1", out / "local-x2-max_steps-200-r1"

    def checkpoints():
        return set(second.glob("fit/checkpoints/step-*.ckpt"))

    with started(command, log) as process:
        wait_until(checkpoints, command=process, log=log)
        process.terminate()
        assert process.wait(LIMIT_S) == 130, log.read_text()
    assert "Stopped. Run the same command to continue" in log.read_text()
    assert not marked(second)
    before, written = checkpoints(), (first / runs.FILE).read_bytes()

    with started(command, log) as process:
        wait_until(lambda: checkpoints() - before, command=process, log=log)
        os.kill(process.pid, signal.SIGKILL)
        process.wait(LIMIT_S)
    left_behind = marked(second)
    for pid in left_behind:
        os.kill(pid, signal.SIGSTOP)  # or they reach their end before the command is there again
    assert len(left_behind) == 3  # torchrun and two processes

    with started(command, log) as process:
        assert process.wait(LIMIT_S) == 0, log.read_text()
    assert log.read_text().count("Running 1 of 2 runs") == 2
    assert (first / runs.FILE).read_bytes() == written
    run = runs.read(second)
    assert (run.outcome, run.interruptions) == ("finished", 2)
    assert run.throughput["world_size"] == 2
    assert run.segments[0]["end"] == "Preempted"
    assert run.segments[1]["first_step"] > 0  # it went on from a checkpoint
    assert run.segments[-1]["last_step"] == 200
    assert run.wer
    assert not marked(second)


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0 or not Path("/dev/net/tun").exists(), reason="namespaces need root and a tun")
def test_hosts_and_slow_storage_are_emulated(study, tmp_path):
    write_corpus(tmp_path / "corpus")
    prepared = tmp_path / "prepared"
    assert (
        fit(["prepare", str(tmp_path / "corpus"), "--out", str(prepared), "--shard-size", "1MB", "--workers", "1"]) == 0
    )
    cell = {"hosts": 2, "link": {"mbit_per_s": 100, "delay_ms": 1}, "storage": {"mbit_per_s": 4}}
    path = study(cell, options={"data.root": str(prepared)})
    assert main(["study", "run", str(path), "--to", str(tmp_path / "out")]) == 0
    run = runs.read(tmp_path / "out" / "local-x2-100mbit-1ms-storage-4mbit-r1")
    assert run.throughput["host"]["hosts"] == 2
    assert run.cell["link"] == "100 Mbit/s, 1 ms"
    assert run.throughput["all_reduce"]["latency_ms"] > 1
