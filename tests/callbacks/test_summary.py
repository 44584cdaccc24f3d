"""The final summary reports the validation of the exported model."""

import io
import re

import pytest
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from rich.console import Console
from tiny import TINY_CONFIG, data, trainer, write_corpus

from w2v_lightning import Wav2Vec2CTC
from w2v_lightning.callbacks.export import ExportBest
from w2v_lightning.callbacks.summary import RunSummary


class Scripted(Callback):
    """Callback that logs WER and another score in each validation (one per step); None interrupts the run."""

    def __init__(self, **wers):
        self.wers = wers

    def on_validation_epoch_end(self, trainer, pl_module):
        wer = self.wers[f"step{trainer.global_step}"]
        if wer is None:
            raise KeyError("power cut")
        pl_module.log("val_wer", wer)
        pl_module.log("words", 1 - wer)


class Module(Wav2Vec2CTC):
    def on_validation_epoch_end(self): ...


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("summary") / "corpus")


@pytest.fixture
def summary(corpus, tmp_path):
    """Function that trains for three epochs of one step and returns what is printed."""

    def printed(*checkpoints, ckpt_path=None, wers=(0.9, 0.5, 0.7), before=0.99, export=True, **options):
        output = io.StringIO()
        steps = {f"step{number}": wer for number, wer in enumerate((before, *wers))}
        callbacks = [Scripted(**steps), *([ExportBest()] if export else [])]
        callbacks += [RunSummary(Console(file=output, width=200)), *checkpoints]
        options = {"max_epochs": 3, "num_sanity_val_steps": -1, "enable_checkpointing": bool(checkpoints)} | options
        run = trainer(tmp_path, callbacks=callbacks, **options)
        datamodule = data(corpus, batch_seconds=100, device_seconds=100)
        run.fit(Module(None, TINY_CONFIG), datamodule=datamodule, ckpt_path=ckpt_path)
        return output.getvalue()

    return printed


def best(tmp_path, **options):
    options = {"monitor": "val_wer", "filename": "best", "enable_version_counter": False} | options
    return ModelCheckpoint(tmp_path / "kept", **options)


def test_the_best_validation_counts_not_the_last(summary, tmp_path):
    out = summary(best(tmp_path))
    assert "Validation WER: 99.0 % before training, 50.0 % with the best model\n" in out
    assert "Best model: val_wer 50.0 %, after step 2\n" in out


def test_where_more_is_better(summary, tmp_path):
    assert "50.0 % with the best model" in summary(best(tmp_path, monitor="words", mode="max"))


def test_a_resumed_run_knows_the_best_before_it_was_cut_off(summary, tmp_path):
    with pytest.raises(KeyError, match="power cut"):
        summary(best(tmp_path), wers=(0.4, None))
    out = summary(best(tmp_path), wers=(0.4, 0.8, 0.6), ckpt_path=tmp_path / "kept" / "best.ckpt")
    assert "Validation WER: 99.0 % before training, 40.0 % with the best model\n" in out
    assert "Best model: val_wer 40.0 %, after step 1\n" in out
    assert "hypothesis" not in out  # the texts of the best model were not kept


def test_validations_that_no_checkpoint_was_made_after_do_not_count(summary, tmp_path):
    out = summary(best(tmp_path, every_n_epochs=2), wers=(0.1, 0.5, 0.2))
    assert "50.0 % with the best model" in out


def test_without_checkpoints_it_is_the_last_weights(summary):
    out = summary()
    assert "Validation WER: 99.0 % before training, 70.0 % with the last weights\n" in out
    assert "best" not in out


def test_the_last_weights_may_never_have_been_scored(summary):
    out = summary(max_epochs=-1, max_steps=3, check_val_every_n_epoch=2)
    assert "Validation WER: 99.0 % before training, 50.0 % at the last validation, after step 2\n" in out


def test_a_best_checkpoint_that_cannot_be_read_is_not_what_it_tells_of(summary, tmp_path, monkeypatch):
    monkeypatch.setattr(ModelCheckpoint, "_save_checkpoint", lambda *_: None)
    assert "70.0 % with the last weights" in summary(best(tmp_path))


def test_a_choice_by_a_score_of_training_is_named_with_the_last_validation(summary, tmp_path):
    every_step = best(tmp_path, monitor="train_loss", every_n_train_steps=1, save_on_train_epoch_end=True)
    out = summary(every_step, max_epochs=-1, max_steps=3, check_val_every_n_epoch=4, log_every_n_steps=1)
    assert re.search(r"Best model: train_loss [\d.]+, after", out)  # not a rate, so without %
    assert "with the" not in out


def test_a_run_that_ends_before_its_first_validation_says_so(summary):
    text = "Not validated: trainer.max_steps=1 ended the run before the first validation."
    assert text in summary(max_steps=1, check_val_every_n_epoch=2, export=False)
    assert text not in summary(max_steps=1, export=False)
    assert text not in summary(max_steps=1, check_val_every_n_epoch=2, limit_val_batches=0, export=False)
