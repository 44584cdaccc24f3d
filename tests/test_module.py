import os
import pickle

import pytest
import torch
from corpus import random_texts, write_split
from lightning.pytorch.loggers import CSVLogger
from tiny import TINY_CONFIG, data, trainer, write_corpus

from w2v_lightning import Wav2Vec2CTC
from w2v_lightning.data.samplers import Slot
from w2v_lightning.errors import InputError
from w2v_lightning.model.ctc import ctc_loss

DETERMINISTIC = dict.fromkeys(("mask_time_prob", "mask_channel_prob", "layerdrop", "activation_dropout"), 0.0)


def tiny_module(kind=Wav2Vec2CTC, **options):
    torch.manual_seed(0)
    return kind(None, TINY_CONFIG, freeze_feature_encoder=False, **{**DETERMINISTIC, **options})


@pytest.fixture
def corpus(tmp_path):
    return write_corpus(tmp_path / "corpus")


class Kept(Wav2Vec2CTC):
    """Module that stores the gradients of its last step."""

    def on_before_optimizer_step(self, optimizer):
        self.gradients = {name: p.grad.clone() for name, p in self.named_parameters() if p.grad is not None}


def check_first_step(corpus, tmp_path, *, loss_average="utterance", **options):
    """Compare the gradient of one step with plain torch on single utterances in double precision; return the slots."""
    module = tiny_module(Kept, loss_average=loss_average).double()
    datamodule = data(corpus, **options)
    run = trainer(tmp_path, max_steps=1, enable_checkpointing=False, limit_val_batches=0)
    run.fit(module, datamodule=datamodule)

    reference = tiny_module().double()
    slots = [slot for slot in datamodule.train_sampler if slot.global_step == 0]
    assert len(slots) == run.accumulate_grad_batches
    losses, num_labels = [], 0
    for position in (position for slot in slots if not slot.is_filler for position in slot.positions):
        batch = datamodule.train_dataset[Slot([position])]  # one at a time: no padding, no batch
        losses.append(ctc_loss(reference(batch), batch.num_frames_B, batch.labels_BU, batch.num_labels_B)[0])
        num_labels += int(batch.num_labels_B[0])
    (sum(losses) / (num_labels if loss_average == "label" else len(losses))).backward()
    whole = torch.cat([parameter.grad.flatten() for parameter in reference.parameters() if parameter.grad is not None])
    cut = torch.cat([gradient.flatten() for gradient in module.gradients.values()])
    assert (cut - whole).norm() <= 1e-6 * whole.norm()
    return slots


@pytest.mark.parametrize("loss_average", ["utterance", "label"])
@pytest.mark.parametrize(("device_seconds", "at_least"), [(20, 1), (7, 3), (4, 5)])
def test_a_step_is_the_gradient_of_the_mean_however_it_is_cut(corpus, tmp_path, device_seconds, at_least, loss_average):
    slots = check_first_step(corpus, tmp_path, device_seconds=device_seconds, loss_average=loss_average)
    assert len(slots) >= at_least


def test_a_filler_does_not_count(tmp_path):
    """Steps of short utterances need 4 micro-batches; a step of 3 long ones is filled with empty ones."""
    write_split(tmp_path / "corpus", "train", ["ABC DEF"] * 32 + ["ABC DEF " * 3 + "ABCD"] * 9)
    write_split(tmp_path / "corpus", "dev", ["A"], speaker="2")
    slots = check_first_step(tmp_path / "corpus", tmp_path, batch_seconds=9.2, device_seconds=2.3, seed=2)
    assert [slot.is_filler for slot in slots] == [True, False, False, False]


def test_training_log_is_of_the_whole_step(corpus, tmp_path):
    logs = {}
    for device_seconds in (20, 5):
        run = trainer(
            tmp_path,
            max_epochs=1,
            log_every_n_steps=1,
            limit_val_batches=0,
            logger=CSVLogger(tmp_path, name=f"d{device_seconds}"),
        )
        run.fit(tiny_module(), datamodule=data(corpus, device_seconds=device_seconds))
        logs[device_seconds] = run.callback_metrics
    for name in ("train_loss", "train_loss_per_char"):
        torch.testing.assert_close(logs[20][name], logs[5][name], rtol=1e-3, atol=1e-3)
    assert 0 < logs[20]["train_loss_per_char"] < logs[20]["train_loss"]


def test_validation_scores_each_split_and_all_together(corpus, tmp_path):
    module = tiny_module()
    rows = trainer(tmp_path).validate(module, datamodule=data(corpus, val_splits=["dev", "dev2"]), verbose=False)
    scores = {name: value for row in rows for name, value in row.items()}
    assert set(scores) == {
        *("val_wer", "val_cer", "val_loss", "val_wer/dev", "val_cer/dev", "val_wer/dev2", "val_cer/dev2"),
    }
    assert len(module.pairs) == 11
    words = {
        split: sum(len(text.split()) for text in random_texts(n, seed))
        for split, n, seed in [("dev", 6, 2), ("dev2", 5, 3)]
    }
    pooled = sum(scores[f"val_wer/{split}"] * n for split, n in words.items()) / sum(words.values())
    assert scores["val_wer"] == pytest.approx(pooled, rel=1e-6)


def test_validation_does_not_depend_on_how_it_is_batched(corpus, tmp_path):
    module = tiny_module()
    runs = [
        trainer(tmp_path).validate(module, datamodule=data(corpus, device_seconds=seconds, **workers), verbose=False)
        for seconds, workers in ((4, {}), (60, {"num_workers": 2}))
    ]
    assert runs[0][0]["val_wer"] == runs[1][0]["val_wer"]
    assert runs[0][0]["val_loss"] == pytest.approx(runs[1][0]["val_loss"], rel=1e-4)


def test_frozen_feature_encoder_stays_as_it_was_and_the_rest_learns(corpus, tmp_path):
    torch.manual_seed(0)
    module = Wav2Vec2CTC(None, TINY_CONFIG, freeze_feature_encoder=True, learning_rate=1e-2, warmup=0.0)
    before = {name: parameter.detach().clone() for name, parameter in module.model.named_parameters()}
    run = trainer(tmp_path, max_steps=2, enable_checkpointing=False, limit_val_batches=0)
    run.fit(module, datamodule=data(corpus, batch_seconds=10))
    changed = {name for name, p in module.model.named_parameters() if not torch.equal(p, before[name])}
    assert not [name for name in changed if "feature_extractor" in name]
    assert "lm_head.weight" in changed
    assert "wav2vec2.masked_spec_embed" in changed  # masks arrive and are used
    assert [name for name in changed if "encoder.layers.0" in name]


def test_without_masks_no_parameter_waits_for_a_gradient(corpus, tmp_path):
    module = tiny_module(mask_channel_prob=0.5)  # transformers then creates the mask embedding
    trainer(tmp_path, max_steps=1, enable_checkpointing=False, limit_val_batches=0).fit(module, datamodule=data(corpus))
    assert not [name for name, p in module.named_parameters() if p.requires_grad and p.grad is None]


def test_the_schedule_counts_optimiser_updates_not_micro_batches(corpus, tmp_path):
    module = tiny_module(learning_rate=1.0, warmup=0.5, hold=0.5)
    seen = []
    module.on_before_optimizer_step = lambda optimizer: seen.append(optimizer.param_groups[0]["lr"])
    run = trainer(tmp_path, max_steps=4, enable_checkpointing=False, limit_val_batches=0)
    run.fit(module, datamodule=data(corpus, batch_seconds=20, device_seconds=5))
    assert run.accumulate_grad_batches > 1
    assert seen == pytest.approx([0.01, 0.505, 1.0, 1.0])


def test_a_run_without_an_end_is_refused(corpus, tmp_path):
    run = trainer(tmp_path, max_steps=-1, max_epochs=-1)
    with pytest.raises(InputError, match=r"trainer\.max_steps"):
        run.fit(tiny_module(), datamodule=data(corpus))


def test_checkpoint_loads_without_running_code_and_brings_its_hyper_parameters(corpus, tmp_path):
    module = tiny_module(learning_rate=2e-3)
    run = trainer(tmp_path, max_steps=1, limit_val_batches=0)
    run.fit(module, datamodule=data(corpus))
    path = run.checkpoint_callback.best_model_path
    torch.load(path, weights_only=True)
    loaded = Wav2Vec2CTC.load_from_checkpoint(path, map_location="cpu", weights_only=True)
    assert loaded.hparams.learning_rate == 2e-3
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), loaded.parameters(), strict=True))


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def test_a_checkpoint_that_carries_code_is_refused_and_does_not_run_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Bomb(), "hyper_parameters": {}}, tmp_path / "bomb.ckpt")
    with pytest.raises(pickle.UnpicklingError):
        Wav2Vec2CTC.load_from_checkpoint(tmp_path / "bomb.ckpt")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.skipif(torch.__version__ < "2.6", reason="a plain Trainer loads with torch's default, which runs code")
def test_a_trainer_does_not_run_a_checkpoints_code(corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Bomb(), "hyper_parameters": {}}, tmp_path / "bomb.ckpt")
    for run in ("validate", "fit"):
        with pytest.raises(pickle.UnpicklingError):
            getattr(trainer(tmp_path), run)(tiny_module(), datamodule=data(corpus), ckpt_path=tmp_path / "bomb.ckpt")
    assert not (tmp_path / "exploded").exists()


def test_a_mask_probability_in_the_papers_unit_is_said_once(caplog):
    tiny_module(mask_time_prob=0.065, mask_channel_prob=0.5)
    (message,) = (record.message for record in caplog.records if "start probability" in record.message)
    assert "model.mask_time_prob=0.065" in message
    caplog.clear()
    tiny_module(mask_time_prob=0.65, mask_channel_prob=0.5)
    assert "start probability" not in caplog.text


def test_models_that_hear_the_padding_get_no_more_of_it_than_needed():
    assert Wav2Vec2CTC(None, TINY_CONFIG).input_spec.coarse_lengths
    assert not Wav2Vec2CTC(None, TINY_CONFIG, hf_compat=True).input_spec.coarse_lengths
