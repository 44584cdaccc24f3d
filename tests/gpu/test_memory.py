"""Out-of-memory errors of a real device with limited memory:
`W2V_TEST_GPUS=0 pytest -n 0 -m gpu tests/gpu/test_memory.py`."""

import gc
import logging
import time

import pytest
import torch
from corpus import random_texts, write_split
from lightning.pytorch import Callback, Trainer
from tiny import TINY_CONFIG

from w2v_lightning import LibriSpeechDataModule, Wav2Vec2CTC
from w2v_lightning.model.speed import Speed
from w2v_lightning.training import out_of_memory

pytestmark = pytest.mark.gpu

SMALL_CONFIG = TINY_CONFIG | {"conv_dim": [128] * 3, "hidden_size": 192, "intermediate_size": 768}
GIB = 2**30


@pytest.fixture(autouse=True)
def device_memory():
    """Free the memory held by other tests, remove the limit, and yield the total in bytes."""
    assert torch.cuda.is_available(), "run with W2V_TEST_GPUS=0 on a machine with a GPU"
    torch.cuda.init()
    forget()
    yield torch.cuda.mem_get_info()[1]
    torch.cuda.set_per_process_memory_fraction(1.0)
    forget()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    root = tmp_path_factory.mktemp("corpus")
    write_split(root, "train", random_texts(160, seed=1, longest=12), speaker="1")
    return root


def forget():
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


def train(corpus, folder, device_seconds, *, config=SMALL_CONFIG, callbacks=(), **options):
    torch.manual_seed(0)
    plain = dict.fromkeys(("layerdrop", "activation_dropout"), 0.0)
    speed = Speed(compile=False)  # compiling would take longer than everything else
    module = Wav2Vec2CTC(None, config, freeze_feature_encoder=False, learning_rate=1e-3, speed=speed, **plain)
    data = LibriSpeechDataModule(
        str(corpus), ["train"], [], batch_seconds=100, device_seconds=device_seconds, num_workers=0
    )
    quiet = ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing")
    settings = dict.fromkeys(quiet, False) | {"accelerator": "gpu", "devices": 1, "max_epochs": 2}
    settings |= {"limit_val_batches": 0, "log_every_n_steps": 1, "default_root_dir": folder}
    trainer = Trainer(**settings | options, callbacks=list(callbacks))
    out_of_memory.fit(trainer, module, data)
    return trainer, data


def peak_of(corpus, folder, device_seconds):
    """Return the peak of allocated bytes, and the run."""
    forget()
    trainer, data = train(corpus, folder, device_seconds)
    return torch.cuda.max_memory_allocated(), trainer, data


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_learns_calibrated_in_every_precision(corpus, tmp_path, precision):
    trainer, data = train(corpus, tmp_path, "auto", precision=precision)
    assert 0 < data.device_seconds <= 100
    assert trainer.global_step == 2 * data.train_sampler.num_steps


def test_a_run_out_of_memory_ends_as_one_with_smaller_batches(corpus, tmp_path, caplog, device_memory):
    _, expected, _ = peak_of(corpus, tmp_path, 50)
    limit, *_ = peak_of(corpus, tmp_path, 100)
    device_seconds = 100
    while device_seconds == 100:  # with less memory, cuDNN chooses algorithms that need less
        limit *= 0.7
        forget()
        caplog.clear()
        torch.cuda.set_per_process_memory_fraction(limit / device_memory)
        with caplog.at_level(logging.WARNING, "w2v_lightning"):
            trainer, data = train(corpus, tmp_path, 100)
        device_seconds = data.device_seconds
    assert device_seconds in (50, 25, 12.5)  # memory may be fragmented, so that half is not enough
    assert "Out of memory in step" in caplog.text
    assert trainer.global_step == expected.global_step
    loss, expected_loss = (float(run.callback_metrics["train_loss"]) for run in (trainer, expected))
    assert loss == pytest.approx(expected_loss, rel=0.02)
    assert not list(tmp_path.glob("*.ckpt"))


class CalibrationMemory(Callback):
    """Memory that the calibration leaves allocated, before the module itself is moved to the device."""

    def setup(self, trainer, pl_module, stage):
        self.allocated = torch.cuda.memory_allocated()
        self.calibrated_at = time.monotonic()


@pytest.mark.parametrize("config", [SMALL_CONFIG, {}], ids=["small", "base"])
def test_a_calibration_finds_what_fits(corpus, tmp_path, config, caplog, device_memory):
    """The calibration takes less than a minute, and the run stays within the memory. `base` is wav2vec2-base."""
    torch.cuda.set_per_process_memory_fraction((1 if config else 6) * GIB / device_memory)
    calibration = CalibrationMemory()
    started = time.monotonic()
    with caplog.at_level(logging.INFO, "w2v_lightning"):
        _, data = train(corpus, tmp_path, "auto", config=config, callbacks=[calibration], max_steps=5, max_epochs=-1)
        _, again = train(corpus, tmp_path, "auto", config=config, max_steps=1, max_epochs=-1)
    assert calibration.calibrated_at - started < 60
    assert calibration.allocated < 128 * 2**20  # cuBLAS keeps its workspace
    assert data.min_device_seconds <= data.device_seconds <= 100
    assert "Out of memory" not in caplog.text
    assert "found in" in caplog.text
    assert again.device_seconds == data.device_seconds
    assert "cached in" in caplog.text
