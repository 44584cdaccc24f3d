"""Throughput of a run, in its log and in throughput.json."""

import json
import os
import time

import forked
import pytest
import torch
import yaml
from corpus import random_texts, spell, write_split
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger
from tiny import TINY_CONFIG

from w2v_lightning import LibriSpeechDataModule, Wav2Vec2CTC
from w2v_lightning.__main__ import main
from w2v_lightning.data import plan
from w2v_lightning.data.loader import TimedLoader
from w2v_lightning.runtime.cores import usable_cores
from w2v_lightning.telemetry import throughput as throughput_module
from w2v_lightning.telemetry.gpu import GpuUse
from w2v_lightning.telemetry.measurements import Measurements, Tally, merge_windows
from w2v_lightning.telemetry.run_context import process_age_s
from w2v_lightning.telemetry.step_timer import StepTimer, Times
from w2v_lightning.telemetry.throughput import Throughput

TEXTS = random_texts(12, seed=1)
AUDIO_S = sum(len(spell(text)) for text in TEXTS) / 16_000
SHARES = ("data_wait_share", "host_share", "device_share")


@pytest.fixture(autouse=True)
def no_measurement(monkeypatch):
    """Skip the measurement of the CPU's peak, which takes 0.2 s."""
    monkeypatch.setattr(throughput_module, "matrix_flops_per_s", lambda device, dtype: 1e12)


@pytest.fixture
def corpus(tmp_path):
    write_split(tmp_path / "corpus", "train", TEXTS, "1")
    write_split(tmp_path / "corpus", "dev", random_texts(3, seed=2), "2")
    return str(tmp_path / "corpus")


def fit(tmp_path, corpus, *callbacks, ckpt_path=None):
    torch.manual_seed(0)
    trainer = Trainer(
        max_epochs=2, accelerator="cpu", callbacks=[Throughput(), *callbacks], logger=CSVLogger(tmp_path),
        log_every_n_steps=2, enable_model_summary=False, enable_progress_bar=False, default_root_dir=tmp_path,
    )  # fmt: skip
    data = LibriSpeechDataModule(corpus, ["train"], ["dev"], batch_seconds=3, device_seconds=2, num_workers=0)
    module = Wav2Vec2CTC(None, TINY_CONFIG, freeze_feature_encoder=False)
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
    return trainer


def report(tmp_path):
    path = max(tmp_path.glob("lightning_logs/version_*/throughput.json"))
    return json.loads(path.read_text())


class Interrupt(Callback):
    """Callback that raises after some micro-batches."""

    def __init__(self, after):
        self.left = after

    def on_train_batch_end(self, *_):
        self.left -= 1
        if self.left == 0:
            raise RuntimeError("pulled the plug")


def test_the_file_of_a_run_is_plausible(tmp_path, corpus):
    trainer = fit(tmp_path, corpus)
    result = report(tmp_path)
    assert result["audio_hours"] * 3600 == pytest.approx(2 * AUDIO_S)  # each utterance once per epoch
    assert result["utterances"] == 2 * len(TEXTS)
    assert result["steps"] == trainer.global_step
    assert sum(result[share] for share in SHARES) == pytest.approx(1)
    assert all(0 < result[share] < 1 for share in SHARES)
    assert result["device_share"] > result["data_wait_share"]
    assert 0 <= result["padding_share"] < 0.5
    assert result["audio_s_per_s"] == pytest.approx(2 * AUDIO_S / result["train_seconds"])
    assert result["step_ms"] == pytest.approx(1000 * result["train_seconds"] / result["steps"])
    assert 0 < result["mfu"] < 1
    assert result["gpu_utilisation"] is None
    assert result["energy_wh_per_audio_hour"] is None
    assert result["versions"]["torch"] == torch.__version__
    assert result["world_size"] == 1
    assert result["matrix_flops_per_s"] == 1e12


def test_the_file_has_the_windows_and_what_explains_them(tmp_path, corpus):
    fit(tmp_path, corpus)
    result = report(tmp_path)
    windows = result["windows"]
    assert [window["steps"] for window in windows] == [2, 2, 1, 1, 2, 2]  # logged every two steps; an epoch has five
    for name, whole in (("steps", "steps"), ("utterances", "utterances"), ("seconds", "train_seconds")):
        assert sum(window[name] for window in windows) == pytest.approx(result[whole], rel=1e-4), name
    assert sum(window["audio_s"] for window in windows) == pytest.approx(2 * AUDIO_S)
    assert all(window["total_s"] >= window["device_s"] > 0 for window in windows)
    assert not any(name.startswith("gpu_") for window in windows for name in window)  # there is no GPU
    workload = result["workload"]
    assert (workload["batch_seconds"], workload["device_seconds"]) == (3, 2)
    assert workload["plan_version"] == plan.VERSION
    assert workload["steps_per_epoch"] * 2 == result["steps"]
    assert workload["audio_s_per_epoch"] == pytest.approx(AUDIO_S)
    assert workload["utterances_per_epoch"] == len(TEXTS)
    assert workload["loader_workers"] == 0
    parameters = list(Wav2Vec2CTC(None, TINY_CONFIG, freeze_feature_encoder=False).parameters())
    assert workload["parameters"] == sum(p.numel() for p in parameters)
    assert workload["gradient_bytes"] == sum(4 * p.numel() for p in parameters if p.requires_grad)
    assert workload["gradient_buckets"] >= 1
    computed = result["mfu"] * result["matrix_flops_per_s"] * result["train_seconds"]
    assert result["flops_per_audio_s"] == pytest.approx(computed / (2 * AUDIO_S))
    host = {"hosts": 1, "devices_per_host": 1, "cores": usable_cores(), "threads": torch.get_num_threads()}
    assert result["host"] == host
    assert result["all_reduce"] is None  # there is only one rank
    assert result["startup_s"] > 0
    assert result["validation"]["count"] == 2  # one per epoch; the one before training does not count
    assert result["validation"]["seconds"] > 0


def test_many_windows_become_fewer_and_nothing_is_lost():
    windows = [Measurements(Tally(steps=1, seconds=float(i))) for i in range(9)]
    few = merge_windows(windows, 4)
    assert [window.tally.steps for window in few] == [4, 4, 1]
    assert [window.tally.seconds for window in few] == [0 + 1 + 2 + 3, 4 + 5 + 6 + 7, 8]
    assert merge_windows(windows, 9) == windows


def test_the_age_of_a_process_is_its_own():
    reads, writes = os.pipe()
    if (child := os.fork()) == 0:
        os.write(writes, repr(process_age_s()).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert 0 <= float(os.read(reads, 100)) < 5
    age_s, now_s = process_age_s(), time.perf_counter()
    while time.perf_counter() < now_s + 0.05:
        continue
    assert 0.03 < process_age_s() - age_s < 5


def test_the_log_has_the_window(tmp_path, corpus):
    trainer = fit(tmp_path, corpus)
    logged = trainer.callback_metrics
    assert logged["audio_s_per_s"] > 0
    assert sum(logged[f"throughput/{share}"] for share in SHARES) == pytest.approx(1, abs=1e-6)
    for name in ("utterances_per_s", "step_ms", "mfu"):
        assert logged[f"throughput/{name}"] > 0
    assert "throughput/gpu_utilisation" not in logged
    assert all(logged[name].device.type == "cpu" for name in logged if name.startswith("throughput/"))


class Clock:
    """Clock that only `takes` moves."""

    def __init__(self):
        self.now_s = 0.0

    def perf_counter(self):
        return self.now_s

    def takes(self, seconds):
        self.now_s += seconds


class SlowDataset(torch.utils.data.Dataset):
    def __init__(self, clock):
        self.clock = clock

    def __len__(self):
        return 3

    def __getitem__(self, i):
        self.clock.takes(2)
        return i


def test_only_waiting_for_a_batch_is_counted_as_waiting(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("w2v_lightning.data.loader.time", clock)
    loader = TimedLoader(SlowDataset(clock), batch_size=None)
    for _ in range(2):  # epochs
        for _ in loader:
            clock.takes(5)
    assert loader.waited_s == 2 * 3 * 2


def test_each_micro_batch_has_its_own_waiting(tmp_path, corpus, monkeypatch):
    fetched, waited = [], []

    class Recorder(StepTimer):
        def end(self, waited_s):
            waited.append(waited_s)
            super().end(waited_s)

    class Fetches(Callback):
        def on_train_batch_start(self, *_):
            fetched.append(1)

        on_validation_start = on_train_batch_start  # waiting of the loader does not count in validation

    monkeypatch.setattr(throughput_module, "StepTimer", Recorder)
    monkeypatch.setattr(throughput_module, "_waited_s", lambda trainer: 3.0 * len(fetched))
    fit(tmp_path, corpus, Fetches())
    assert len(waited) > 10
    assert set(waited) == {3.0}
    result = report(tmp_path)  # on the CPU all time between two batches was spent waiting
    assert result["host_share"] == pytest.approx(0, abs=1e-9)
    assert result["data_wait_share"] == pytest.approx(1 - result["device_share"])


def test_time_between_epochs_is_left_out(tmp_path, corpus, monkeypatch):
    clock, micro_batches = Clock(), []

    class Takes(Callback):
        def on_train_batch_start(self, *_):
            micro_batches.append(1)
            clock.takes(1)

        def on_validation_end(self, *_):  # as if a checkpoint was written
            clock.takes(1000)

    monkeypatch.setattr(throughput_module, "perf_counter", clock.perf_counter)
    fit(tmp_path, corpus, Takes())
    assert report(tmp_path)["train_seconds"] == len(micro_batches)


class MadeUpGpu:
    """Simulated sampler of a GPU that draws 360 W."""

    is_running = False

    def start(self):
        self.is_running = True

    def stop(self):
        self.is_running = False

    def take(self):
        return GpuUse(utilisation=0.5, num_utilisation=1, power_s=2.0, energy_j=720.0, most_memory_gib=3.0)


def test_what_the_gpu_says_is_logged_and_summed(tmp_path, corpus, monkeypatch):
    gpu = MadeUpGpu()
    monkeypatch.setattr(throughput_module.GpuSampler, "for_device", lambda device: gpu)
    trainer = fit(tmp_path, corpus)
    result, logged = report(tmp_path), trainer.callback_metrics
    assert not gpu.is_running
    for name, expected in (("gpu_utilisation", 0.5), ("gpu_power_w", 360), ("gpu_memory_gib", 3)):
        assert logged[f"throughput/{name}"] == result[name] == expected
    energy_wh = 360 * result["train_seconds"] / 3600
    assert result["energy_wh_per_audio_hour"] == pytest.approx(energy_wh / result["audio_hours"])


def test_an_interrupted_run_leaves_what_it_measured_and_goes_on_counting(tmp_path, corpus):
    with pytest.raises(RuntimeError, match="pulled the plug"):
        fit(tmp_path, corpus, Interrupt(after=7), SaveEach(tmp_path / "last.ckpt"))
    assert report(tmp_path)["steps"] == 3
    assert 0 < report(tmp_path)["audio_hours"] * 3600 < AUDIO_S
    trainer = fit(tmp_path, corpus, ckpt_path=tmp_path / "last.ckpt")
    result = report(tmp_path)
    assert result["steps"] == trainer.global_step
    assert result["audio_hours"] * 3600 == pytest.approx(2 * AUDIO_S)
    assert result["utterances"] == 2 * len(TEXTS)


@pytest.mark.slow
def test_the_file_has_the_audio_of_all_ranks(tmp_path, corpus):
    config = {
        "model": {"pretrained": None, "config": TINY_CONFIG},
        "data": {"root": corpus, "train_splits": ["train"], "val_splits": ["dev"], "num_workers": 0},
        "trainer": {"max_epochs": 2, "default_root_dir": str(tmp_path), "accelerator": "cpu", "devices": 2},
    }
    config["data"] |= {"batch_seconds": 4, "device_seconds": 2}
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(config))
    processes = forked.start(tmp_path, main, ["fit", "--config", str(path), "--trainer.strategy", "ddp"], ranks=2)
    assert forked.ended(processes, tmp_path) == [0, 0], forked.logs(tmp_path)
    result = report(tmp_path)
    assert result["audio_hours"] * 3600 == pytest.approx(2 * AUDIO_S)
    assert result["utterances"] == 2 * len(TEXTS)
    assert result["world_size"] == 2
    assert result["communication"]["steps"] == result["steps"]


class SaveEach(Callback):
    """Callback that saves a checkpoint after each step."""

    def __init__(self, path):
        self.path = path

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch.is_last_of_step:
            trainer.save_checkpoint(self.path)


def test_a_run_that_fails_before_its_first_step_writes_nothing(tmp_path, corpus):
    class Fails(Callback):
        def on_train_start(self, *_):
            raise RuntimeError("pulled the plug")

    with pytest.raises(RuntimeError, match="pulled the plug"):
        fit(tmp_path, corpus, Fails())
    assert not list(tmp_path.rglob("throughput.json"))


def test_a_file_that_cannot_be_written_does_not_hide_why_the_run_ended(tmp_path, corpus, monkeypatch, caplog):
    def disk_is_full(path):
        raise OSError("disk is full")

    monkeypatch.setattr(throughput_module, "atomic_text_file", disk_is_full)
    with pytest.raises(RuntimeError, match="pulled the plug"):
        fit(tmp_path, corpus, Interrupt(after=5))
    assert "throughput.json could not be written: disk is full" in caplog.text


def test_the_random_numbers_of_training_stay_as_they_are(monkeypatch):
    monkeypatch.setattr(throughput_module, "matrix_flops_per_s", lambda device, dtype: float(torch.rand(())))
    torch.manual_seed(7)
    expected = torch.rand(())
    torch.manual_seed(7)
    throughput_module._matrix_flops_per_s(torch.device("cpu"), "32-true")
    assert torch.rand(()) == expected


@pytest.mark.parametrize(
    ("precision", "expected"),
    [
        ("bf16-mixed", torch.bfloat16),
        ("16-mixed", torch.float16),
        ("32-true", torch.float32),
        ("64-true", torch.float32),
    ],
)
def test_the_best_rate_is_that_of_the_precision(monkeypatch, precision, expected):
    asked = []
    monkeypatch.setattr(throughput_module, "matrix_flops_per_s", lambda device, dtype: asked.append(dtype))
    throughput_module._matrix_flops_per_s(torch.device("cpu"), precision)
    assert asked == [expected]


def test_rates_are_sums_divided_once():
    window = Measurements(
        Tally(steps=4, seconds=2.0, audio_s=90, computed_s=100, utterances=8, flops=6e12), Times(10, 7, 2)
    )
    run = window + Measurements(Tally(steps=4, seconds=8.0, audio_s=10, computed_s=20, utterances=2), Times(10, 3, 0))
    rates = run.rates(peak_flops_per_s=6e12)
    assert rates["audio_s_per_s"] == 10
    assert rates["utterances_per_s"] == 1
    assert rates["step_ms"] == 1250
    assert rates["mfu"] == pytest.approx(0.1)
    assert rates["padding_share"] == pytest.approx(1 - 100 / 120)
    assert [rates[share] for share in SHARES] == pytest.approx([0.1, 0.4, 0.5])
    assert set(Measurements().rates(None).values()) == {None}
