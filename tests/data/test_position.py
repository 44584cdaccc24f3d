"""Resuming an interrupted run, also on another machine: it trains on the same data as an uninterrupted run.

Every behaviour of Lightning 2.6 that could skip or repeat utterances when it resumes within an epoch has a test: the
sampler's epoch (`test_..._another_order_in_every_epoch`), iterators that are made before set_epoch is called, epochs
that end without exhausting the generator, a length that is read only once, samplers replaced under DDP
(tests/integration/test_foreign_script.py), state of rank 0 only, and another number of devices.
"""

import numpy as np
import pytest
import torch
from corpus import random_texts, write_split
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint, OnExceptionCheckpoint

from w2v_lightning.data import plan
from w2v_lightning.data.datamodule import LibriSpeechDataModule
from w2v_lightning.errors import InputError

EPOCHS = 2
MACHINES = {"the same": {}, "smaller devices": {"device_seconds": 2.2}, "one large device": {"device_seconds": 9}}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("corpus")
    cache = pytest.MonkeyPatch()
    cache.setenv("W2V_LIGHTNING_CACHE", str(root / "cache"))
    write_split(root, "train", random_texts(30, seed=1), speaker="1")
    write_split(root, "dev", random_texts(3, seed=3), speaker="3")
    yield root
    cache.undo()


def data_of(root, **options) -> LibriSpeechDataModule:
    settings = {"train_splits": ["train"], "val_splits": ["dev"], "batch_seconds": 9, "device_seconds": 3.3}
    return LibriSpeechDataModule(str(root), **settings | {"num_workers": 0} | options)


class Listener(LightningModule):
    """Module that records (epoch of the plan, step, ids) of each micro-batch."""

    def __init__(self, fail_at: int | None = None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.received: list[tuple[int, int, tuple[str, ...]]] = []
        self.validations: list[int] = []
        self.fail_at = fail_at

    def training_step(self, batch, _):
        if len(self.received) == self.fail_at:
            raise RuntimeError("power cut")
        self.received.append((self.current_epoch, batch.global_step, tuple(batch.ids)))
        return self.weight * 1

    def validation_step(self, batch, _): ...

    def on_validation_end(self):
        self.validations.append(self.trainer.global_step)

    def configure_optimizers(self):
        self.trainer.estimated_stepping_batches  # noqa: B018  as a schedule does; it makes the loader at once
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def on_load_checkpoint(self, checkpoint):
        self.trainer.datamodule.align_progress(checkpoint)


class SaveAfterEveryBatch(Callback):
    """Save after every micro-batch, also in the middle of a step, as a time-based checkpoint may."""

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        trainer.save_checkpoint(f"{trainer.default_root_dir}/batch{len(module.received)}.ckpt")


def fit(root, folder, module=None, ckpt_path=None, callbacks=(), epochs=EPOCHS, **options):
    module, data = module or Listener(), data_of(root, **options.pop("data", {}))
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "num_sanity_val_steps"), False)
    settings = {"accelerator": "cpu", "max_epochs": epochs, "default_root_dir": folder, "enable_checkpointing": False}
    if any(isinstance(callback, Checkpoint) for callback in callbacks):
        settings["enable_checkpointing"] = True
    trainer = Trainer(**quiet | settings | options, callbacks=list(callbacks))
    trainer.fit(module, data, ckpt_path=ckpt_path)
    return module, data, trainer


def steps(module) -> dict[tuple[int, int], set[str]]:
    """Return the set of utterances of each (epoch, step); fillers repeat an utterance of their step."""
    found: dict[tuple[int, int], set[str]] = {}
    for epoch, step, ids in module.received:
        found.setdefault((epoch, step), set()).update(ids)
    return found


def logged_steps(trainer: Trainer) -> int:
    """Return the x-axis of the loggers, which Lightning counts separately from global_step."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped


@pytest.fixture(scope="module")
def whole(root, tmp_path_factory):
    """Uninterrupted run, with a checkpoint after every micro-batch and after every step."""
    folder = tmp_path_factory.mktemp("whole")
    every_step = ModelCheckpoint(dirpath=folder, filename="step{step}", every_n_train_steps=1, save_top_k=-1)
    module, data, trainer = fit(root, folder, callbacks=[every_step, SaveAfterEveryBatch()])
    assert data.train_sampler.num_steps >= 4
    assert data.train_sampler.num_micro_batches == 3
    assert trainer.global_step == EPOCHS * data.train_sampler.num_steps
    return folder, module, data


def test_every_epoch_is_whole_and_another_order_in_every_epoch(whole):
    _, module, data = whole
    epochs = [[ids for e, _, ids in module.received if e == epoch] for epoch in range(EPOCHS)]
    for epoch in epochs:
        assert sorted({i for ids in epoch for i in ids}) == sorted(data.train_dataset.manifest.ids)
        assert len(epoch) == len(data.train_sampler)
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("machine", MACHINES)
def test_after_every_number_of_steps_the_rest_is_exactly_the_rest(root, whole, machine, tmp_path):
    folder, uninterrupted, data = whole
    expected = steps(uninterrupted)
    num_steps = data.train_sampler.num_steps
    for done in range(1, EPOCHS * num_steps):
        checkpoint = folder / f"stepstep={done}.ckpt"
        module, _, trainer = fit(root, tmp_path, ckpt_path=checkpoint, data=MACHINES[machine])
        rest = {place: ids for place, ids in expected.items() if place >= divmod(done, num_steps)}
        assert steps(module) == rest, f"after {done} steps"
        assert trainer.global_step == EPOCHS * num_steps
        assert trainer.current_epoch == EPOCHS
        assert logged_steps(trainer) == trainer.global_step


@pytest.mark.parametrize("machine", MACHINES)
def test_a_checkpoint_in_the_middle_of_a_step_goes_back_to_its_beginning(root, whole, machine, tmp_path):
    folder, uninterrupted, data = whole
    expected, per_step = steps(uninterrupted), data.train_sampler.num_micro_batches
    num_steps = data.train_sampler.num_steps
    for batches in range(1, EPOCHS * len(data.train_sampler)):
        module, _, trainer = fit(root, tmp_path, ckpt_path=folder / f"batch{batches}.ckpt", data=MACHINES[machine])
        rest = {place: ids for place, ids in expected.items() if place >= divmod(batches // per_step, num_steps)}
        assert steps(module) == rest, f"after {batches} micro-batches"
        assert trainer.global_step == EPOCHS * num_steps


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("done", [2, "the epoch"])
def test_on_another_number_of_workers(root, whole, workers, done, tmp_path):
    folder, uninterrupted, data = whole
    num_steps = data.train_sampler.num_steps
    done = num_steps if done == "the epoch" else done
    module, *_ = fit(root, tmp_path, ckpt_path=folder / f"stepstep={done}.ckpt", data={"num_workers": workers})
    assert module.received == [h for h in uninterrupted.received if h[:2] >= divmod(done, num_steps)]


def test_a_second_interruption_changes_nothing(root, whole, tmp_path):
    folder, uninterrupted, _ = whole
    again = SaveAfterEveryBatch()
    module, *_ = fit(
        root, tmp_path, ckpt_path=folder / "stepstep=1.ckpt", callbacks=[again], data={"device_seconds": 9}
    )
    once_more, *_ = fit(root, tmp_path, ckpt_path=tmp_path / "batch2.ckpt")
    first = steps(module)
    received_before = {place: ids for place, ids in first.items() if place < min(steps(once_more))}
    assert received_before | steps(once_more) == {p: ids for p, ids in steps(uninterrupted).items() if p >= (0, 1)}
    assert received_before


@pytest.mark.parametrize("batches", [1, 3, 4, 5, 16])
def test_a_checkpoint_from_an_exception(root, whole, batches, tmp_path):
    _, uninterrupted, data = whole
    per_step, num_steps = data.train_sampler.num_micro_batches, data.train_sampler.num_steps
    with pytest.raises(RuntimeError, match="power cut"):
        fit(root, tmp_path, Listener(fail_at=batches), callbacks=[OnExceptionCheckpoint(tmp_path, "crash")])
    module, _, trainer = fit(root, tmp_path, ckpt_path=tmp_path / "crash.ckpt", data={"device_seconds": 2.2})
    done = divmod(batches // per_step, num_steps)
    assert steps(module) == {place: ids for place, ids in steps(uninterrupted).items() if place >= done}
    assert trainer.global_step == EPOCHS * num_steps


def test_validations_that_are_still_to_come_come_once(root, whole, tmp_path):
    """Run the validation that is due right after the checkpoint's step: Lightning would count it as done."""
    folder, uninterrupted, data = whole
    num_steps = data.train_sampler.num_steps
    for done in range(1, EPOCHS * num_steps):
        module, *_ = fit(root, tmp_path, ckpt_path=folder / f"stepstep={done}.ckpt", data={"device_seconds": 9})
        assert module.validations == [step for step in uninterrupted.validations if step > done], done


def test_the_state_is_the_same_on_every_rank(root, whole):
    """Resume from a checkpoint that only rank 0 has written."""
    _, _, data = whole
    for rank in range(3):
        other = data_of(root)
        other.train_dataset, other.train_sampler, other.trainer = data.train_dataset, data.train_sampler, data.trainer
        other.train_sampler.rank = rank
        assert other.state_dict() == data.state_dict()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"batch_seconds": 8}, r"data\.batch_seconds \(was 9, is 8\)"),
        ({"seed": 5}, r"data\.seed \(was 0, is 5\)"),
        ({"max_seconds": 1.5}, r"utterances \(was 30, is \d+\); ids; durations; transcripts"),
        ({"duration_spread": 1.5}, r"data\.duration_spread \(was 1\.05, is 1\.5\)"),
    ],
)
def test_changed_data_are_refused_by_name(root, whole, change, named, tmp_path):
    folder, *_ = whole
    with pytest.raises(InputError, match=f"made with other data: {named}.*data.allow_changed_data=true to restart its"):
        fit(root, tmp_path, ckpt_path=folder / "stepstep=2.ckpt", data=change)


def test_other_rules_for_making_steps_are_a_change(root, whole, tmp_path, monkeypatch):
    folder, *_ = whole
    monkeypatch.setattr(plan, "VERSION", plan.VERSION + 1)
    with pytest.raises(InputError, match=r"made with other data: version of the plan \(was \d, is \d\)\. Resume with"):
        fit(root, tmp_path, ckpt_path=folder / "stepstep=2.ckpt")


def test_an_edited_transcript_is_a_change(root, whole, tmp_path):
    folder, _, data = whole
    manifest = data.datasets["train"].manifest
    manifest.texts[3] += " A"
    manifest.save(tmp_path / "train.jsonl")
    data.datasets["dev"].manifest.save(tmp_path / "dev.jsonl")
    manifest.texts[3] = manifest.texts[3][:-2]
    with pytest.raises(InputError, match=r"made with other data: transcripts\. Resume with"):
        fit(tmp_path, tmp_path, ckpt_path=folder / "stepstep=2.ckpt")


def test_changed_data_may_be_allowed_and_the_epoch_begins_anew(root, whole, tmp_path):
    folder, _, data = whole
    done = data.train_sampler.num_steps + 2
    options = {"max_seconds": 1.5, "allow_changed_data": True}
    module, data, _ = fit(root, tmp_path, ckpt_path=folder / f"stepstep={done}.ckpt", data=options)
    assert {epoch for epoch, *_ in module.received} == {1}
    assert sorted(i for _, _, ids in module.received for i in ids) == sorted(data.train_dataset.manifest.ids)
    assert np.all(data.train_dataset.manifest.durations_s_N <= 1.5)
