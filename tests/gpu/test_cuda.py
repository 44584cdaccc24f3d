"""Losses and gradients on a CUDA device: `W2V_TEST_GPUS=0 pytest -n 0 -m gpu`."""

import math

import pytest
import torch
from corpus import random_texts, write_split
from lightning.pytorch import Trainer
from lightning.pytorch.plugins import MixedPrecision
from tiny import TINY_CONFIG

from w2v_lightning import LibriSpeechDataModule, Wav2Vec2CTC, cli
from w2v_lightning.model.ctc import ctc_loss

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def needs_cuda():
    assert torch.cuda.is_available(), "run with W2V_TEST_GPUS=0 on a machine with a GPU"


def test_ctc_loss_and_gradient_equal_those_of_the_cpu():
    torch.manual_seed(0)
    logits = torch.randn(4, 300, 32)
    labels = torch.randint(1, 32, (4, 260))
    # The last utterance cannot be aligned.
    num_frames, num_labels = torch.tensor([300, 250, 200, 10]), torch.tensor([260, 100, 0, 50])
    results = []
    for device in ("cpu", "cuda"):
        x = logits.detach().clone().to(device).requires_grad_()
        losses = ctc_loss(x, num_frames, labels.to(device), num_labels)
        losses.sum().backward()
        results.append((losses.detach().cpu(), x.grad.cpu()))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-3, atol=1e-4)
    assert results[1][0][3] == 0


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_learns_in_every_precision(tmp_path, precision):
    write_split(tmp_path / "corpus", "train", random_texts(120, seed=1), speaker="1")
    write_split(tmp_path / "corpus", "dev", random_texts(20, seed=2), speaker="2")
    torch.manual_seed(0)
    masks_off = dict.fromkeys(("mask_time_prob", "mask_channel_prob", "layerdrop", "activation_dropout"), 0.0)
    module = Wav2Vec2CTC(None, TINY_CONFIG, freeze_feature_encoder=False, learning_rate=3e-3, **masks_off)
    data = LibriSpeechDataModule(
        str(tmp_path / "corpus"), ["train"], ["dev"], batch_seconds=16, device_seconds=8, num_workers=2
    )
    trainer = Trainer(
        max_epochs=30, accelerator="gpu", devices=1, precision=precision, gradient_clip_val=5.0, logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    assert math.isfinite(trainer.callback_metrics["train_loss"])
    assert trainer.callback_metrics["val_wer"] < 0.2


class Kept(Wav2Vec2CTC):
    """Module that stores the gradients of its last step."""

    def on_before_optimizer_step(self, optimizer):
        self.gradient = torch.cat([p.grad.flatten() for p in self.parameters() if p.grad is not None]).double()


@pytest.mark.parametrize(("precision", "tolerance"), [("32-true", 1e-3), ("bf16-mixed", 0.03), ("16-mixed", 0.01)])
def test_a_step_has_the_same_gradient_however_it_is_cut(tmp_path, precision, tolerance):
    """Compare the gradients, also after the GradScaler, with that of the whole step in single precision.

    In double precision on the CPU they agree within 1e-6 (tests/test_module.py); here cuDNN's convolutions use TF32.
    """
    write_split(tmp_path / "corpus", "train", random_texts(24, seed=1))

    def gradient(precision, device_seconds):
        torch.manual_seed(0)
        plain = dict.fromkeys(("mask_time_prob", "mask_channel_prob", "layerdrop", "activation_dropout"), 0.0)
        module = Kept(None, TINY_CONFIG, freeze_feature_encoder=False, **plain)
        data = LibriSpeechDataModule(
            str(tmp_path / "corpus"), ["train"], [], batch_seconds=20, device_seconds=device_seconds, num_workers=0
        )
        scaler = [MixedPrecision("16-mixed", "cuda", torch.amp.GradScaler("cuda", init_scale=64.0))]
        scaled = precision == "16-mixed"
        trainer = Trainer(
            max_steps=1, accelerator="gpu", devices=1, precision=None if scaled else precision, logger=False,
            plugins=scaler if scaled else [],
            enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, limit_val_batches=0,
        )  # fmt: skip
        trainer.fit(module, datamodule=data)
        return module.gradient, trainer.accumulate_grad_batches

    expected, _ = gradient("32-true", 20)
    for device_seconds, least in ((20, 1), (7, 3), (4, 5)):
        actual, cuts = gradient(precision, device_seconds)
        assert cuts >= least
        assert (actual - expected).norm() <= tolerance * expected.norm(), (precision, device_seconds)


def test_the_precision_chosen_is_one_that_this_gpu_computes_in():
    precision, reason = cli.choose_precision("auto")
    assert precision == ("bf16-mixed" if torch.cuda.get_device_capability() >= (8, 0) else "16-mixed")
    assert torch.cuda.get_device_name() in reason
