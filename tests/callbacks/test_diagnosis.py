"""Diagnosis of training that is stuck on purpose, in each way; and no warnings in a run that learns."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from corpus import random_texts, write_split
from lightning.pytorch import Trainer
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import SingleDeviceStrategy
from tiny import TINY_CONFIG

from w2v_lightning import LibriSpeechDataModule, Wav2Vec2CTC
from w2v_lightning.callbacks.diagnosis import Diagnosis, has_letters, infeasible_ids, plateau_updates
from w2v_lightning.data.batch import Batch
from w2v_lightning.errors import InputError
from w2v_lightning.text.vocabulary import Vocabulary

NO_MASKS = dict.fromkeys(("mask_time_prob", "mask_channel_prob", "layerdrop", "activation_dropout"), 0.0)
HARMLESS = {"learning_rate": 1e-9}  # so small that training does not repair what a test breaks


@pytest.fixture
def corpus(tmp_path):
    write_split(tmp_path / "corpus", "train", random_texts(60, seed=1, letters="ABC", longest=3), speaker="1")
    write_split(tmp_path / "corpus", "dev", random_texts(12, seed=2), speaker="2")
    return tmp_path / "corpus"


class Data(LibriSpeechDataModule):
    """Data module that spoils batches on their way to the model."""

    def __init__(self, root, spoil=None):
        super().__init__(str(root), ["train"], ["dev"], batch_seconds=8, device_seconds=4, num_workers=0)
        self.spoil = spoil

    def on_before_batch_transfer(self, batch, dataloader_idx):
        return self.spoil(batch) if self.spoil and self.trainer.training else batch


def warnings_of_a_run(caplog, corpus, module, spoil=None, plugins=None, **options):
    settings = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    settings |= {"enable_model_summary": False, "max_steps": 12, "log_every_n_steps": 2, "limit_val_batches": 0}
    trainer = Trainer(callbacks=[Diagnosis()], plugins=plugins, **{**settings, **options})
    with caplog.at_level(logging.WARNING, "w2v_lightning"):
        trainer.fit(module, datamodule=Data(corpus, spoil))
    return [record.message for record in caplog.records if record.name == "w2v_lightning.callbacks.diagnosis"], trainer


def tiny(kind=Wav2Vec2CTC, **options):
    torch.manual_seed(0)
    return kind(None, TINY_CONFIG, freeze_feature_encoder=False, **{**NO_MASKS, **HARMLESS, **options})


def only(messages):
    (message,) = messages
    return message


def test_nothing_is_said_of_a_run_that_learns(caplog, corpus):
    """Train from random weights through the plateau of blanks (loss 1.6 per character) to letters."""
    module = tiny(learning_rate=3e-3)
    messages, trainer = warnings_of_a_run(caplog, corpus, module, max_steps=75, gradient_clip_val=1.0)
    assert trainer.callback_metrics["train_loss_per_char"] < 1.0
    assert messages == []


def test_only_blanks_at_the_end_of_a_run(caplog, corpus):
    module = tiny()
    with torch.no_grad():
        module.model.lm_head.bias[module.vocabulary.blank_id] = 100.0
    message = only(warnings_of_a_run(caplog, corpus, module)[0])
    assert "Only blanks are predicted at update 12" in message
    assert "random weights" in message
    assert "until about update 12" in message


def test_blanks_are_not_reported_while_they_are_normal(caplog, corpus, monkeypatch):
    monkeypatch.setattr("w2v_lightning.callbacks.diagnosis.plateau_updates", lambda *_: 13)
    module = tiny()
    with torch.no_grad():
        module.model.lm_head.bias[module.vocabulary.blank_id] = 100.0
    assert warnings_of_a_run(caplog, corpus, module)[0] == []


def test_letters_on_padding_do_not_hide_blanks_on_frames(caplog, corpus):
    module = tiny()
    blank_id = module.vocabulary.blank_id

    def blanks_on_real_frames(head, args, logits_BFV):
        is_real_BF = torch.arange(logits_BFV.shape[1]) < module.num_frames_B[:, None]
        best_BF = torch.where(is_real_BF, blank_id, 7)
        return logits_BFV + 1000.0 * torch.nn.functional.one_hot(best_BF, logits_BFV.shape[2])

    module.model.lm_head.register_forward_hook(blanks_on_real_frames)

    def remember(batch):
        module.num_frames_B = batch.num_frames_B
        return batch

    assert "Only blanks" in only(warnings_of_a_run(caplog, corpus, module, remember)[0])


@pytest.mark.parametrize(
    ("schedule", "from_scratch", "expected"),
    [
        ((80_000, 0.1, 0), False, 8000),  # fairseq's base_100h: until the end of the warm-up
        ((50_000, 0.1, 10_000), False, 12_000),  # the paper: only the head is trained for 10,000 updates
        ((10_000, 0.1, 0), False, 2000),
        ((10_000, 0.1, 0), True, 5000),
        ((300, 0.1, 0), True, 300),  # at most the whole run
        ((float("inf"), 0.1, 0), False, 2000),
    ],
)
def test_until_when_only_blanks_are_normal(schedule, from_scratch, expected):
    assert plateau_updates(*schedule, from_scratch) == expected


@pytest.mark.parametrize("label", ["unknown", "none"])
def test_targets_without_letters(caplog, corpus, label):
    def spoil(batch):
        if label == "none":
            return replace(batch, num_labels_B=torch.zeros_like(batch.num_labels_B))
        spaces = torch.arange(batch.labels_BU.shape[1]) % 5 == 4  # lower-case texts keep their spaces
        return replace(batch, labels_BU=torch.where(spaces, 4, 3).expand_as(batch.labels_BU).contiguous())

    message = only(warnings_of_a_run(caplog, corpus, tiny(), spoil)[0])
    assert "empty or all <unk>" in message
    assert "1-1-00" in message


def test_a_loss_that_is_not_finite_names_the_utterances_where_it_began(caplog, corpus):
    spoilt, batches = [], []

    def spoil(batch):
        batches.append(batch)
        if batch.global_step != 1 or batch.micro_batch != 1 or spoilt:
            return batch
        spoilt.extend(batch.ids)
        return replace(batch, waveforms_BT=torch.full(batch.waveforms_BT.shape, np.nan))

    with pytest.raises(InputError, match=r"^Training is stopped: since update 2 weights are NaN or infinite"):
        warnings_of_a_run(caplog, corpus, tiny(), spoil, log_every_n_steps=10)
    assert batches[-1].num_micro_batches > 1
    message = only([record.message for record in caplog.records if "not finite" in record.message])
    assert "since update 2," in message
    named = [f"1-1-{number:04}" for number in range(60) if f"1-1-{number:04}" in message]
    assert named == sorted(spoilt[:10])


def test_a_loss_that_is_not_finite_ends_no_run_whose_weights_are(caplog, corpus):
    module = tiny(Scaled)
    module.since, module.factor = 1, np.inf
    precision = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))  # skips these updates
    messages, trainer = warnings_of_a_run(caplog, corpus, module, plugins=[precision], max_steps=4)
    assert any("The loss is not finite" in message for message in messages)
    assert trainer.global_step == 4


def test_a_loss_that_another_rank_spoilt_is_for_that_one_to_name(caplog, corpus, monkeypatch):
    def reduce(strategy, tensor, group=None, reduce_op="mean"):
        return torch.zeros_like(tensor) if reduce_op == "min" else tensor  # as if another rank's first loss was bad

    monkeypatch.setattr(SingleDeviceStrategy, "reduce", reduce)

    def spoil(batch):
        is_later = batch.global_step > 0 or batch.micro_batch > 0
        return replace(batch, waveforms_BT=torch.full(batch.waveforms_BT.shape, np.nan)) if is_later else batch

    with pytest.raises(InputError, match="since update 1 weights are NaN or infinite"):  # on all ranks
        warnings_of_a_run(caplog, corpus, tiny(), spoil, log_every_n_steps=3, max_steps=9)
    assert "The loss is not finite" not in caplog.text


class Scaled(Wav2Vec2CTC):
    """Module that multiplies the loss of every update from `since` on."""

    since, factor = 0, 1.0

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss * self.factor if self.trainer.global_step >= self.since else loss


def test_a_gradient_that_vanishes(caplog, corpus):
    module = tiny(Scaled)
    module.since, module.factor = 5, 0.0
    assert "The gradient has vanished at update 6" in only(warnings_of_a_run(caplog, corpus, module)[0])


def test_a_gradient_that_explodes(caplog, corpus):
    module = tiny(Scaled)
    module.since, module.factor = 15, 1e4
    messages, _ = warnings_of_a_run(caplog, corpus, module, log_every_n_steps=1, max_steps=25)
    assert "The gradient has exploded" in only(messages)
    assert "at update 17" in only(messages)  # not at the first outlier


def test_a_learning_rate_that_stays_zero(caplog, corpus):
    assert "still zero at update 2" in only(warnings_of_a_run(caplog, corpus, tiny(learning_rate=0.0))[0])


def test_transcripts_that_do_not_fit_into_their_audio(caplog, corpus):
    def spoil(batch):
        return replace(batch, labels_BU=torch.full((len(batch), 400), 5), num_labels_B=torch.full((len(batch),), 400))

    messages, _ = warnings_of_a_run(caplog, corpus, tiny(), spoil)
    assert any("more labels than frames" in message for message in messages)
    assert any("The gradient has vanished at update 1 " in message for message in messages)
    assert len(messages) == 2


def test_a_grad_scaler_that_skips_most_steps(caplog, corpus):
    module = tiny(Scaled)
    module.factor = 1e36
    scaler = torch.amp.GradScaler("cpu")
    precision = MixedPrecision("16-mixed", "cpu", scaler)
    messages, _ = warnings_of_a_run(caplog, corpus, module, plugins=[precision], max_steps=20)
    assert "The loss scale of 16-mixed has fallen to" in only(messages)


def test_a_model_that_is_all_frozen(caplog, corpus):
    module = tiny()
    module.model.requires_grad_(False)
    with pytest.raises((RuntimeError, ValueError)):  # torch's error, which does not explain the cause
        warnings_of_a_run(caplog, corpus, module)
    assert "No parameter is trained" in caplog.text


def batch_of(labels, num_frames):
    width = max(map(len, labels))
    return Batch(
        waveforms_BT=torch.zeros(len(labels), 10),
        num_samples_B=torch.tensor([10] * len(labels)),
        num_frames_B=torch.tensor(num_frames),
        labels_BU=torch.tensor([row + [0] * (width - len(row)) for row in labels]),
        num_labels_B=torch.tensor([len(row) for row in labels]),
        ids=[f"u{i}" for i in range(len(labels))],
        texts=[""] * len(labels),
    )


def test_infeasible_counts_a_frame_between_equal_neighbours_and_no_padding():
    batch = batch_of([[5, 5, 6], [5, 6, 5], [5, 5, 6], [7]], [3, 3, 4, 0])
    assert infeasible_ids(batch) == ["u0", "u3"]
    assert infeasible_ids(batch_of([[], []], [0, 1])) == []


def test_letters_are_neither_unknown_nor_spaces_nor_padding():
    vocabulary = Vocabulary()
    assert not has_letters(batch_of([[3, 4, 3], [3]], [9, 9]), vocabulary)
    assert not has_letters(batch_of([[], []], [9, 9]), vocabulary)
    assert has_letters(batch_of([[3, 4, 3], [5]], [9, 9]), vocabulary)
