"""A training run in processes of its own, which a test sends signals to."""

import multiprocessing
import os
import re
import signal
import time
from pathlib import Path

import forked
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.strategies import DDPStrategy
from tiny import TINY_CONFIG

from w2v_lightning import LibriSpeechDataModule, Wav2Vec2CTC
from w2v_lightning.callbacks.averaging import MovingAverage
from w2v_lightning.callbacks.preemption import Preemption
from w2v_lightning.callbacks.preemption_agreement import POLL_INTERVAL_S
from w2v_lightning.checkpoints import files
from w2v_lightning.checkpoints.recent import Interval, RecentCheckpoints
from w2v_lightning.checkpoints.writer import BackgroundCheckpointIO
from w2v_lightning.runtime import signals
from w2v_lightning.training import out_of_memory

LIMIT_S = 60


class Holds(Callback):
    """Says where the run is, by a file, and stays there until all ranks know where to stop (or for ever).

    Before each micro-batch it pauses for `pause_s`, for a test that must keep up with the run.
    """

    def __init__(self, folder: Path, place: str | None, preemption: Preemption, for_ever: bool, pause_s: float):
        self.folder, self.place, self.preemption, self.for_ever = folder, place, preemption, for_ever
        self.pause_s = pause_s

    def at(self, place: str) -> None:
        if place != self.place:
            return
        (self.folder / "here").touch()
        give_up_at = time.monotonic() + LIMIT_S
        while self.for_ever or self.preemption._agreement.last_gate is None:
            assert time.monotonic() < give_up_at, "no signal came"
            time.sleep(0.01)
        self.place = None

    def on_sanity_check_start(self, trainer, module):
        self.at("starting")

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        time.sleep(self.pause_s)
        self.at(f"step {trainer.global_step}, micro-batch {batch.micro_batch}")

    def on_before_backward(self, trainer, module, loss):
        self.at(f"backward of step {trainer.global_step}")

    def on_validation_batch_start(self, trainer, module, batch, batch_idx, dataloader_idx=0):
        if not trainer.sanity_checking:
            self.at(f"validation after {trainer.global_step}, batch {batch_idx}")

    def on_validation_epoch_end(self, trainer, module):
        if not trainer.sanity_checking:
            self.at(f"sums of validation after {trainer.global_step}")

    def on_validation_end(self, trainer, module):
        if not trainer.sanity_checking:
            print("VALIDATED", trainer.global_step, flush=True)


class KillsWorkers(Callback):
    """The loader's, where the run has stopped and is going to save."""

    def on_exception(self, trainer, module, exception):
        for worker in multiprocessing.active_children():
            worker.kill()
            os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)  # leaves what torch looks at
            print("KILLED", worker.pid, flush=True)


class RunsOutOfMemory(Callback):
    """At a step, twice; SIGTERM comes at `signal_at` of the fit that goes on from it."""

    def __init__(self, step: int, signal_at: str) -> None:
        self.step, self.signal_at = step, signal_at
        self.times_left = 2

    def on_before_backward(self, trainer, module, loss):
        if trainer.global_step == self.step and self.times_left:
            self.times_left -= 1
            raise torch.OutOfMemoryError("CUDA out of memory")

    def setup(self, trainer, module, stage):
        self.at("setup")

    def on_train_start(self, trainer, module):
        self.at("start")

    def at(self, place):
        if not self.times_left and place == self.signal_at:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(2 * POLL_INTERVAL_S)  # until it is heard


class Recorded(Wav2Vec2CTC):
    """Keeps the loss of each step."""

    def log(self, name, value, *args, **kwargs):
        if name == "train_loss":
            print("LOSS", self.trainer.global_step, float(value), flush=True)
        super().log(name, value, *args, **kwargs)


def run(root, folder, place=None, holds_on=0, for_ever=False, options=None):
    """Train to the end, from the newest checkpoint on; leave the weights in FOLDER/end.pt."""
    settings = {"max_steps": 8, "every": "3 steps", "dropout": 0.1, "device_seconds": 3.3, "pause_s": 0.0}
    settings |= {"callbacks": ()} | (options or {})
    rank, ranks = (int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1)))
    signals.sigterm.start()
    seed_everything(1)
    dropout = {"activation_dropout": settings["dropout"], "hidden_dropout": settings["dropout"]}
    module = Recorded(None, TINY_CONFIG, freeze_feature_encoder=False, learning_rate=1e-3, layerdrop=0.2, **dropout)
    device_seconds = settings["device_seconds"]
    data = LibriSpeechDataModule(
        str(root), ["train"], ["dev"], batch_seconds=9, device_seconds=device_seconds, num_workers=1
    )
    preemption = Preemption()
    holds = Holds(folder, place if rank == holds_on else None, preemption, for_ever, settings["pause_s"])
    recent = RecentCheckpoints(str(folder / "checkpoints"), Interval.parse(settings["every"]))
    found = [path for path in files.list_checkpoints(recent.folder) if files.find_damage(path) is None]
    trainer = Trainer(
        strategy=DDPStrategy(process_group_backend="gloo") if ranks > 1 else "auto",
        callbacks=[holds, *settings["callbacks"], MovingAverage(0.8), preemption, recent],
        plugins=[BackgroundCheckpointIO(save=_saver(holds, place))],
        **{"devices": ranks, "accelerator": "cpu", "max_steps": settings["max_steps"], "default_root_dir": folder},
        **dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False),
        num_sanity_val_steps=-1,
        log_every_n_steps=1,
    )
    out_of_memory.fit(trainer, module, data, ckpt_path=found[-1] if found else None)
    if rank == 0:
        torch.save(module.state_dict(), folder / "end.pt")


def _saver(holds, place):
    def save(checkpoint, path):
        if place == "saving":
            holds.at("saving")
        files.save(checkpoint, path)

    return save


def start(root, folder, place=None, ranks=1, **options):
    """The processes of a run: one for each rank, as a launcher starts them."""
    (folder / "here").unlink(missing_ok=True)
    return forked.start(folder, run, root, folder, place, ranks=ranks, **options)


def wait_until_here(folder, processes):
    give_up_at = time.monotonic() + LIMIT_S
    while not (folder / "here").exists():
        assert all(process.is_alive() for process in processes), forked.logs(folder)
        assert time.monotonic() < give_up_at, forked.logs(folder)
        time.sleep(0.01)


def weights(folder):
    return torch.load(folder / "end.pt", weights_only=True)


def validated(folder):
    """After which steps a validation was completed, in all starts of the run."""
    return re.findall(r"^VALIDATED (\d+)$", forked.logs(folder, rank=0), re.MULTILINE)


def losses(folder):
    """Of each step, as it was computed last."""
    return {int(s): float(x) for s, x in re.findall(r"^LOSS (\d+) (\S+)$", forked.logs(folder, rank=0), re.MULTILINE)}
