"""Parity with plain transformers on real speech, one utterance at a time: same outputs, same training."""

import numpy as np
import pytest
import soundfile
import torch
from lightning.pytorch import Trainer
from tiny import TINY_CONFIG
from transformers import Wav2Vec2FeatureExtractor

from w2v_lightning import LibriSpeechDataModule, Wav2Vec2CTC
from w2v_lightning.data.librispeech import load_split
from w2v_lightning.data.loader import UtteranceDataset
from w2v_lightning.data.samplers import Slot
from w2v_lightning.optim import tri_stage

PLAIN = dict.fromkeys(("mask_time_prob", "mask_channel_prob", "layerdrop", "activation_dropout"), 0.0)
STEPS = 200


def build(config, **options):
    torch.manual_seed(0)
    return Wav2Vec2CTC(None, config, freeze_feature_encoder=False, **PLAIN, **options)


def stock_loss(model, extractor, audio_path: str, labels: list[int]) -> torch.Tensor:
    waveform_T, sample_rate = soundfile.read(audio_path, dtype="float32")
    inputs = extractor(waveform_T, sampling_rate=sample_rate, return_tensors="pt")
    return model(inputs.input_values, labels=torch.tensor([labels])).loss


@pytest.mark.slow
@pytest.mark.parametrize("config", [{}, TINY_CONFIG], ids=["base", "tiny layer norm"])
def test_forward_loss_and_gradients_are_those_of_transformers(librispeech, config):
    ours, theirs = build(config), build(config)
    theirs.model.config.ctc_loss_reduction = "sum"
    manifest = load_split(librispeech, "dev-clean")
    dataset = UtteranceDataset(manifest, ours.input_spec)
    extractor = Wav2Vec2FeatureExtractor(do_normalize=True)
    for position in np.argsort(manifest.durations_s_N)[:3].tolist():
        batch = dataset[Slot(np.array([position]))]
        logits_BFV = ours(batch)
        ours.zero_grad()
        loss = ours._ctc(logits_BFV, batch)[0]
        loss.backward()
        theirs.zero_grad()
        labels = ours.vocabulary.encode(batch.texts[0])
        expected = stock_loss(theirs.model, extractor, manifest.audio_paths[position], labels)
        expected.backward()
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
        largest = max(q.grad.norm() for q in theirs.model.parameters() if q.grad is not None)
        for (name, p), q in zip(ours.model.named_parameters(), theirs.model.parameters(), strict=True):
            if q.grad is not None:  # the second term is for parameters whose gradient is zero except for rounding
                assert (p.grad - q.grad).norm() <= 1e-4 * q.grad.norm() + 1e-6 * largest, name


class Recorded(Wav2Vec2CTC):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.curve.append(float(loss))
        self.order.append(batch.ids[0])
        return loss


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["layer", "group"])
def test_200_steps_give_the_loss_curve_of_a_plain_transformers_loop(librispeech, tmp_path, norm):
    config, learning_rate = TINY_CONFIG | {"feat_extract_norm": norm}, 3e-4
    torch.manual_seed(0)
    module = Recorded(None, config, freeze_feature_encoder=False, learning_rate=learning_rate, **PLAIN)
    module.curve, module.order = [], []
    data = LibriSpeechDataModule(
        str(librispeech), ["train-clean-100"], [], max_seconds=6, batch_seconds=1, device_seconds=6, num_workers=0
    )  # one utterance per step
    trainer = Trainer(
        max_steps=STEPS, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, data)

    model = build(config).model.train()
    model.config.ctc_loss_reduction = "sum"
    options = {"lr": learning_rate, "betas": (0.9, 0.98), "eps": 1e-8, "weight_decay": 0.0}
    optimizer = torch.optim.AdamW(model.parameters(), **options)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, tri_stage(STEPS))
    manifest, extractor = data.train_dataset.manifest, Wav2Vec2FeatureExtractor(do_normalize=True)
    curve = []
    for utterance_id in module.order:
        position = manifest.ids.index(utterance_id)
        labels = module.vocabulary.encode(module.vocabulary.normalise(manifest.texts[position]))
        loss = stock_loss(model, extractor, manifest.audio_paths[position], labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        curve.append(float(loss))
    assert len(curve) == STEPS
    assert np.mean(curve[-20:]) < 0.5 * np.mean(curve[:20])
    np.testing.assert_allclose(module.curve, curve, rtol=1e-4)
