"""Choice of the checkpoint that is exported as the best, with any other callbacks that keep checkpoints."""

from types import SimpleNamespace

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from tiny import TINY_CONFIG, write_corpus
from transformers import AutoModelForCTC

from w2v_lightning.__main__ import main
from w2v_lightning.checkpoints.best import BestCheckpoint, best_checkpoint
from w2v_lightning.checkpoints.recent import Interval, RecentCheckpoints

RECENT = RecentCheckpoints("runs", Interval(steps=1))
OF_CONFIG, WITHOUT_MONITOR = BestCheckpoint(monitor="val_wer"), BestCheckpoint()
EVERY_SO_OFTEN, MINE, LATER = ModelCheckpoint(), ModelCheckpoint(monitor="val_loss"), ModelCheckpoint(monitor="val_cer")


@pytest.mark.parametrize(
    ("callbacks", "best"),
    [
        ([MINE, OF_CONFIG, RECENT], OF_CONFIG),
        ([MINE, RECENT, WITHOUT_MONITOR], WITHOUT_MONITOR),
        ([EVERY_SO_OFTEN, EarlyStopping("val_wer"), MINE, LATER], MINE),  # in a script
        ([RECENT, EVERY_SO_OFTEN], EVERY_SO_OFTEN),
        ([RECENT], None),
        ([], None),
    ],
)
def test_the_configs_own_or_in_a_script_the_first_that_is_chosen_by_a_score(callbacks, best):
    assert best_checkpoint(SimpleNamespace(callbacks=callbacks)) is best


def of_user(folder, **options):
    options |= {"dirpath": str(folder / "mine"), "filename": "mine"}
    return {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": options}


@pytest.fixture
def fit(tmp_path):
    """Function that runs `fit` with an additional ModelCheckpoint of the user, and returns the run's folder."""
    corpus = write_corpus(tmp_path / "corpus")

    def run(**options):
        config = {
            "model": {"pretrained": None, "config": TINY_CONFIG, "freeze_feature_encoder": False},
            "data": {"root": str(corpus), "train_splits": ["train"], "val_splits": ["dev"], "num_workers": 0}
            | {"batch_seconds": 60, "device_seconds": 60},
            "checkpoint": {"monitor": "val_loss", "save_top_k": 2},
            "trainer": {"max_epochs": 3, "accelerator": "cpu", "default_root_dir": str(tmp_path), "logger": False}
            | {"enable_progress_bar": False, "callbacks": [of_user(tmp_path, **options)], "num_sanity_val_steps": 0},
        }
        (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(config))
        assert main(["fit", "--config", str(tmp_path / "tiny.yaml")]) == 0
        return tmp_path

    return run


def head(path):
    return torch.load(path, weights_only=True)["state_dict"]["model.lm_head.weight"]


@pytest.mark.parametrize(
    "options",
    [{"monitor": "val_loss", "mode": "max"}, {"monitor": "val_loss"}, {"every_n_train_steps": 1, "save_top_k": -1}],
    ids=["the worst", "the same", "each"],
)
def test_a_users_own_checkpoint_does_not_change_what_is_exported(options, fit, capsys):
    folder = fit(**options)
    newest = torch.load(max((folder / "checkpoints").glob("step-*.ckpt")), weights_only=True)["callbacks"]
    (ours,) = (state for name, state in newest.items() if name.startswith("BestCheckpoint"))
    (model,) = folder.rglob("model/model.safetensors")
    exported = AutoModelForCTC.from_pretrained(model.parent).lm_head.weight
    assert torch.equal(exported, head(ours["best_model_path"]))
    assert len(list(folder.rglob("model-average"))) == 1
    assert f"checkpoints  {folder / 'checkpoints'}\n" in capsys.readouterr().out
    assert list((folder / "mine").glob("*.ckpt"))
