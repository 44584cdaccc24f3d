"""Runs of the command line as processes of their own, which a test starts, watches and kills."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import witness
import yaml
from tiny import TINY_CONFIG

LIMIT_S = 480  # compiling on two slow cores takes minutes
FIT = ["-m", "w2v_lightning", "fit", "--config"]


def config(corpus, folder, num_steps, **trainer):
    """The path of a config of a run in `folder`, with a witness; dropout is 0, and neither hosts nor devices are named.

    Two processes make two or three micro-batches of a step.
    """
    (folder / "seen").mkdir(parents=True)
    options = {
        "model": {"pretrained": None, "config": TINY_CONFIG, "freeze_feature_encoder": False, "learning_rate": 1e-3}
        | {"activation_dropout": 0.0, "layerdrop": 0.2, "speed": {"positional_convolution": "convolution"}},
        "data": {"root": str(corpus), "train_splits": ["train"], "val_splits": ["dev"], "num_workers": 1}
        | {"batch_seconds": 9, "device_seconds": 3.3},
        "trainer": {"max_steps": num_steps, "accelerator": "cpu", "log_every_n_steps": 1, "num_sanity_val_steps": 0}
        | {"callbacks": [{"class_path": "witness.Witness", "init_args": {"folder": str(folder / "seen")}}]}
        | {"default_root_dir": str(folder), "enable_progress_bar": False, **trainer},
        "checkpoint_every": "2 steps",
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(options))
    return str(folder / "tiny.yaml")


@contextmanager
def started(arguments, log, **environment):
    """A Python process; at the end of this block it is killed with all that it has started."""
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with log.open("a") as file:
        process = subprocess.Popen(
            [sys.executable, *arguments], stdout=file, stderr=file, env={**os.environ, **environment}
        )
    try:
        yield process
    finally:
        kill(process)


def kill(process):
    for pid in (process.pid, *descendants(process.pid)):  # the first would start others
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait(LIMIT_S)


def descendants(pid):
    try:
        children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []
    return children + [each for child in children for each in descendants(child)]


def wait_until(happened, folder, processes):
    """Returns the first line of the witnesses for which it is true."""
    give_up_at = time.monotonic() + LIMIT_S
    while not (found := [line for line in witness.seen(folder / "seen") if happened(line)]):
        assert time.monotonic() < give_up_at, logs(folder)
        assert all(is_alive(process) for process in processes), logs(folder)
        time.sleep(0.1)
    return found[0]


def is_alive(process):
    return process.poll() is None if isinstance(process, subprocess.Popen) else process.is_alive()


def logs(folder):
    return "\n".join(path.read_text() for path in sorted(folder.glob("*.log")))
