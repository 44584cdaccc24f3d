"""Interrupt on two processes, resume on one and three: exactly the rest of the epoch is trained."""

import json

import forked
import pytest
import torch
from corpus import random_texts, write_split
from lightning.pytorch import LightningModule, Trainer

from w2v_lightning import LibriSpeechDataModule


class Listener(LightningModule):
    def __init__(self):
        super().__init__()
        self.weight, self.trained = torch.nn.Parameter(torch.zeros(())), []

    def training_step(self, batch, _):
        if not batch.is_filler:
            self.trained.append((self.current_epoch, batch.global_step, batch.ids))
        return self.weight * 1

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def on_load_checkpoint(self, checkpoint):
        self.trainer.datamodule.align_progress(checkpoint)


def run(root, out, devices, max_steps, ckpt_path):
    module = Listener()
    data = LibriSpeechDataModule(str(root), ["train"], [], batch_seconds=9, device_seconds=3.3, num_workers=1)
    trainer = Trainer(
        max_steps=max_steps, accelerator="cpu", devices=devices, default_root_dir=out, logger=False,
        enable_progress_bar=False, enable_checkpointing=False, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
    trainer.save_checkpoint(out / "end.ckpt")
    (out / f"trained{trainer.global_rank}.json").write_text(json.dumps(module.trained))


def train(tmp_path, name, devices, max_steps, ckpt_path=None):
    """Sorted (epoch, step, utterance) that all processes together trained on."""
    folder = tmp_path / name
    processes = forked.start(folder, run, tmp_path / "corpus", folder, devices, max_steps, ckpt_path, ranks=devices)
    assert forked.ended(processes, folder) == [0] * devices, forked.logs(folder)
    trained = [row for rank in range(devices) for row in json.loads((folder / f"trained{rank}.json").read_text())]
    return sorted((epoch, step, i) for epoch, step, ids in trained for i in ids)


@pytest.mark.slow
def test_the_rest_of_an_epoch_on_another_number_of_processes(tmp_path):
    write_split(tmp_path / "corpus", "train", random_texts(30, seed=1))
    whole = train(tmp_path, "whole", devices=1, max_steps=8)
    assert len({(epoch, step) for epoch, step, _ in whole}) == 8
    before = train(tmp_path, "before", devices=2, max_steps=3)
    for devices in (1, 3):
        after = train(tmp_path, f"on{devices}", devices, max_steps=8, ckpt_path=tmp_path / "before" / "end.ckpt")
        assert sorted(before + after) == whole
