"""The same training on one to four processes, with any micro-batches and loading, in float32.

It has masks, layer drop and, on two processes, gradient checkpointing. A run with plain DDP's mean of means shows that
the test can fail.
"""

from dataclasses import dataclass

import forked
import pytest
import torch
from corpus import random_texts, write_split
from lightning.pytorch import Trainer, seed_everything
from tiny import TINY_CONFIG

from w2v_lightning import LibriSpeechDataModule, Wav2Vec2CTC
from w2v_lightning.model.speed import Speed
from w2v_lightning.strategies.ddp import PlannedDDPStrategy

NUM_STEPS = 30
CONFIG = TINY_CONFIG | {"num_hidden_layers": 3, "feat_extract_norm": "group"}


class Recorded(Wav2Vec2CTC):
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.losses, self.scores = [], []

    def log(self, name, value, *args, **kwargs):
        if name == "train_loss":
            self.losses.append(float(value))

    def _scores_of_all_ranks(self):
        counts_S4, losses = super()._scores_of_all_ranks()
        self.scores.append(counts_S4.tolist())
        return counts_S4, losses


class MeanOfMeans(Recorded):
    """Run without the two corrections, for comparison."""

    def training_step(self, batch, batch_idx):
        mean = self._ctc(self(batch), batch).mean() * (not batch.is_filler)
        self._log_training(mean.detach() / (batch.num_micro_batches * self.trainer.world_size), batch)
        return mean


def run(kind, root, out, devices, data, model):
    seed_everything(1, verbose=False)
    speed = Speed(positional_convolution="convolution")  # "auto" would measure, and so could choose differently
    options = {"freeze_feature_encoder": False, "learning_rate": 1e-3, "layerdrop": 0.4, "activation_dropout": 0.0}
    module = kind(None, CONFIG, speed=speed, **options, **model)
    datamodule = LibriSpeechDataModule(str(root), ["train"], ["a", "b"], batch_seconds=9, **data)
    trainer = Trainer(
        max_steps=NUM_STEPS, accelerator="cpu", devices=devices, default_root_dir=out, logger=False,
        log_every_n_steps=1, enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False,
        num_sanity_val_steps=-1, strategy=PlannedDDPStrategy() if devices > 1 else "auto",
    )  # fmt: skip
    trainer.fit(module, datamodule=datamodule)
    trainer.validate(module, datamodule=datamodule, verbose=False)
    if trainer.is_global_zero:
        torch.save([module.losses, module.scores, module.state_dict()], out / "result.pt")


@dataclass
class Result:
    losses: torch.Tensor  # loss of each global step
    scores: list  # of each validation and split: word errors, words, character errors, characters
    weights: dict[str, torch.Tensor]

    def most_apart(self, other: "Result") -> tuple[float, float]:
        """Return the largest relative difference of losses, and the largest difference of weights."""
        weights = max(float((self.weights[name] - other.weights[name]).abs().max()) for name in self.weights)
        return float(((self.losses - other.losses) / other.losses).abs().max()), weights


def train(tmp_path, devices, *, kind=Recorded, device_seconds=9.0, num_workers=0, **model):
    folder = tmp_path / f"{kind.__name__}-on{devices}"
    data = {"device_seconds": device_seconds, "num_workers": num_workers}
    processes = forked.start(folder, run, kind, tmp_path / "corpus", folder, devices, data, model, ranks=devices)
    assert forked.ended(processes, folder) == [0] * devices, forked.logs(folder)
    losses, scores, weights = torch.load(folder / "result.pt")
    # Softmax is invariant to the keys' bias: its gradient is pure rounding error, which Adam amplifies.
    weights = {name: weight for name, weight in weights.items() if "k_proj.bias" not in name}
    return Result(torch.tensor(losses, dtype=torch.float64), scores, weights)


@pytest.fixture
def one(tmp_path):
    """Result on one process."""
    for number, (split, size) in enumerate({"train": 60, "a": 7, "b": 5}.items()):
        write_split(tmp_path / "corpus", split, random_texts(size, seed=number), str(number))
    result = train(tmp_path, devices=1)
    assert len(result.losses) == NUM_STEPS
    assert all(0 < wrong != characters for _, _, wrong, characters in result.scores[0])  # not a trivial score
    return result


@pytest.mark.slow
def test_losses_weights_and_scores_are_the_same_on_any_number_of_processes(tmp_path, one):
    others = [
        train(tmp_path, 2, device_seconds=3.3, num_workers=2, gradient_checkpointing=True),
        train(tmp_path, 3, device_seconds=3.3, num_workers=0),
        train(tmp_path, 4, device_seconds=2.0, num_workers=1),
    ]
    for other in others:
        losses, weights = other.most_apart(one)
        assert losses < 1e-5
        assert weights < 1e-5
        assert other.scores == one.scores


@pytest.mark.slow
def test_the_mean_of_means_is_not(tmp_path, one):
    losses, weights = train(tmp_path, 3, device_seconds=3.3, kind=MeanOfMeans).most_apart(one)
    assert losses > 1e-3
    assert weights > 1e-4
