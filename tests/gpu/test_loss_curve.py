"""The fast implementations learn like transformers' own modules, in bfloat16."""

import pytest
import torch
from corpus import random_texts, write_split
from lightning.pytorch import Trainer

from w2v_lightning import LibriSpeechDataModule, Wav2Vec2CTC
from w2v_lightning.model.speed import Speed

pytestmark = pytest.mark.gpu

STOCK = Speed("transformers", "convolution", "padded", "transformers", "torch", False, False)
SMALL = {
    "conv_dim": [256, 256, 256],
    "conv_kernel": [20, 8, 4],
    "conv_stride": [10, 8, 4],
    "feat_extract_norm": "group",
    "hidden_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 512,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
STEPS, WINDOW, SEEDS = 300, 30, (0, 1, 2)


class Kept(Wav2Vec2CTC):
    """Callback that stores the loss of each step."""

    def on_train_start(self):
        self.losses = []

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.losses.append(loss.detach())
        return loss


def curve(tmp_path, seed, speed):
    """Return the mean loss of each WINDOW steps; frozen convolutions, masks, dropout, layer drop as in a real run."""
    torch.manual_seed(seed)
    module = Kept(None, SMALL, learning_rate=1e-3, seed=seed, speed=speed)
    data = LibriSpeechDataModule(
        str(tmp_path), ["train"], [], batch_seconds=40, device_seconds=40, num_workers=2, seed=seed
    )
    trainer = Trainer(
        max_steps=STEPS, max_epochs=-1, accelerator="gpu", devices=1, precision="bf16-mixed", gradient_clip_val=5.0,
        logger=False, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    return torch.stack(module.losses).view(-1, WINDOW).mean(dim=1).cpu()


def test_the_loss_falls_as_with_transformers_modules_within_the_spread_of_three_seeds(tmp_path):
    write_split(tmp_path, "train", random_texts(200, seed=1))
    stock = torch.stack([curve(tmp_path, seed, STOCK) for seed in SEEDS])
    ours = torch.stack([curve(tmp_path, seed, Speed()) for seed in SEEDS])
    print("stock", stock, "ours", ours, sep="\n")
    spread = stock.amax(dim=0) - stock.amin(dim=0)
    assert ((ours.mean(dim=0) - stock.mean(dim=0)).abs() <= spread).all()
    assert stock.mean(dim=0)[-1] < 0.5 * stock.mean(dim=0)[0]  # the comparison needs a run that learns
