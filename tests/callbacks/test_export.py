"""Export after weights have become NaN: nothing, or an earlier best checkpoint."""

import logging

import numpy as np
import pytest
import tiny
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from transformers import AutoModelForCTC

from w2v_lightning import Wav2Vec2CTC
from w2v_lightning.callbacks.averaging import AverageBest
from w2v_lightning.callbacks.export import ExportBest
from w2v_lightning.errors import InputError


class Diverges(Callback):
    """Callback that sets a weight to NaN in epoch `at`; scores improve until epoch `best`."""

    def __init__(self, at: int, best: int):
        self.at, self.best = at, best

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == self.at:
            with torch.no_grad():
                pl_module.model.lm_head.weight[0, 0] = np.nan

    def on_validation_epoch_end(self, trainer, pl_module):
        pl_module.log("score", float(abs(trainer.current_epoch - self.best)))


@pytest.fixture
def fit(tmp_path):
    """Function that trains for three epochs without validation scores and returns the log folder."""
    corpus = tiny.write_corpus(tmp_path / "corpus")

    def run(diverges, *others, **options):
        callbacks = [diverges, ExportBest(), AverageBest(), *others]
        logger = CSVLogger(tmp_path, version=0)
        settings = {"max_epochs": 3, "limit_val_batches": 1, "callbacks": callbacks, "logger": logger}
        trainer = tiny.trainer(tmp_path, **settings, log_every_n_steps=1, **options)
        module = Wav2Vec2CTC(None, tiny.TINY_CONFIG, freeze_feature_encoder=False)
        trainer.fit(module, datamodule=tiny.data(corpus))

    run.folder = tmp_path / "lightning_logs" / "version_0"
    return run


def best(save_top_k=1):
    return ModelCheckpoint(monitor="score", filename="best-{step}", save_top_k=save_top_k)


@pytest.mark.parametrize("callbacks", [[], [best()]], ids=["the last weights", "the best checkpoint"])
def test_weights_that_are_not_finite_are_not_exported(fit, callbacks):
    options = {} if callbacks else {"enable_checkpointing": False}
    with pytest.raises(
        InputError, match=r"model is not written: weights are NaN or infinite\. Lower model\.learning_rate"
    ):
        fit(Diverges(at=1, best=2), *callbacks, **options)
    assert not (fit.folder / "model").exists()


def test_the_best_checkpoint_from_before_is_exported_and_that_is_said(fit, caplog):
    with caplog.at_level(logging.WARNING, "w2v_lightning"):
        fit(Diverges(at=2, best=1), best(save_top_k=2))
    exported = AutoModelForCTC.from_pretrained(fit.folder / "model")
    assert all(weight.isfinite().all() for weight in exported.parameters())
    assert (
        f"The last weights are NaN or infinite: {fit.folder / 'model'} has the earlier, best checkpoint." in caplog.text
    )


def test_no_average_is_written_of_which_a_part_is_not_finite(fit, caplog):
    with caplog.at_level(logging.WARNING, "w2v_lightning"):
        fit(Diverges(at=2, best=1), best(save_top_k=3))
    assert "No average of the 3 best checkpoints is written: weights are NaN or infinite." in caplog.text
    assert not (fit.folder / "model-average").exists()
