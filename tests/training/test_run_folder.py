"""Output folder of a run with any logger; no two runs share a folder."""

import shutil
from pathlib import Path
from unittest import mock

import pytest
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from service_loggers import MlflowLike, ServiceLogger, WandbLike
from tiny import TINY_CONFIG, write_corpus

from w2v_lightning.__main__ import main
from w2v_lightning.model import wav2vec2
from w2v_lightning.text.vocabulary import Vocabulary
from w2v_lightning.training.run_folder import output_folder


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Return default_root_dir; outputs in the current directory would be detected."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "runs"


def begun(root, logger):
    """Return a trainer whose run is known to the service, as before the first callback."""
    trainer = Trainer(logger=logger, default_root_dir=root, accelerator="cpu")
    for each in trainer.loggers:
        _ = each.experiment
    return trainer


@pytest.mark.parametrize("kind", [TensorBoardLogger, CSVLogger])
def test_a_logger_with_a_folder_for_each_run_keeps_the_outputs_too(kind, root):
    logger = kind(root)
    assert output_folder(begun(root, logger)) == Path(logger.log_dir) == root / "lightning_logs" / "version_0"
    elsewhere = kind(root, name="mine", version="v7")
    assert output_folder(begun(root, elsewhere)) == root / "mine" / "v7"


@pytest.mark.parametrize(("kind", "name"), [(WandbLike, "speech"), (MlflowLike, "7")])
def test_a_service_gives_the_run_its_name_below_the_root(kind, name, root):
    first, second = kind(), kind()
    folders = [output_folder(begun(root, logger)) for logger in (first, second)]
    assert folders == [root / name / first.version, root / name / second.version]
    assert first.version != second.version


def test_of_several_loggers_the_first_counts(root):
    csv, wandb = CSVLogger(root), WandbLike()
    assert output_folder(begun(root, [csv, wandb])) == Path(csv.log_dir)
    assert output_folder(begun(root, [wandb, csv])) == root / "speech" / wandb.version


class Nameless(ServiceLogger):
    name = version = None


@pytest.mark.parametrize("logger", [False, Nameless])
def test_without_a_version_runs_are_numbered(logger, root):
    for number in range(3):
        trainer = begun(root, logger and logger())
        folder = output_folder(trainer)
        assert folder == root / "lightning_logs" / f"version_{number}"
        folder.mkdir(parents=True)
        assert output_folder(trainer) == folder  # the run keeps its number


def test_other_ranks_are_told(root):
    trainer = begun(root, WandbLike())
    with (
        mock.patch.object(Trainer, "is_global_zero", False),
        mock.patch.object(trainer.strategy, "broadcast", return_value="told") as broadcast,
    ):
        assert output_folder(trainer) == Path("told")
    broadcast.assert_called_once_with(None)


# ---- runs of the command line ---------------------------------------------------------------------------------------

SERVICES = ["service_loggers.WandbLike", "service_loggers.MlflowLike", "false"]


@pytest.fixture
def config(tmp_path, root):
    config = {
        "model": {"pretrained": None, "config": TINY_CONFIG},
        "data": {"root": str(write_corpus(tmp_path / "corpus")), "train_splits": ["train"], "val_splits": ["dev"]}
        | {"test_splits": ["dev2"], "num_workers": 0},
        "trainer": {"max_steps": 1, "accelerator": "cpu", "default_root_dir": str(root), "num_sanity_val_steps": 0}
        | {"enable_progress_bar": False},
        "resume": "never",
    }
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.mark.parametrize("logger", SERVICES)
def test_all_outputs_lie_together_and_a_second_run_leaves_the_firsts(logger, config, root, capsys):
    option = f"--trainer.logger={logger}"
    for number in (1, 2):
        assert main(["fit", "--config", str(config), option]) == 0
        models = list(root.rglob("model.safetensors"))
        assert len(models) == number
    runs = [model.parents[1] for model in models]
    names = {"config.yaml", "throughput.json", "model"}
    assert all({path.name for path in run.iterdir()} == names for run in runs)
    assert not list(Path.cwd().iterdir())
    printed = capsys.readouterr().out
    assert all(f"model        {run / 'model'}" in printed for run in runs)
    again = runs[0] / "config.yaml"  # complete, so that a run can start from it
    shutil.rmtree(root / "checkpoints")
    assert main(["fit", "--config", str(again)]) == 0


def test_transcripts_go_there_too(config, root, tmp_path, monkeypatch):
    tuned = tmp_path / "tuned"
    tuned.mkdir()
    wav2vec2.save_pretrained(tuned, wav2vec2.from_scratch(TINY_CONFIG, Vocabulary()), Vocabulary(), normalise=True)
    monkeypatch.setattr(WandbLike, "run", "r1")
    options = [f"--model.pretrained={tuned}", "--trainer.logger=service_loggers.WandbLike"]
    assert main(["predict", "--config", str(config), *options]) == 0
    assert (root / "speech" / "r1" / "predictions.jsonl").exists()
    assert not list(Path.cwd().iterdir())


@pytest.mark.slow
def test_two_processes_write_into_one_folder(config, root):
    options = ["--trainer.devices=2", "--trainer.strategy=ddp_fork", "--trainer.logger=service_loggers.WandbLike"]
    assert main(["fit", "--config", str(config), *options]) == 0
    (run,) = (root / "speech").iterdir()
    assert {path.name for path in run.iterdir()} == {"config.yaml", "throughput.json", "model"}
