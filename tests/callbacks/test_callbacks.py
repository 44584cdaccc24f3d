"""All callbacks in one short run, as a user sees them."""

import io
import time

import pytest
import torch
from corpus import random_texts, spell, write_split
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from rich.console import Console
from tiny import TINY_CONFIG
from transformers import AutoModelForCTC

from w2v_lightning import LibriSpeechDataModule, Wav2Vec2CTC
from w2v_lightning.callbacks.export import ExportBest
from w2v_lightning.callbacks.progress import RunProgress, metrics_line
from w2v_lightning.callbacks.summary import RunSummary, evenly_spread
from w2v_lightning.evaluation.error_report import Pair
from w2v_lightning.telemetry.throughput import Throughput


class Scripted(Callback):
    """Callback that makes the second of three validations the best one, and records its weights."""

    def __init__(self):
        self.wers = iter([0.9, 0.5, 0.7])
        self.weights = []

    def on_validation_epoch_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            pl_module.log("val_wer", next(self.wers))
            self.weights.append(pl_module.model.lm_head.weight.detach().clone())


class Module(Wav2Vec2CTC):
    def on_validation_epoch_end(self):
        if self.trainer.sanity_checking:
            super().on_validation_epoch_end()


@pytest.fixture
def ran(tmp_path):
    texts = random_texts(12, seed=1), random_texts(8, seed=2)
    write_split(tmp_path / "corpus", "train", texts[0], "1")
    write_split(tmp_path / "corpus", "dev", texts[1], "2")
    output = io.StringIO()
    console = Console(file=output, width=200)
    scripted, throughput, export = Scripted(), Throughput(), ExportBest()
    callbacks = [scripted, throughput, export, RunSummary(console), RunProgress(console)]
    callbacks.append(ModelCheckpoint(monitor="val_wer", filename="best"))
    torch.manual_seed(0)
    trainer = Trainer(
        max_epochs=3, accelerator="cpu", callbacks=callbacks, logger=CSVLogger(tmp_path), log_every_n_steps=2,
        num_sanity_val_steps=-1, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    data = LibriSpeechDataModule(
        str(tmp_path / "corpus"), ["train"], ["dev"], batch_seconds=4, device_seconds=2, num_workers=0
    )
    start = time.perf_counter()
    module = Module(None, TINY_CONFIG, freeze_feature_encoder=False, learning_rate=1e-2)
    trainer.fit(module, datamodule=data)
    audio_s = sum(len(spell(text)) for text in texts[0]) / 16_000
    return {
        "output": output.getvalue(), "scripted": scripted, "throughput": throughput, "export": export,
        "trainer": trainer, "module": module, "audio_s": audio_s, "seconds": time.perf_counter() - start,
    }  # fmt: skip


def test_a_run_is_watched_exported_and_summed_up(ran):
    first, second, third = ran["scripted"].weights
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)
    exported = AutoModelForCTC.from_pretrained(ran["export"].folder)
    assert torch.equal(exported.lm_head.weight, second)  # the best, not the last

    throughput = ran["throughput"]
    assert throughput.audio_seconds == pytest.approx(3 * ran["audio_s"])
    assert 0 < throughput.train_seconds < ran["seconds"]

    output, steps = ran["output"], ran["trainer"].global_step
    assert f"step {steps}/{steps}" in output
    assert "audio-s/s" in output
    assert "50.0 % with the best model" in output
    assert "% before training" in output
    assert f"transcribe --model {ran['export'].folder}" in output
    assert output.count("reference") == output.count("hypothesis") == 5


def test_progress_on_a_terminal_is_one_bar_for_the_whole_run(tmp_path):
    write_split(tmp_path / "corpus", "train", random_texts(12, seed=1), "1")
    write_split(tmp_path / "corpus", "dev", random_texts(4, seed=2), "2")
    output = io.StringIO()
    progress = RunProgress(Console(file=output, force_terminal=True, width=160))
    trainer = Trainer(
        max_epochs=2, accelerator="cpu", callbacks=[progress], logger=False, enable_checkpointing=False,
        enable_model_summary=False, default_root_dir=tmp_path, log_every_n_steps=1,
    )  # fmt: skip
    data = LibriSpeechDataModule(
        str(tmp_path / "corpus"), ["train"], ["dev"], batch_seconds=4, device_seconds=4, num_workers=0
    )
    trainer.fit(Wav2Vec2CTC(None, TINY_CONFIG, freeze_feature_encoder=False), datamodule=data)
    steps = trainer.global_step
    assert f"{steps}/{steps}" in output.getvalue()
    assert "0:00:00 left" in output.getvalue()
    assert "WER" in output.getvalue()


def test_metrics_line_leaves_out_what_is_not_known():
    assert metrics_line({}, None) == ""
    metrics = {"train_loss_per_char": torch.tensor(1.25), "val_wer": torch.tensor(0.456)}
    metrics |= {"val_cer": torch.tensor(0.123), "audio_s_per_s": torch.tensor(8123.4)}
    expected = "loss/char 1.250  WER 45.6 %  CER 12.3 %  8,123 audio-s/s  1:02:03 left"
    assert metrics_line(metrics, 3723.9) == expected


@pytest.mark.parametrize("number", [0, 3, 5, 6, 23])
def test_examples_are_evenly_spread_and_never_twice(number):
    pairs = [Pair(f"{i:03}", "A", "B") for i in range(number)]
    chosen = evenly_spread(pairs[::-1], 5)
    assert len(set(chosen)) == len(chosen) == min(5, number)
    assert chosen == sorted(chosen)
