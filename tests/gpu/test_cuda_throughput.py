"""Throughput and profile on a CUDA device: `W2V_TEST_GPUS=0 pytest -n 0 -m gpu`."""

import io
import json
import re

import pytest
import torch
from corpus import random_texts, write_split
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger
from rich.console import Console
from tiny import TINY_CONFIG

from w2v_lightning import LibriSpeechDataModule, Wav2Vec2CTC
from w2v_lightning.callbacks.diagnosis import Diagnosis
from w2v_lightning.callbacks.preemption import Preemption
from w2v_lightning.telemetry.gpu import GpuSampler
from w2v_lightning.telemetry.profile import Profile
from w2v_lightning.telemetry.throughput import Throughput

pytestmark = pytest.mark.gpu


class NeverWaits(Throughput):
    """Make torch raise an error if one of its operations would wait for the device."""

    def on_train_batch_start(self, *args):
        with no_waiting():
            super().on_train_batch_start(*args)

    def on_train_batch_end(self, *args):
        with no_waiting():
            super().on_train_batch_end(*args)


class no_waiting:  # noqa: N801
    def __enter__(self):
        torch.cuda.set_sync_debug_mode("error")

    def __exit__(self, *_):
        torch.cuda.set_sync_debug_mode("default")


class WaitsForNothing(Callback):
    """Check the whole training once kernels are compiled and chosen. Diagnosis checks the last update."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        is_inner = batch_idx >= 6 and trainer.global_step < trainer.max_steps - 1
        torch.cuda.set_sync_debug_mode("error" if is_inner else "default")

    def on_train_end(self, *_):
        torch.cuda.set_sync_debug_mode("default")

    def on_exception(self, *_):
        torch.cuda.set_sync_debug_mode("default")


def fit(tmp_path, *callbacks):
    assert torch.cuda.is_available(), "run with W2V_TEST_GPUS=0 on a machine with a GPU"
    write_split(tmp_path / "corpus", "train", random_texts(40, seed=1), speaker="1")
    write_split(tmp_path / "corpus", "dev", random_texts(4, seed=2), speaker="2")
    data = LibriSpeechDataModule(
        str(tmp_path / "corpus"), ["train"], ["dev"], batch_seconds=8, device_seconds=4, num_workers=1
    )
    trainer = Trainer(
        max_epochs=4, accelerator="gpu", devices=1, precision="bf16-mixed", logger=CSVLogger(tmp_path),
        callbacks=list(callbacks), log_every_n_steps=2, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(Wav2Vec2CTC(None, TINY_CONFIG, freeze_feature_encoder=False), datamodule=data)
    return trainer


def test_a_run_is_measured_without_waiting_for_the_device(tmp_path):
    trainer = fit(tmp_path, NeverWaits())
    (path,) = tmp_path.rglob("throughput.json")
    results = json.loads(path.read_text())
    assert results["device_share"] + results["data_wait_share"] + results["host_share"] == pytest.approx(1)
    assert 0 < results["device_share"] < 1
    assert 0 < results["mfu"] < 1
    assert results["matrix_flops_per_s"] > 1e12
    assert results["peak_memory_gib"] > 0
    assert results["device"] == torch.cuda.get_device_name()
    readings = [window["gpu_num_utilisation"] for window in results["windows"]]
    assert len(readings) > 1
    assert (sum(readings) > 0) == (results["gpu_utilisation"] is not None)
    logged = {name for name in trainer.callback_metrics if name.startswith("throughput/")}
    assert {"throughput/device_share", "throughput/mfu"} <= logged
    assert all(trainer.callback_metrics[name].device.type == "cpu" for name in logged)


def test_the_gpu_is_found_and_says_something():
    sampler = GpuSampler.for_device(torch.device("cuda", 0))
    if sampler is None:
        pytest.skip("NVML does not know this GPU")
    sampler.sample()
    assert sampler.take().most_memory_gib > 0


def test_a_profile_gives_the_time_of_kernels_to_groups(tmp_path):
    output = io.StringIO()
    fit(tmp_path, Profile(Console(file=output, width=120)))
    text = output.getvalue()
    assert "ms a step (device)" in text
    still, waits = re.search(
        r"was idle for (\S+) ms a step, \d+% of the time\. Idle time .* \(ms\): (.*)\. Trace", " ".join(text.split())
    ).groups()
    by_part = {name: float(ms) for ms, name in (wait.split(" ", 1) for wait in waits.split(", "))}
    assert {"forward", "backward"} <= set(by_part)  # with so small a model the host is slower than the device
    assert sum(by_part.values()) == pytest.approx(float(still), abs=0.05)
    groups = {line[:26].strip() for line in text.splitlines()}
    # They are among the ten most costly groups of so small a model.
    assert {"feature encoder", "positional convolution", "CTC"} <= groups
    assert list(tmp_path.rglob("trace.json.gz"))


def test_a_step_of_training_waits_for_nothing(tmp_path):
    """Check forward, loss, backward, clipping, optimiser and our callbacks, except in steps that are logged.

    Micro-batches have at least two utterances, because torch compiles again for the first one with a single utterance.
    """
    write_split(tmp_path / "corpus", "train", random_texts(120, seed=1), speaker="1")
    data = LibriSpeechDataModule(
        str(tmp_path / "corpus"), ["train"], [], batch_seconds=16, device_seconds=8, num_workers=1
    )
    config = TINY_CONFIG | {"hidden_size": 64, "num_attention_heads": 4, "attention_dropout": 0.0}
    trainer = Trainer(
        max_steps=12, accelerator="gpu", devices=1, precision="bf16-mixed", logger=False, log_every_n_steps=1000,
        callbacks=[WaitsForNothing(), Throughput(), Preemption(), Diagnosis()], gradient_clip_val=1.0,
        limit_val_batches=0, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(Wav2Vec2CTC(None, config, attention_dropout=0.0), datamodule=data)
    assert trainer.global_step == 12
