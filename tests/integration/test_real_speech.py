"""Tests that need real speech; skipped without it (see the `librispeech` fixture)."""

import resource
import shutil
import time
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Callback, Trainer

from w2v_lightning import LibriSpeechDataModule, Wav2Vec2CTC
from w2v_lightning.data.librispeech import load_split

SAMPLE = yaml.safe_load((Path(__file__).parents[2] / "configs" / "librispeech_sample.yaml").read_text())
QUIET = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "enable_checkpointing": False}


def sample_module(**options):
    torch.manual_seed(0)
    return Wav2Vec2CTC(**{**SAMPLE["model"], **options})


def copy_utterances(source, target, number):
    """Write the `number` shortest utterances of train-clean-100 as split `train` of a new corpus."""
    manifest = load_split(source, "train-clean-100")
    for i in manifest.durations_s_N.argsort()[:number]:
        audio = Path(manifest.audio_paths[i])
        folder = target / "train" / audio.parent.parent.name / audio.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(audio, folder)
        with (folder / f"{audio.parent.parent.name}-{audio.parent.name}.trans.txt").open("a") as file:
            file.write(f"{manifest.ids[i]} {manifest.texts[i]}\n")
    return target


def test_the_official_layout_is_read_whole(librispeech):
    manifest = load_split(librispeech, "train-clean-100")
    assert len(manifest) == 570
    assert len(set(manifest.speakers)) == 12
    assert manifest.durations_s_N.sum() / 3600 == pytest.approx(2.05, abs=0.01)


@pytest.mark.slow
def test_a_small_model_learns_eight_real_utterances_by_heart(librispeech, tmp_path):
    corpus = copy_utterances(librispeech, tmp_path / "corpus", 8)
    data = LibriSpeechDataModule(
        str(corpus), train_splits=["train"], val_splits=["train"], batch_seconds=60, device_seconds=60, num_workers=0
    )
    regularisation = (
        "mask_time_prob",
        "mask_channel_prob",
        "activation_dropout",
        "attention_dropout",
        "hidden_dropout",
    )
    module = sample_module(**dict.fromkeys(regularisation, 0.0))
    trainer = Trainer(
        max_epochs=250, check_val_every_n_epoch=25, callbacks=[StopAtZero()], gradient_clip_val=1.0, accelerator="cpu",
        default_root_dir=tmp_path, **QUIET,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    assert trainer.callback_metrics["val_wer"] == 0
    assert len(module.pairs) == 8
    assert all(pair.hypothesis == pair.reference for pair in module.pairs)


class StopAtZero(Callback):
    def on_validation_end(self, trainer, pl_module):
        trainer.should_stop = trainer.callback_metrics.get("val_wer", 1) == 0


class Losses(Callback):
    def __init__(self):
        self.losses, self.seconds, self.audio_s = [], [], 0.0

    def on_train_batch_start(self, *_):
        self._start = time.perf_counter()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seconds.append(time.perf_counter() - self._start)
        self.audio_s += batch.audio_seconds
        self.losses.append(float(outputs["loss"]))


@pytest.mark.slow
def test_a_model_of_the_size_of_wav2vec2_base_takes_real_steps(librispeech, tmp_path, record_property):
    torch.manual_seed(0)
    module = Wav2Vec2CTC(None, {"apply_spec_augment": True}, learning_rate=1e-4, warmup=0.0)
    assert sum(p.numel() for p in module.model.parameters()) == pytest.approx(94.4e6, rel=1e-3)
    before = module.model.wav2vec2.encoder.layers[11].feed_forward.output_dense.weight.detach().clone()
    data = LibriSpeechDataModule(
        str(librispeech), val_splits=["dev-clean"], batch_seconds=34, device_seconds=34, num_workers=1
    )
    losses = Losses()
    trainer = Trainer(max_steps=3, limit_val_batches=0, callbacks=[losses], accelerator="cpu", **QUIET)
    trainer.fit(module, datamodule=data)
    assert len(losses.losses) == 3
    assert all(torch.isfinite(torch.tensor(losses.losses)))
    assert not torch.equal(before, module.model.wav2vec2.encoder.layers[11].feed_forward.output_dense.weight)
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"wav2vec2-base on the CPU: {losses.audio_s / sum(losses.seconds):.1f} audio-s/s, peak {peak_gib:.2f} GiB")
