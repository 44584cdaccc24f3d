"""What a run keeps of its own when it resumes: options of the optimiser, schedule, trained weights."""

import logging

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny import TINY_CONFIG, data, trainer, write_corpus

from w2v_lightning import Wav2Vec2CTC
from w2v_lightning.callbacks.averaging import MovingAverage


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def train(corpus, tmp_path):
    """Train to a step and return the module, the trainer and the checkpoint at its end."""

    def fit(max_steps, ckpt_path=None, callbacks=(), **options):
        torch.manual_seed(0)
        module = Wav2Vec2CTC(None, TINY_CONFIG, freeze_feature_encoder=False, **{"learning_rate": 1e-3, **options})
        keep = ModelCheckpoint(tmp_path, filename=f"{len(list(tmp_path.iterdir()))}-{{step}}", save_top_k=-1)
        run = trainer(tmp_path, max_steps=max_steps, limit_val_batches=0, callbacks=[*callbacks, keep])
        run.fit(module, datamodule=data(corpus), ckpt_path=ckpt_path)
        return module, run, keep.best_model_path

    return fit


def groups_at_start(monkeypatch):
    """Record the optimiser's groups when the first step of a resumed run begins."""
    seen = []
    start = Wav2Vec2CTC.on_train_batch_start

    def record(module, batch, batch_idx):
        if not seen:
            seen.extend(dict(group, params=None) for group in module.trainer.optimizers[0].param_groups)
        return start(module, batch, batch_idx)

    monkeypatch.setattr(Wav2Vec2CTC, "on_train_batch_start", record)
    return seen


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_the_same_options_go_on_without_a_word(train, caplog):
    *_, path = train(2)
    caplog.clear()
    train(2, path)
    assert not warnings(caplog)


def test_changed_options_of_the_optimiser_are_used(train, monkeypatch, caplog):
    *_, path = train(2)
    groups = groups_at_start(monkeypatch)
    train(3, path, learning_rate=1e-2, adam_betas=(0.8, 0.9), adam_eps=1e-7, weight_decay=0.1, final_lr_scale=1.0)
    for group in groups:
        weight_decay = 0.1 if group["name"] == "all/weights" else 0.0
        expected = {"initial_lr": 1e-2, "lr": 1e-2, "betas": (0.8, 0.9), "eps": 1e-7, "weight_decay": weight_decay}
        assert {name: group[name] for name in expected} == expected
    assert any(message.startswith("The learning rate at step 2 is 0.01 instead of") for message in warnings(caplog))


def test_a_later_end_moves_the_schedule_and_says_by_how_much(train, monkeypatch, caplog):
    *_, path = train(3)
    groups = groups_at_start(monkeypatch)
    before = torch.load(path, weights_only=True)["optimizer_states"][0]["param_groups"][0]["lr"]
    train(20, path)
    assert groups[0]["lr"] == 1e-3  # step 3 of 20 is at the peak
    expected = f"The learning rate at step 3 is 0.001 instead of {before:.3g} in the checkpoint"
    assert any(message.startswith(expected) for message in warnings(caplog))


def test_without_its_moving_average_a_run_resumes_from_the_trained_weights(train, monkeypatch, caplog):
    *_, path = train(2, callbacks=[MovingAverage(decay=0.9)])
    saved = torch.load(path, weights_only=True)
    expected, average = (saved[key]["model.lm_head.weight"] for key in ("current_model_state", "state_dict"))
    assert not torch.equal(expected, average)
    seen = []
    start = Wav2Vec2CTC.on_train_start

    def record(module):
        seen.append(module.model.lm_head.weight.detach().clone())
        start(module)

    monkeypatch.setattr(Wav2Vec2CTC, "on_train_start", record)
    train(3, path)
    assert torch.equal(seen[0], expected)
    assert any("resuming from the weights themselves" in message for message in warnings(caplog))


def test_validation_of_a_checkpoint_with_an_average_scores_the_average(train, corpus, tmp_path):
    *_, path = train(2, callbacks=[MovingAverage(decay=0.9)])
    module = Wav2Vec2CTC(None, TINY_CONFIG, freeze_feature_encoder=False)
    trainer(tmp_path).validate(module, datamodule=data(corpus), ckpt_path=path)
    average = torch.load(path, weights_only=True)["state_dict"]["model.lm_head.weight"]
    assert torch.equal(module.model.lm_head.weight, average)
