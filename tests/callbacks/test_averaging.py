"""Average of the best checkpoints, and exponential moving average."""

import os
from pathlib import Path

import pytest
import torch
import yaml
from corpus import random_texts, write_split
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from tiny import TINY_CONFIG
from transformers import AutoModelForCTC

from w2v_lightning import LibriSpeechDataModule, Wav2Vec2CTC
from w2v_lightning.__main__ import main
from w2v_lightning.callbacks.averaging import AverageBest, MovingAverage, average_weights
from w2v_lightning.callbacks.export import ExportBest
from w2v_lightning.errors import InputError

# ---- the average of several checkpoints -----------------------------------------------------------------------------


def save(path, **tensors):
    torch.save({"state_dict": tensors}, path)
    return path


def test_the_average_is_the_mean_in_the_tensors_own_type(tmp_path):
    unchanged = torch.randn(1000)
    paths = [
        save(
            tmp_path / f"{i}.ckpt",
            weight=torch.tensor([1.0, -2.0]) * i,
            half=torch.tensor([1.0, 2.0], dtype=torch.bfloat16) * i,
            frozen=unchanged,
            count=torch.tensor(10 + i),
            flag=torch.tensor(i == 1),
        )
        for i in (1, 2, 6)
    ]
    average = average_weights(paths)
    assert average["weight"].tolist() == [3.0, -6.0]
    assert average["half"].tolist() == [3.0, 6.0]
    assert {name: tensor.dtype for name, tensor in average.items()} == {
        "weight": torch.float32,
        "half": torch.bfloat16,
        "frozen": torch.float32,
        "count": torch.int64,
        "flag": torch.bool,
    }
    assert torch.equal(average["frozen"], unchanged)  # bit for bit: averaging leaves frozen weights unchanged
    assert average["count"] == 11  # taken from the first checkpoint: a mean of counts is meaningless
    assert average["flag"].item() is True


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def test_a_checkpoint_that_carries_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    good = save(tmp_path / "good.ckpt", weight=torch.zeros(1))
    with pytest.raises(InputError, match=r"bomb\.ckpt cannot be loaded as a checkpoint: it holds .*mkdir"):
        average_weights([good, save(tmp_path / "bomb.ckpt", weight=Bomb())])
    assert not (tmp_path / "exploded").exists()


# ---- in a run -------------------------------------------------------------------------------------------------------


class Scripted(Callback):
    """Callback that logs given scores, and records the head's weights after each update and in each validation."""

    def __init__(self, wers):
        self.wers, self.trained, self.validated = iter(wers), [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.trained.append(head(pl_module))

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        self.validated.append(head(pl_module))

    def on_validation_epoch_end(self, trainer, pl_module):
        pl_module.log("wer", next(self.wers))


def head(module):
    return module.model.lm_head.weight.detach().clone()


@pytest.fixture
def run(tmp_path):
    """Function that trains with some callbacks and returns (module, trainer, scripted)."""
    write_split(tmp_path / "corpus", "train", random_texts(12, seed=1), "1")
    write_split(tmp_path / "corpus", "dev", random_texts(2, seed=2), "2")

    def train(*callbacks, wers=(0.9, 0.5, 0.7, 0.6), name="run", ckpt_path=None, **checkpoint):
        torch.manual_seed(0)
        module = Wav2Vec2CTC(
            None, TINY_CONFIG, freeze_feature_encoder=False, learning_rate=1e-2, layerdrop=0.0, activation_dropout=0.0
        )
        scripted = Scripted(wers)
        best = ModelCheckpoint(monitor="wer", filename="{step}", **{"save_top_k": 1, **checkpoint})
        trainer = Trainer(
            max_epochs=4, accelerator="cpu", callbacks=[scripted, *callbacks, best], num_sanity_val_steps=0,
            enable_model_summary=False, enable_progress_bar=False, logger=CSVLogger(tmp_path, name=name),
            default_root_dir=tmp_path,
        )  # fmt: skip
        data = LibriSpeechDataModule(
            str(tmp_path / "corpus"), ["train"], ["dev"], batch_seconds=60, device_seconds=60, num_workers=0
        )
        trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
        assert trainer.global_step == 4  # one per epoch
        return module, trainer, scripted

    return train


def test_the_average_of_the_best_lies_beside_the_best(run):
    _, trainer, scripted = run(ExportBest(), AverageBest(), save_top_k=3)
    _, second, third, fourth = scripted.trained
    folder = Path(trainer.log_dir)
    average = AutoModelForCTC.from_pretrained(folder / "model-average").lm_head.weight
    torch.testing.assert_close(average, (second + third + fourth) / 3, rtol=1e-6, atol=1e-8)
    assert not torch.equal(average, fourth)
    assert torch.equal(AutoModelForCTC.from_pretrained(folder / "model").lm_head.weight, second)
    assert torch.equal(head(trainer.lightning_module), second)  # ExportBest loaded these weights


def test_one_best_checkpoint_has_no_average(run):
    _, trainer, _ = run(AverageBest())
    assert not Path(trainer.log_dir, "model-average").exists()


def test_the_moving_average_is_validated_kept_and_exported(run):
    _, trainer, scripted = run(ExportBest(), MovingAverage(decay=0.75))
    expected = [scripted.trained[0]]  # the average starts from the weights after the first update
    for weights in scripted.trained[1:]:
        expected.append(0.75 * expected[-1] + 0.25 * weights)
    for validated, average in zip(scripted.validated, expected, strict=True):
        torch.testing.assert_close(validated, average)
    assert not torch.allclose(expected[1], scripted.trained[1])
    exported = AutoModelForCTC.from_pretrained(Path(trainer.log_dir, "model"))
    torch.testing.assert_close(exported.lm_head.weight, expected[1])  # from the best validation


def test_a_run_with_a_moving_average_goes_on_exactly(run):
    whole, trainer, scripted = run(MovingAverage(decay=0.75), save_top_k=-1)
    second = trainer.checkpoint_callback.format_checkpoint_name({"step": torch.tensor(2)})
    resumed, _, after = run(MovingAverage(decay=0.75), wers=(0.7, 0.6), name="resumed", ckpt_path=second)
    for name in ("trained", "validated"):
        for weights, expected in zip(getattr(after, name), getattr(scripted, name)[2:], strict=True):
            assert torch.equal(weights, expected)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_a_damaged_one_of_the_best_ends_no_run_that_is_trained(run, caplog):
    class Damage(Callback):
        def on_train_end(self, trainer, pl_module):
            path = Path(trainer.checkpoint_callback.best_model_path)
            path.write_bytes(path.read_bytes()[:-500])

    _, trainer, _ = run(Damage(), AverageBest(), save_top_k=3)
    assert not Path(trainer.log_dir, "model-average").exists()
    assert "No average of the 3 best checkpoints is written: " in caplog.text


class Interruption(Callback):
    """Callback that raises in the middle of the second validation."""

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        if trainer.global_step == 2:
            raise RuntimeError("spot instance gone")


def test_a_checkpoint_made_in_mid_validation_tells_weights_and_average_apart(run, tmp_path):
    average = MovingAverage(decay=0.75)
    with pytest.raises(RuntimeError, match="spot"):
        run(Interruption(), average, save_on_exception=True, save_top_k=0)
    (path,) = tmp_path.rglob("*.ckpt")
    checkpoint = torch.load(path, weights_only=True)
    _, _, scripted = run(MovingAverage(decay=0.75), name="whole")
    first, second = scripted.trained[:2]
    assert torch.equal(checkpoint["current_model_state"]["model.lm_head.weight"], second)
    torch.testing.assert_close(checkpoint["state_dict"]["model.lm_head.weight"], 0.75 * first + 0.25 * second)


@pytest.mark.parametrize("decay", [0.0, 1.0, 1.5])
def test_an_impossible_decay_is_refused(decay):
    with pytest.raises(InputError, match="decay"):
        MovingAverage(decay)


def test_a_config_asks_for_both_averages(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_split(tmp_path / "corpus", "train", random_texts(6, seed=1), "1")
    write_split(tmp_path / "corpus", "dev", random_texts(2, seed=2), "2")
    average = {"class_path": "w2v_lightning.callbacks.averaging.MovingAverage", "init_args": {"decay": 0.5}}
    config = {
        "model": {"pretrained": None, "config": TINY_CONFIG, "learning_rate": 1e-2},
        "data": {"root": "corpus", "train_splits": ["train"], "val_splits": ["dev"], "num_workers": 0},
        "checkpoint": {"monitor": "val_loss", "save_top_k": 2},
        "trainer": {"max_epochs": 3, "accelerator": "cpu", "enable_progress_bar": False, "callbacks": [average]},
    }
    Path("config.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", "config.yaml"]) == 0

    kept = sorted(Path("runs").rglob("best-step=*.ckpt"))
    assert len(kept) == 2
    assert all("current_model_state" in torch.load(path, weights_only=True) for path in kept)
    (folder,) = Path("runs").rglob("model-average")
    expected = average_weights(kept)["model.lm_head.weight"]
    assert torch.equal(AutoModelForCTC.from_pretrained(folder).lm_head.weight, expected)
