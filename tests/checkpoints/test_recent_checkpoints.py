"""Checkpoints at intervals, the newest few kept; a run resumes from any of them bit for bit."""

import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from tiny import TINY_CONFIG, data, trainer, write_corpus

from w2v_lightning import Wav2Vec2CTC
from w2v_lightning.callbacks.averaging import MovingAverage
from w2v_lightning.checkpoints import files, recent
from w2v_lightning.checkpoints.history import RunHistory, read
from w2v_lightning.checkpoints.recent import Interval, RecentCheckpoints, checkpoint_path
from w2v_lightning.checkpoints.writer import BackgroundCheckpointIO
from w2v_lightning.errors import InputError

STEPS, STEPS_OF_EPOCH = 8, 3


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    root = tmp_path_factory.mktemp("corpus")
    cache = pytest.MonkeyPatch()
    cache.setenv("W2V_LIGHTNING_CACHE", str(root / "cache"))
    yield write_corpus(root)
    cache.undo()


def fit(
    corpus, folder, every="1 steps", keep=100, ckpt_path=None, callbacks=(), max_steps=STEPS, device_seconds=6,
    save=files.save,
):  # fmt: skip
    seed_everything(0)
    recent = RecentCheckpoints(str(folder), Interval.parse(every), keep)
    best = ModelCheckpoint(folder, "best", monitor="val_loss", enable_version_counter=False)
    history = RunHistory(str(folder), "model: tiny", {"max_steps": max_steps})
    run = trainer(
        folder, max_steps=max_steps, max_epochs=-1, callbacks=[*callbacks, history, best, recent],
        plugins=[BackgroundCheckpointIO(save)],
    )  # fmt: skip
    module = Wav2Vec2CTC(None, TINY_CONFIG, learning_rate=1e-2, freeze_feature_encoder=False, hidden_dropout=0.2)
    datamodule = data(corpus, batch_seconds=14, device_seconds=device_seconds)
    run.fit(module, datamodule, ckpt_path=ckpt_path)
    assert datamodule.train_sampler.num_steps == STEPS_OF_EPOCH
    return module, run


def names(folder):
    return [os.path.basename(path) for path in files.list_checkpoints(str(folder))]


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory):
    """Uninterrupted run with dropout and averaged weights, and a checkpoint after each step."""
    folder = tmp_path_factory.mktemp("whole")
    module, _ = fit(corpus, folder, callbacks=[MovingAverage(0.7)])
    return folder, module


def test_from_every_step_a_run_ends_bit_for_bit_as_the_uninterrupted_one(corpus, whole, tmp_path):
    folder, uninterrupted = whole
    assert names(folder) == ["best.ckpt", *(f"step-{step:08}.ckpt" for step in range(1, STEPS + 1))]
    for step in range(1, STEPS):
        path = folder / f"step-{step:08}.ckpt"
        module, run = fit(corpus, tmp_path / str(step), ckpt_path=path, callbacks=[MovingAverage(0.7)])
        assert run.global_step == STEPS
        for name, wanted in uninterrupted.state_dict().items():
            assert torch.equal(module.state_dict()[name], wanted), f"{name} after {step} steps"
        ends = [torch.load(f / f"step-{STEPS:08}.ckpt", weights_only=True) for f in (folder, tmp_path / str(step))]
        trained, trained_again = (end["current_model_state"] for end in ends)
        assert all(torch.equal(value, trained_again[name]) for name, value in trained.items())
        shutil.rmtree(tmp_path / str(step))


@pytest.mark.parametrize("max_steps", [5, 6], ids=["in mid-epoch", "after an epoch"])
def test_a_finished_run_trains_on(corpus, tmp_path, max_steps):
    fit(corpus, tmp_path, every="never", max_steps=max_steps, callbacks=[MovingAverage(0.7)])
    last = tmp_path / f"step-{max_steps:08}.ckpt"
    state = torch.load(last, weights_only=True)
    weight = "model.lm_head.weight"  # the trained weights, not the average that is in the module at the end
    assert not torch.equal(state["current_model_state"][weight], state["state_dict"][weight])
    trained = TrainedSteps()
    _, run = fit(corpus, tmp_path, ckpt_path=last, callbacks=[MovingAverage(0.7), trained])
    assert run.global_step == STEPS
    assert sorted(trained.steps) == sorted(divmod(step, STEPS_OF_EPOCH) for step in range(max_steps, STEPS))


class TrainedSteps(Callback):
    """Callback that records the (epoch, step) of each batch."""

    def __init__(self):
        self.steps = set()

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.steps.add((trainer.current_epoch, batch.global_step))


def test_the_newest_few_and_the_best_are_kept(corpus, tmp_path):
    _, run = fit(corpus, tmp_path, every="3 steps", keep=2)
    assert names(tmp_path) == ["best.ckpt", "step-00000006.ckpt", "step-00000008.ckpt"]
    assert all(files.find_damage(str(path)) is None for path in tmp_path.glob("*.ckpt"))
    assert run.checkpoint_callback.best_model_path == str(tmp_path / "best.ckpt")


def test_a_slow_disk_has_no_more_of_them(corpus, tmp_path):
    """Save faster than the disk: the previous checkpoint is not written yet when the next is requested."""

    def save(checkpoint, path):
        time.sleep(0.3)
        files.save(checkpoint, path)

    fit(corpus, tmp_path, every="1 steps", keep=2, max_steps=4, save=save)
    assert names(tmp_path) == ["best.ckpt", "step-00000003.ckpt", "step-00000004.ckpt"]


def test_never_is_only_at_the_end(corpus, tmp_path):
    fit(corpus, tmp_path, every="never", max_steps=2)
    assert names(tmp_path) == ["step-00000002.ckpt"]


class Clock(Callback):
    """Simulate a minute per micro-batch on the clock that RecentCheckpoints reads."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(recent.time, "monotonic", lambda: self.now)

    def on_train_batch_end(self, *_):
        self.now += 60


def test_by_time_it_is_the_next_beginning_of_a_step(corpus, tmp_path, monkeypatch):
    _, run = fit(corpus, tmp_path, every="10m", callbacks=[Clock(monkeypatch)])
    assert run.accumulate_grad_batches == 3
    assert names(tmp_path) == ["best.ckpt", "step-00000004.ckpt", "step-00000008.ckpt"]


class Stop(Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step == self.step:
            raise RuntimeError("power cut")


def test_a_killed_run_whose_leftovers_are_newer_than_what_it_goes_on_from(corpus, tmp_path):
    with pytest.raises(RuntimeError, match="power cut"):
        fit(corpus, tmp_path, callbacks=[Stop(6)])
    (tmp_path / f".step-00000006.ckpt{files.TEMPORARY}77").touch()
    fit(corpus, tmp_path, every="5 steps", ckpt_path=tmp_path / "step-00000003.ckpt", max_steps=5)
    assert [path.name for path in tmp_path.glob("*.set-aside")].count("step-00000004.ckpt.set-aside") == 1
    assert names(tmp_path)[-2:] == ["step-00000003.ckpt", "step-00000005.ckpt"]
    assert not list(tmp_path.glob(f"*{files.TEMPORARY}*"))


@pytest.mark.parametrize(
    ("text", "interval"),
    [
        ("90s", Interval(seconds=90)),
        ("15m", Interval(seconds=900)),
        ("1.5h", Interval(seconds=5400)),
        ("500 steps", Interval(steps=500)),
        ("1 step", Interval(steps=1)),
        ("never", Interval()),
    ],
)
def test_intervals(text, interval):
    assert Interval.parse(text) == interval


@pytest.mark.parametrize("text", ["", "15", "0 steps", "-3m", "1d", "steps", "15 minutes"])
def test_what_is_no_interval_is_refused(text):
    with pytest.raises(InputError, match="checkpoint_every"):
        Interval.parse(text)


def test_none_to_keep_is_refused(tmp_path):
    with pytest.raises(InputError, match="checkpoint_keep is 0, must be at least 1"):
        RecentCheckpoints(str(tmp_path), Interval(), keep=0)


class Ranks:
    """Fake strategy in which rank 0 has chosen `first`."""

    def __init__(self, first):
        self.first = first

    def broadcast(self, _):
        return self.first

    def reduce_boolean_decision(self, decision, all):
        return decision


def test_hosts_that_see_different_folders_are_told(tmp_path):
    recent = RecentCheckpoints(str(tmp_path), Interval())
    recent.resume_from = None
    with pytest.raises(InputError, match=r"Rank 0 resumes from a\.ckpt, another rank does not: checkpoint\.dirpath"):
        recent.setup(SimpleNamespace(strategy=Ranks("a.ckpt")), None, "fit")
    recent.resume_from = "a.ckpt"
    recent.setup(SimpleNamespace(strategy=Ranks("a.ckpt")), None, "fit")


def test_ranks_that_share_a_model_out_save_by_steps(tmp_path, monkeypatch):
    strategy = ModelParallelStrategy()
    monkeypatch.setattr(strategy, "broadcast", lambda value: value)
    monkeypatch.setattr(strategy, "reduce_boolean_decision", lambda decision, all: decision)
    with pytest.raises(InputError, match="give a number of steps"):
        RecentCheckpoints(str(tmp_path), Interval(seconds=9)).setup(SimpleNamespace(strategy=strategy), None, "fit")
    RecentCheckpoints(str(tmp_path), Interval(steps=9)).setup(SimpleNamespace(strategy=strategy), None, "fit")


def test_where_a_checkpoint_of_this_moment_belongs(tmp_path):
    recent = RecentCheckpoints(str(tmp_path / "there"), Interval())
    assert checkpoint_path(SimpleNamespace(callbacks=[recent], global_step=5)) == str(
        tmp_path / "there/step-00000005.ckpt"
    )
    alone = SimpleNamespace(callbacks=[], global_step=5, default_root_dir="runs")
    assert checkpoint_path(alone) == "runs/checkpoints/step-00000005.ckpt"


# ---- what a checkpoint says of its run ------------------------------------------------------------------------------


def test_a_checkpoint_has_all_that_led_to_it(corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("SM_HOSTS", '["algo-1"]')
    monkeypatch.setenv("SM_CURRENT_HOST", "algo-1")
    monkeypatch.setenv("SM_CURRENT_INSTANCE_TYPE", "ml.g5.xlarge")
    with pytest.raises(RuntimeError, match="power cut"):
        fit(corpus, tmp_path, every="2 steps", callbacks=[Stop(5)])
    monkeypatch.setenv("SM_CURRENT_INSTANCE_TYPE", "ml.g4dn.xlarge")
    fit(corpus, tmp_path, every="2 steps", ckpt_path=tmp_path / "step-00000004.ckpt", max_steps=7)

    run = torch.load(tmp_path / "step-00000006.ckpt", weights_only=True)["run"]
    assert run["config"] == "model: tiny"
    assert run["versions"]["torch"] == torch.__version__
    head = Path(__file__).parents[2] / ".git"
    assert (len(run["git_commit"]) == 40) if head.exists() else (run["git_commit"] is None)
    steps = [(segment["first_step"], segment["last_step"], segment["end"]) for segment in run["segments"]]
    assert steps == [(0, 5, "RuntimeError"), (4, 6, "running")]
    assert [segment["instance_type"] for segment in run["segments"]] == ["ml.g5.xlarge", "ml.g4dn.xlarge"]
    assert all(segment["started"] < segment["ended"] for segment in run["segments"])

    history = read(str(tmp_path))
    assert [segment["end"] for segment in history] == ["RuntimeError", "finished"]
    assert history[-1]["last_step"] == 7


def test_a_killed_process_leaves_what_its_last_checkpoint_knew(corpus, tmp_path):
    fit(corpus, tmp_path, every="2 steps", max_steps=2)
    (tmp_path / "run_history.json").unlink()  # as on another host, which only has the checkpoint
    fit(corpus, tmp_path, ckpt_path=tmp_path / "step-00000002.ckpt", max_steps=3)
    assert [segment["first_step"] for segment in read(str(tmp_path))] == [0, 2]


@pytest.mark.parametrize("text", ['[{"started": "20', '{"a": 1}', "[1]", '[{"started": "2026", "end": 1}]'])
def test_a_history_that_cannot_be_read_is_begun_anew(corpus, tmp_path, text):
    (tmp_path / "run_history.json").write_text(text)
    fit(corpus, tmp_path, max_steps=1)
    assert [segment["end"] for segment in read(str(tmp_path))] == ["finished"]
