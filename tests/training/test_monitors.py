"""A monitored metric is logged, or rejected before training starts."""

import pytest
import yaml
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, model_checkpoint
from tiny import TINY_CONFIG, data, trainer, write_corpus

from w2v_lightning import Wav2Vec2CTC, Wav2Vec2Pretraining
from w2v_lightning.__main__ import main
from w2v_lightning.errors import InputError
from w2v_lightning.telemetry.throughput import Throughput
from w2v_lightning.training.monitors import check_monitor

LOGGED = ["val_wer", "val_cer", "val_wer/dev-clean", "val_wer/dev-other", "lr"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("monitors") / "corpus")


@pytest.mark.parametrize("others_log", [False, True])
def test_what_is_logged_may_be_monitored(others_log):
    for name in [*LOGGED, "step", "epoch"]:
        check_monitor("checkpoint.monitor", name, LOGGED, others_log)


@pytest.mark.parametrize(
    ("monitor", "nearest"), [("val_wer/dev-othr", "val_wer/dev-other"), ("valwer", "val_wer"), ("zzzz", None)]
)
def test_what_is_not_is_refused_in_one_line_with_the_nearest(monitor, nearest):
    with pytest.raises(InputError) as error:
        check_monitor("checkpoint.monitor", monitor, LOGGED)
    message = str(error.value)
    assert message.startswith(f"checkpoint.monitor: nothing is logged as '{monitor}'")
    assert all(name in message for name in LOGGED)
    assert ("Did you mean" in message) == (nearest is not None)
    assert nearest is None or f"Did you mean {nearest}?" in message
    assert "\n" not in message


def test_anothers_callback_may_log_other_names_but_not_our_scores_of_other_splits():
    check_monitor("checkpoint.monitor", "bleu/dev", LOGGED, others_log=True)
    with pytest.raises(InputError, match="val_wer/test-other"):
        check_monitor("checkpoint.monitor", "val_wer/test-other", LOGGED, others_log=True)


class Names(Callback):
    """Return the names of all metrics that can be monitored after a validation."""

    def on_validation_end(self, trainer, pl_module):
        self.names = set(trainer.callback_metrics)


@pytest.mark.parametrize("splits", [["dev"], ["dev", "dev2"]])
@pytest.mark.parametrize(
    "module", [Wav2Vec2CTC, pytest.param(Wav2Vec2Pretraining, marks=pytest.mark.filterwarnings("ignore"))]
)
def test_names_are_told_beforehand_as_they_are_logged(module, splits, corpus, tmp_path):
    extra = {"codevector_dim": 16, "proj_codevector_dim": 16, "num_codevectors_per_group": 20}
    module = module(None, TINY_CONFIG | (extra if module is Wav2Vec2Pretraining else {}))
    names, throughput = Names(), Throughput()
    options = {"max_epochs": 1, "log_every_n_steps": 1, "enable_checkpointing": False, "callbacks": [names, throughput]}
    datamodule = data(corpus, val_splits=splits)
    trainer(tmp_path, **options).fit(module, datamodule=datamodule)
    told = {*module.logged_names(splits), *throughput.logged_names}
    only_on_a_gpu = {"mfu", "gpu_utilisation", "gpu_power_w", "gpu_memory_gib"}
    assert names.names <= told
    assert {name.removeprefix("throughput/") for name in told - names.names} <= only_on_a_gpu


@pytest.mark.parametrize("splits", [["dev"], ["dev", "dev2"]])
def test_the_score_of_a_split_is_monitored_also_where_it_is_the_only_one(splits, corpus, tmp_path):
    best = ModelCheckpoint(monitor="val_wer/dev", dirpath=tmp_path)
    module = Wav2Vec2CTC(None, TINY_CONFIG)
    trainer(tmp_path, max_epochs=1, callbacks=[best]).fit(module, datamodule=data(corpus, val_splits=splits))
    assert best.best_model_score is not None


@pytest.mark.parametrize("callback", [ModelCheckpoint, EarlyStopping])
def test_a_script_is_told_before_its_first_step(callback, corpus, tmp_path):
    run = trainer(tmp_path, max_steps=1, callbacks=[callback(monitor="val_wer/dev2")])
    with pytest.raises(InputError, match=rf"{callback.__name__}.monitor, in trainer.callbacks: .*val_wer/dev2"):
        run.fit(Wav2Vec2CTC(None, TINY_CONFIG), datamodule=data(corpus))
    assert run.global_step == 0


def test_without_a_validation_nothing_is_chosen(corpus, tmp_path):
    best = ModelCheckpoint(monitor="val_wer/dev2", dirpath=tmp_path)
    run = trainer(tmp_path, max_steps=1, callbacks=[best], limit_val_batches=0)
    run.fit(Wav2Vec2CTC(None, TINY_CONFIG), datamodule=data(corpus))
    assert run.global_step == 1


# ---- on the command line --------------------------------------------------------------------------------------------


def fit(corpus, tmp_path, capsys, *options, callbacks=()):
    config = {
        "model": {"pretrained": None, "config": TINY_CONFIG},
        "data": {"root": str(corpus), "train_splits": ["train"], "val_splits": ["dev"], "num_workers": 0},
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "default_root_dir": str(tmp_path), "logger": False}
        | {"enable_progress_bar": False, "callbacks": list(callbacks)},
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(config))
    status = main(["fit", "--config", str(tmp_path / "tiny.yaml"), *options])
    return status, capsys.readouterr().err


def test_the_recipes_monitor_is_refused_before_any_data_are_read_where_its_split_is_not_scored(tmp_path, capsys):
    status, error = fit(tmp_path / "nowhere", tmp_path, capsys, "--checkpoint.monitor=val_wer/dev-other")
    assert status == 2
    assert error.splitlines()[-1].startswith(
        "error: checkpoint.monitor: nothing is logged as 'val_wer/dev-other'. Did you mean val_wer/dev? With these"
        " data.val_splits the metrics are val_wer, val_cer, val_loss, val_wer/dev, val_cer/dev, "
    )


def test_a_users_callback_is_checked_too(corpus, tmp_path, capsys):
    stopping = {"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": {"monitor": "val_weer"}}
    status, error = fit(corpus, tmp_path, capsys, callbacks=[stopping])
    assert status == 2
    assert "error: EarlyStopping.monitor, in trainer.callbacks: " in error
    assert "Did you mean val_wer?" in error


def test_the_only_split_is_monitored_and_shown_once(corpus, tmp_path, capsys):
    status, error = fit(corpus, tmp_path, capsys, "--checkpoint.monitor=val_wer/dev")
    assert status == 0, error
    (best,) = tmp_path.rglob("best.ckpt")
    assert main(["validate", "--config", str(tmp_path / "tiny.yaml"), f"--ckpt_path={best}"]) == 0
    table = capsys.readouterr().out
    assert table.count("val_wer") == table.count("val_cer") == 1


@pytest.mark.parametrize("option", ["--data.val_splits=[]", "--trainer.limit_val_batches=0"])
def test_a_run_that_validates_nothing_is_not_warned_of_its_monitor(option, corpus, tmp_path, capsys, monkeypatch):
    told = []
    monkeypatch.setattr(model_checkpoint.warning_cache, "warn", told.append)  # it warns only once per process
    status, error = fit(corpus, tmp_path, capsys, option)
    assert status == 0, error
    assert not told
