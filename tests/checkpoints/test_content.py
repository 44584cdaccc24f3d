"""Content of checkpoints whose bytes are right: what is missing or of another type is found before it is used."""

import copy

import pytest
import torch
from tiny import TINY_CONFIG, data, trainer, write_corpus

from w2v_lightning import Wav2Vec2CTC
from w2v_lightning.checkpoints import content, files
from w2v_lightning.checkpoints.history import RunHistory


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    run = trainer(folder, max_steps=1, limit_val_batches=0, callbacks=[RunHistory(str(folder), "", {})])
    run.fit(Wav2Vec2CTC(None, TINY_CONFIG), datamodule=data(write_corpus(folder / "corpus")))
    return torch.load(run.checkpoint_callback.best_model_path, weights_only=True)


@pytest.fixture
def checkpoint(saved):
    return copy.deepcopy(saved)


def put(*path):
    """Return a function that replaces the value at a path of keys; the last element is the value."""
    *parents, key, value = path

    def change(checkpoint):
        for parent in parents:
            checkpoint = checkpoint[parent]
        checkpoint[key] = value

    return change


def drop(*path):
    *parents, key = path

    def change(checkpoint):
        for parent in parents:
            checkpoint = checkpoint[parent]
        del checkpoint[key]

    return change


DATA = "LibriSpeechDataModule"
BATCHES = "epoch_loop.batch_progress"
UPDATES = "epoch_loop.automatic_optimization.optim_progress"

OF_EVERY_COMMAND = [
    (drop("state_dict"), "it lacks 'state_dict'"),
    (put("state_dict", [1]), "state_dict must be a mapping, found [1]"),
    (put("state_dict", "model.lm_head.bias", 1), "state_dict.model.lm_head.bias must be a Tensor, found 1"),
    (put("callbacks", [1, 2]), "callbacks must be a mapping, found [1, 2]"),
    (put("callbacks", {"Throughput": 3}), "callbacks.Throughput must be a mapping, found 3"),
    (put("hyper_parameters", [1]), "hyper_parameters must be a mapping"),
    (put("loops", "x"), "loops must be a mapping"),
    (put("epoch", "a"), "epoch must be a whole number, found 'a'"),
    (put("global_step", None), "global_step must be a whole number, found None"),
    (drop("pytorch-lightning_version"), "it lacks 'pytorch-lightning_version'"),
    (put("pytorch-lightning_version", 3), "pytorch-lightning_version must be a version such as 2.6.4, found 3"),
    (put("pytorch-lightning_version", "new"), "pytorch-lightning_version must be a version"),
    (put("run", [1]), "run must be a mapping"),
    (put("run", "segments", 3), "run.segments must be a list"),
    (put("run", "segments", [3]), "run.segments[0] must be a mapping"),
    (put("run", "config", {}), "run.config must be a string"),
]

OF_FIT = [
    (put("optimizer_states", []), "it lacks the state of the optimiser"),
    (put("optimizer_states", ["a"]), "optimizer_states[0] must be a mapping"),
    (put("optimizer_states", 0, "state", {}), "it lacks the state of the optimiser"),
    (put("optimizer_states", 0, "param_groups", []), "it lacks the state of the optimiser"),
    (put("optimizer_states", 0, "state", 0, [1]), "optimizer_states[0].state[0] must be a mapping"),
    (drop("optimizer_states", 0, "state", 0, "exp_avg"), "it lacks 'exp_avg' in optimizer_states[0].state[0]"),
    (put("optimizer_states", 0, "state", 0, "step", 2), "optimizer_states[0].state[0].step must be a Tensor"),
    (put("optimizer_states", 0, "state", 0, "exp_avg", torch.zeros(7)), "tensors of the wrong shape"),
    (put("optimizer_states", 0, "state", 0, "step", torch.zeros(2)), "tensors of the wrong shape"),
    (put("optimizer_states", 0, "param_groups", 0, "params", 1, 0), "belongs to other parameters"),
    (put("optimizer_states", 0, "param_groups", 0, "params", 1, "x"), "params[1] must be a whole number, found 'x'"),
    (put("lr_schedulers", 0, "lr_lambdas", [1.5]), "must be a mapping or null, found 1.5"),
    (put("lr_schedulers", 0, "last_epoch", None), "lr_schedulers[0].last_epoch must be a whole number"),
    (drop("lr_schedulers"), "it lacks 'lr_schedulers'"),
    (put("lr_schedulers", None), "lr_schedulers must be a list, found None"),
    (drop("loops"), "it lacks 'loops'"),
    (put("loops", {}), "it lacks 'fit_loop' in loops"),
    (put("loops", "fit_loop", BATCHES, 4), f"loops.fit_loop.{BATCHES} must be a mapping, found 4"),
    (put("loops", "fit_loop", "epoch_progress", "current", {}), "it lacks 'ready' in loops.fit_loop.epoch_progress"),
    (put("loops", "fit_loop", UPDATES, "optimizer", "step", "current", "completed", "2"), "must be a whole number"),
    (put(DATA, [1]), f"{DATA} must be a mapping"),
    (put(DATA, {}), f"it lacks 'epoch' in {DATA}"),
    (put(DATA, "fingerprint", "x"), f"{DATA}.fingerprint must be a mapping"),
    (put(DATA, "steps_done", None), f"{DATA}.steps_done must be a whole number"),
    (put("current_model_state", {"a": 1}), "current_model_state.a must be a Tensor"),
    (put("current_model_state", {}), "only a part of the state of averaged weights"),
]


def test_what_training_has_saved_is_right(saved):
    assert content.find_fault(saved) is None
    assert content.find_fault(saved, content.Weights) is None


@pytest.mark.parametrize(("change", "expected"), [*OF_EVERY_COMMAND, *OF_FIT])
def test_a_checkpoint_that_cannot_be_resumed_is_described(checkpoint, change, expected):
    change(checkpoint)
    assert expected in content.find_fault(checkpoint)


@pytest.mark.parametrize(("change", "expected"), OF_EVERY_COMMAND)
def test_a_checkpoint_that_cannot_be_scored_is_described(checkpoint, change, expected):
    change(checkpoint)
    assert expected in content.find_fault(checkpoint, content.Weights)


@pytest.mark.parametrize(("change", "_"), OF_FIT[:-1])
def test_what_only_fit_reads_does_not_keep_a_model_from_being_scored(checkpoint, change, _):
    change(checkpoint)
    assert content.find_fault(checkpoint, content.Weights) is None


def test_an_optimiser_of_the_users_own_is_not_looked_into(checkpoint):
    checkpoint["optimizer_states"] = [{"state": {0: {"momentum_buffer": None}}, "param_groups": [{"params": [0]}]}]
    checkpoint["lr_schedulers"] = [{"step_size": 3}]
    assert content.find_fault(checkpoint) is None


def test_what_is_no_mapping_at_all():
    assert content.find_fault([1]) == "it holds a list instead of the state of a run"


def test_a_checkpoint_before_the_first_update_has_no_state_of_the_optimiser_yet(checkpoint):
    checkpoint["global_step"] = 0
    checkpoint["optimizer_states"][0]["state"] = {}
    assert content.find_fault(checkpoint) is None


def test_keys_of_other_programs_and_versions_do_no_harm(checkpoint):
    checkpoint["notes"] = ["mine"]
    for key in ("callbacks", "hyper_parameters", "run", DATA):
        checkpoint.pop(key, None)
    assert content.find_fault(checkpoint) is None


def test_weights_that_are_missing_or_of_another_shape(checkpoint):
    weights = dict(checkpoint["state_dict"])
    assert content.find_misfit(checkpoint, weights) is None
    checkpoint["state_dict"]["model.lm_head.bias"] = torch.zeros(3)
    assert content.find_misfit(checkpoint, weights) == (
        "its weights model.lm_head.bias have the shape [3] instead of [32]"
    )
    del checkpoint["state_dict"]["model.lm_head.bias"]
    assert content.find_misfit(checkpoint, weights) == "it lacks the weights model.lm_head.bias"


def test_a_file_is_checked_as_a_whole(checkpoint, tmp_path):
    path = str(tmp_path / "a.ckpt")
    files.save(checkpoint, path)
    assert content.find_problem(path) is None
    torch.save(checkpoint, path)  # without a checksum, as another program writes it
    assert content.find_problem(path) is None
    del checkpoint["optimizer_states"]
    files.save(checkpoint, path)
    assert content.find_problem(path) == "it lacks 'optimizer_states'"
    assert content.find_problem(path, content.Weights) is None
