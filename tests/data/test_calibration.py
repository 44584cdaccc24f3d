"""device_seconds: auto, on simulated devices; tests/gpu/test_memory.py uses a real one."""

import json
import logging
import math
from types import SimpleNamespace

import forked
import numpy as np
import pytest
import torch
from corpus import random_texts, write_split
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import LightningModule, Trainer
from tiny import TINY_CONFIG

from w2v_lightning import LibriSpeechDataModule, Wav2Vec2CTC
from w2v_lightning.data import calibration
from w2v_lightning.data.batch import SAMPLE_RATE
from w2v_lightning.data.calibration import PRECISION, largest_that_fits, smallest_as_fast
from w2v_lightning.data.trial import NoiseDataset, Trial, is_out_of_memory
from w2v_lightning.errors import InputError

TOTAL_GIB, LIMIT_GIB = 16.0, 14.4


class Device:
    """Simulated memory: `fixed_gib`, and a part per padded second that rises with duration; fails above TOTAL_GIB."""

    def __init__(self, per_s_gib, per_s_and_duration_gib=0.0, fixed_gib=1.5, luck=None):
        self.per_s_gib, self.per_s_and_duration_gib, self.fixed_gib = per_s_gib, per_s_and_duration_gib, fixed_gib
        self.luck = luck
        self.held = []

    def needs_gib(self, seconds, duration_s):
        return self.fixed_gib + seconds * (self.per_s_gib + duration_s * self.per_s_and_duration_gib)

    def peak_gib(self, seconds, duration_s):
        peak_gib = self.needs_gib(seconds, duration_s)
        if self.luck is not None:
            peak_gib += self.luck.exponential(0.5)  # fragmentation by earlier trials
        if peak_gib > TOTAL_GIB or (self.luck is not None and self.luck.random() < 0.1):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        self.held.append((seconds, duration_s))
        return peak_gib


def searched(device, durations_s=(24.5, 1.4), most_s=1600.0, **options):
    return largest_that_fits(device.peak_gib, LIMIT_GIB, durations_s=durations_s, most_s=most_s, **options)


@given(
    per_s_gib=st.floats(1e-4, 0.3),
    per_s_and_duration_gib=st.sampled_from([0.0, 1e-4, 3e-3]),
    longest_s=st.floats(2, 35),
    most_s=st.floats(1, 5000),
)
def test_finds_what_fits_within_the_precision_of_the_search(per_s_gib, per_s_and_duration_gib, longest_s, most_s):
    device = Device(per_s_gib, per_s_and_duration_gib)
    truth_s = (LIMIT_GIB - device.fixed_gib) / (per_s_gib + longest_s * per_s_and_duration_gib)
    seconds = searched(device, (longest_s, 1.0), most_s)
    if truth_s < longest_s:
        assert seconds == 0
    elif seconds < max(longest_s, most_s):
        assert truth_s / PRECISION <= seconds * 1.0001
        assert seconds <= truth_s * 1.0001
    else:
        assert seconds == max(longest_s, most_s) <= truth_s * 1.0001
    assert len(device.held) <= 40


@given(seed=st.integers(0, 10_000), per_s_gib=st.floats(1e-3, 0.3))
def test_what_is_returned_was_tried_and_fitted_however_memory_behaves(seed, per_s_gib):
    device = Device(per_s_gib, luck=np.random.default_rng(seed))
    seconds = searched(device)
    assert 0 <= seconds <= 1600
    if seconds:
        assert {(seconds, 24.5), (seconds, 1.4)} <= set(device.held)
        assert device.needs_gib(seconds, 24.5) <= LIMIT_GIB


def test_it_takes_the_upper_limit_without_a_search_where_that_fits():
    device = Device(per_s_gib=0.001)
    assert searched(device) == 1600
    assert len(device.held) == 4


def test_it_stops_when_time_is_up_with_what_fits():
    device = Device(per_s_gib=0.05)
    seconds = searched(device, is_time_left=iter([True, False]).__next__)
    assert (seconds, 24.5) in device.held
    assert seconds == pytest.approx(math.sqrt(24.5 * 1600))


def test_an_error_that_is_no_lack_of_memory_is_not_one():
    def broken(seconds, duration_s):
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        largest_that_fits(broken, 1.0, durations_s=[1.0], most_s=2.0)
    assert is_out_of_memory(RuntimeError("cuFFT error: CUFFT_ALLOC_FAILED"))
    assert is_out_of_memory(RuntimeError("CUDA error: out of memory"))


def test_a_smaller_batch_is_taken_where_it_is_as_fast():
    assert smallest_as_fast({800: 7492, 400: 7300, 200: 6000}.get, [800, 400, 200]) == 400
    assert smallest_as_fast({1600: 6953, 800: 7492}.get, [1600, 800]) == 800
    assert smallest_as_fast({1600: 0.0, 800: 100.0}.get, [1600, 800]) == 800


# ---- trial steps ------------------------------------------------------------------------------------------------


@pytest.fixture
def corpus(tmp_path):
    write_split(tmp_path / "corpus", "train", random_texts(24, seed=1), speaker="1")
    return tmp_path / "corpus"


def tiny_module(**options):
    torch.manual_seed(0)
    return Wav2Vec2CTC(None, TINY_CONFIG, freeze_feature_encoder=False, mask_time_length=3, **options)


def data_of(corpus, **options):
    settings = {"batch_seconds": 9, "device_seconds": "auto", "num_workers": 0}
    return LibriSpeechDataModule(str(corpus), ["train"], [], **settings | options)


def trainer_of(tmp_path, **options):
    quiet = ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing")
    settings = dict.fromkeys(quiet, False) | {"accelerator": "cpu", "max_steps": 2, "limit_val_batches": 0}
    return Trainer(**settings | {"default_root_dir": tmp_path} | options)


class Tried(LibriSpeechDataModule):
    """Data module that runs trial steps in its setup."""

    def setup(self, stage=None):
        super().setup(stage)
        before = torch.get_rng_state()
        noise = NoiseDataset(self.train_dataset.manifest, self.train_dataset.spec, 1.5)
        self.trial = Trial(self.trainer, noise)
        self.batch = noise.batch(4.0, noise.longest_s)
        with calibration.isolate_rng():
            self.trial.step(self.batch)
        assert torch.equal(torch.get_rng_state(), before)


def test_a_trial_trains_a_copy_and_leaves_the_module_alone(corpus, tmp_path):
    module = tiny_module(freeze_updates=1000, layerdrop=1.0)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    sums = module._step_sums.clone()
    data = Tried(str(corpus), ["train"], [], batch_seconds=9, device_seconds=9, num_workers=0)
    trainer = trainer_of(tmp_path, max_steps=0)
    trainer.fit(module, datamodule=data)
    assert {p.dtype for p in data.trial.module.parameters()} == {torch.float32}
    gradients = [p.grad for name, p in data.trial.module.named_parameters() if "layers" in name]
    assert all((gradient != 0).any() for gradient in gradients if gradient.ndim > 1)  # no layer is frozen or dropped
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name])
        assert torch.equal(data.trial.module.state_dict()[name], before[name])
    assert all(parameter.grad is None for parameter in module.parameters())
    assert torch.equal(module._step_sums, sums)
    assert (module.hparams.freeze_updates, module.model.config.layerdrop) == (1000, 1.0)
    assert not trainer.callback_metrics


def test_a_trial_batch_is_as_large_and_as_long_as_it_says(corpus, tmp_path):
    data = Tried(str(corpus), ["train"], [], batch_seconds=9, device_seconds=9, num_workers=0)
    trainer_of(tmp_path, max_steps=0).fit(tiny_module(), datamodule=data)
    longest_s = data.train_dataset.manifest.durations_s_N.max() * 1.5
    batch = data.batch
    assert batch.num_samples_B.unique().tolist() == [int(longest_s * SAMPLE_RATE)]
    assert len(batch) == int(4.0 / longest_s)
    assert batch.waveforms_BT.dtype == torch.int16
    assert batch.time_mask_BF.any()
    assert batch.num_labels_B.min() > 5
    assert not batch.is_last_of_step


class FakeTrial:
    def __init__(self, trainer, dataset):
        FakeTrial.made += 1

    def peak_gib(self, seconds, duration_s):
        if seconds > 4:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return seconds

    def audio_s_per_s(self, seconds):
        return seconds


@pytest.fixture
def cuda(monkeypatch):
    """Calibrate as on a CUDA device, with simulated trials."""
    FakeTrial.made = 0
    monkeypatch.setattr(calibration, "Trial", FakeTrial)
    monkeypatch.setattr(calibration, "_by_main_memory", calibration._by_trials)
    monkeypatch.setattr(calibration, "_limit_gib", lambda _: 3.0)
    monkeypatch.setattr(calibration, "_reset_memory", lambda _: None)
    facts = {"device": "NVIDIA H200", "memory_gib": 139.8}
    monkeypatch.setattr(calibration, "_facts", lambda *_: facts)
    return SimpleNamespace(facts=facts)


def calibrated(corpus, tmp_path):
    data = data_of(corpus)
    trainer_of(tmp_path).fit(tiny_module(), datamodule=data)
    return data


def test_what_was_found_is_kept_by_what_it_hangs_on(corpus, tmp_path, cuda, caplog):
    with caplog.at_level(logging.INFO, "w2v_lightning"):
        seconds = calibrated(corpus, tmp_path).device_seconds
        assert 3 / PRECISION <= seconds <= 3
        assert calibrated(corpus, tmp_path).device_seconds == seconds
    assert FakeTrial.made == 1
    assert [r.message for r in caplog.records if "cached in" in r.message]
    (path,) = (tmp_path / "cache" / "calibration").iterdir()
    kept = json.loads(path.read_text())
    assert kept == {"device_seconds": seconds, **cuda.facts}
    cuda.facts["device"] = "Tesla T4"
    calibrated(corpus, tmp_path)
    assert FakeTrial.made == 2


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"device_seconds": null}', '{"device_seconds": -1}', "\x00\xff"])
def test_a_damaged_file_is_ignored(corpus, tmp_path, cuda, damage):
    seconds = calibrated(corpus, tmp_path).device_seconds
    (path,) = (tmp_path / "cache" / "calibration").iterdir()
    path.write_text(damage)
    assert calibrated(corpus, tmp_path).device_seconds == seconds
    assert FakeTrial.made == 2
    assert json.loads(path.read_text())["device_seconds"] == seconds


def test_where_nothing_fits_it_says_what_to_do(corpus, tmp_path, cuda, monkeypatch):
    monkeypatch.setattr(calibration, "_limit_gib", lambda _: 0.5)
    with pytest.raises(InputError, match=r"device_seconds=auto: not even the longest utterance.*data\.max_seconds"):
        calibrated(corpus, tmp_path)
    assert not (tmp_path / "cache" / "calibration").exists()


def test_facts_tell_apart_what_changes_memory(corpus, tmp_path, monkeypatch):
    data = data_of(corpus)
    monkeypatch.setattr(calibration, "versions", dict)
    monkeypatch.setattr(calibration, "memory_fraction", lambda _: 1.0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=2**34))
    digests = set()
    for options in ({}, {"gradient_checkpointing": True}, {"config": TINY_CONFIG | {"hidden_size": 96}}):
        module = tiny_module(**options) if "config" not in options else Wav2Vec2CTC(None, options["config"])
        trainer = trainer_of(tmp_path, max_steps=0)
        trainer.fit(module, datamodule=data)
        noise = NoiseDataset(data.train_dataset.manifest, data.train_dataset.spec, 1.0)
        digests.add(calibration._digest(calibration._facts(trainer, noise, 9.0)))
    assert len(digests) == 3
    assert calibration._digest(calibration._facts(trainer, noise, 8.0)) not in digests


# ---- without a GPU ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("memory_gib", "batch_seconds", "expected"), [(64, 9, 9), (64, 500, 200), (8, 500, 100)])
def test_on_the_cpu_it_follows_from_the_main_memory(
    corpus, tmp_path, monkeypatch, memory_gib, batch_seconds, expected, caplog
):
    monkeypatch.setattr(calibration, "main_memory_gib", lambda: memory_gib)
    data = data_of(corpus, batch_seconds=batch_seconds)
    with caplog.at_level(logging.INFO, "w2v_lightning"):
        trainer_of(tmp_path).fit(tiny_module(), datamodule=data)
    assert data.device_seconds == expected
    assert f"{expected} s" in next(r.message for r in caplog.records if "main memory" in r.message)


def test_the_longest_utterance_always_fits_on_the_cpu(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(calibration, "main_memory_gib", lambda: 0.001)
    data = data_of(corpus)
    trainer_of(tmp_path).fit(tiny_module(), datamodule=data)
    assert data.device_seconds == pytest.approx(data.train_dataset.manifest.durations_s_N.max(), abs=0.011)


def test_main_memory_is_that_of_this_machine():
    assert 0.1 < calibration.main_memory_gib() < 100_000


def test_another_word_is_refused():
    with pytest.raises(InputError, match=r"data\.device_seconds must be a positive number of seconds, found much"):
        LibriSpeechDataModule("corpus", device_seconds="much")


class OneWeight(LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch, _):
        return self.weight * 1

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def train_on_unequal_devices(corpus, folder):
    data = LibriSpeechDataModule(str(corpus), ["train"], [], batch_seconds=9, device_seconds="auto", num_workers=0)
    trainer = Trainer(
        max_steps=2, accelerator="cpu", devices=2, strategy="ddp", logger=False, limit_val_batches=0,
        default_root_dir=folder, enable_progress_bar=False, enable_checkpointing=False,
    )  # fmt: skip
    calibration.main_memory_gib = lambda: 0.9 / (1 + trainer.global_rank)
    trainer.fit(OneWeight(), datamodule=data)
    (folder / f"found{trainer.global_rank}").write_text(f"{data.device_seconds} {trainer.accumulate_grad_batches}")


@pytest.mark.slow
def test_all_processes_take_the_least(corpus, tmp_path):
    processes = forked.start(tmp_path, train_on_unequal_devices, corpus, tmp_path, ranks=2)
    assert forked.ended(processes, tmp_path) == [0, 0], forked.logs(tmp_path)
    results = [(tmp_path / f"found{rank}").read_text().split() for rank in range(2)]
    assert results[0] == results[1]
    assert float(results[0][0]) == pytest.approx(200 * 0.9 / 2 / 2 / 16)
