"""The package in a user's own Trainer script."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from corpus import random_texts, write_split
from tiny import TINY_CONFIG
from transformers import AutoModelForCTC, AutoProcessor

SCRIPT = """
import sys
from lightning.pytorch import Trainer
from w2v_lightning import LibriSpeechDataModule, Wav2Vec2CTC

root, out, config, devices = sys.argv[1], sys.argv[2], eval(sys.argv[3]), int(sys.argv[4])
if __name__ == "__main__":
    module = Wav2Vec2CTC(None, config, freeze_feature_encoder=False, learning_rate=3e-3, mask_time_prob=0.0,
                         mask_channel_prob=0.0, layerdrop=0.0, activation_dropout=0.0)
    data = LibriSpeechDataModule(root, train_splits=["train"], val_splits=["dev"], batch_seconds=16,
                                 device_seconds=16 / devices, num_workers=0)
    trainer = Trainer(max_epochs=int(sys.argv[5]), accelerator="cpu", devices=devices, default_root_dir=out,
                      enable_progress_bar=False, logger=False, enable_checkpointing=False, gradient_clip_val=5.0)
    trainer.fit(module, datamodule=data)
    if trainer.is_global_zero:
        module.save_pretrained(out + "/model")
        print("WER", float(trainer.callback_metrics["val_wer"]), trainer.accumulate_grad_batches)
"""


@pytest.fixture
def corpus(tmp_path):
    write_split(tmp_path / "corpus", "train", random_texts(120, seed=1), speaker="1")
    write_split(tmp_path / "corpus", "dev", random_texts(20, seed=2), speaker="2")
    return tmp_path / "corpus"


def run_script(tmp_path, corpus, devices, epochs):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    command = [sys.executable, script, corpus, tmp_path, repr(TINY_CONFIG), devices, epochs]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("WER"))
    return float(line.split()[1]), int(line.split()[2])


@pytest.mark.slow
def test_learns_to_read_tones_and_plain_transformers_reads_the_same(tmp_path, corpus):
    wer, _ = run_script(tmp_path, corpus, devices=1, epochs=30)
    assert wer < 0.2
    processor = AutoProcessor.from_pretrained(tmp_path / "model")
    model = AutoModelForCTC.from_pretrained(tmp_path / "model")
    import soundfile

    right = 0
    files = sorted(Path(corpus, "dev").rglob("*.flac"))
    for file, text in zip(files, random_texts(20, seed=2), strict=True):
        inputs = processor(soundfile.read(file, dtype="float32")[0], sampling_rate=16_000, return_tensors="pt")
        with torch.no_grad():
            right += processor.batch_decode(model(**inputs).logits.argmax(-1))[0] == text
    assert right >= 12


@pytest.mark.slow
def test_two_processes_share_the_epoch(tmp_path, corpus):
    """Run DDP as Lightning's users start it, without disabling features or replacing a sampler."""
    wer, accumulation = run_script(tmp_path, corpus, devices=2, epochs=1)
    assert wer > 0
    assert accumulation >= 1
