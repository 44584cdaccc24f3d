"""Restarts of the same `fit` command: where it resumes, and when it refuses."""

import json
import logging
import os
import shutil
import signal
import time

import pytest
import torch
import yaml
from tiny import TINY_CONFIG, write_corpus

from w2v_lightning import Wav2Vec2CTC
from w2v_lightning.__main__ import main
from w2v_lightning.callbacks.preemption import Preemption
from w2v_lightning.checkpoints import files, history
from w2v_lightning.runtime import signals

STEPS = 6
AVERAGE = "w2v_lightning.callbacks.averaging.MovingAverage"


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    config = {
        "model": {"pretrained": None, "config": TINY_CONFIG, "freeze_feature_encoder": False, "learning_rate": 1e-3},
        "data": {"root": str(write_corpus(folder / "corpus")), "train_splits": ["train"], "val_splits": ["dev"],
                 "batch_seconds": 14, "device_seconds": 14, "num_workers": 0},
        "trainer": {"max_steps": STEPS, "max_epochs": -1, "accelerator": "cpu", "enable_progress_bar": False,
                    "num_sanity_val_steps": 0},
        "checkpoint_every": "1 steps",
        "checkpoint_keep": 3,
    }  # fmt: skip
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def fit(config, root, *options):
    """Run `fit` into a folder and return its exit status."""
    try:
        return main(["fit", "--config", str(config), "--trainer.default_root_dir", str(root), *map(str, options)])
    except SystemExit as exit_:
        return exit_.code


def first_steps(root):
    return [segment["first_step"] for segment in json.loads((root / "checkpoints" / "run_history.json").read_text())]


def weights(root):
    return torch.load(root / "checkpoints" / f"step-{STEPS:08}.ckpt", weights_only=True)["state_dict"]


def interrupt(step, *command):
    """Callback that raises in the step after `steps`."""
    training_step = Wav2Vec2CTC.training_step

    def until(module, batch, batch_idx):
        if module.global_step == step:
            raise KeyError("power cut")
        return training_step(module, batch, batch_idx)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Wav2Vec2CTC, "training_step", until)
        with pytest.raises(KeyError, match="power cut"):
            fit(*command)


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    root = tmp_path_factory.mktemp("whole")
    assert fit(config, root) == 0
    return root


@pytest.fixture(scope="module")
def interrupted_once(config, tmp_path_factory):
    root = tmp_path_factory.mktemp("interrupted")
    interrupt(5, config, root)
    assert [files.global_step(path) for path in files.list_checkpoints(str(root / "checkpoints"))] == [3, 3, 4, 5]
    return root


@pytest.fixture
def interrupted(interrupted_once, tmp_path):
    """Folder of a run interrupted in its sixth step: best.ckpt, and the checkpoints of steps 3, 4 and 5."""
    return shutil.copytree(interrupted_once, tmp_path / "interrupted")


def test_the_same_command_goes_on_and_ends_as_if_nothing_had_happened(config, whole, interrupted, caplog):
    with caplog.at_level(logging.INFO, "w2v_lightning"):
        assert fit(config, interrupted) == 0
    assert f"Resuming from {interrupted}/checkpoints/step-00000005.ckpt" in caplog.messages
    assert first_steps(interrupted) == [0, 5]
    expected, result = weights(whole), weights(interrupted)
    assert all(torch.equal(expected[name], result[name]) for name in expected)
    assert list(interrupted.rglob("model.safetensors"))


def test_a_run_that_has_ended_says_so_and_trains_on_if_asked_to(config, whole, tmp_path, caplog):
    root = shutil.copytree(whole, tmp_path / "whole")
    with caplog.at_level(logging.INFO, "w2v_lightning"):
        assert fit(config, root) == 0
    assert any(message.startswith(f"This run is finished, at step {STEPS}: {whole}") for message in caplog.messages)
    assert first_steps(root) == [0]
    assert fit(config, root, "--trainer.max_steps", STEPS + 1) == 0
    assert first_steps(root) == [0, STEPS]


def test_a_run_that_was_killed_before_its_model_was_written_writes_it(config, whole, tmp_path):
    root = shutil.copytree(whole, tmp_path / "whole")
    history = root / "checkpoints" / "run_history.json"
    history.write_text(history.read_text().replace('"finished"', '"running"'))
    shutil.rmtree(root / "lightning_logs")
    assert fit(config, root) == 0
    assert list(root.rglob("model.safetensors"))
    assert fit(config, root) == 0
    assert first_steps(root) == [0, STEPS]


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-500])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.write_bytes(data)


DAMAGES = {"truncated": cut_off, "flipped": flip, "empty": lambda path: path.write_bytes(b""), "missing": os.remove}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_one_is_named_and_the_one_before_is_taken(config, interrupted, damage, caplog):
    newest = interrupted / "checkpoints" / "step-00000005.ckpt"
    DAMAGES[damage](newest)
    assert fit(config, interrupted) == 0
    assert first_steps(interrupted) == [0, 4]
    named = [message for message in caplog.messages if f"Skipping checkpoint {newest}: " in message]
    assert len(named) == (damage != "missing")


def test_where_all_are_damaged_auto_begins_anew_and_must_does_not(config, interrupted, capsys, caplog):
    for path in (interrupted / "checkpoints").glob("*.ckpt"):
        flip(path)
    assert fit(config, interrupted, "--resume", "must") == 2
    assert "holds no complete checkpoint" in capsys.readouterr().err
    assert fit(config, interrupted) == 0
    assert first_steps(interrupted) == [0, 0]
    assert sum(message.startswith("Skipping checkpoint ") for message in caplog.messages) == 2 * 4


def test_must_goes_on(config, interrupted, tmp_path, capsys):
    assert fit(config, tmp_path / "empty", "--resume", "must") == 2
    assert "resume=must" in capsys.readouterr().err
    assert fit(config, interrupted, "--resume", "must") == 0
    assert first_steps(interrupted) == [0, 5]


def test_never_begins_anew_and_loses_nothing(config, interrupted):
    assert fit(config, interrupted, "--resume", "never", "--trainer.max_steps", 2) == 0
    assert first_steps(interrupted) == [0]
    assert [files.global_step(path) for path in files.list_checkpoints(str(interrupted / "checkpoints"))] == [1, 2]
    aside = sorted(path.name for path in (interrupted / "checkpoints").glob("*.set-aside"))
    steps = [f"step-0000000{step}.ckpt.set-aside" for step in (3, 4, 5)]
    assert aside == ["best.ckpt.set-aside", "run_history.json.set-aside", *steps]


def test_what_was_set_aside_is_never_overwritten(config, interrupted):
    for _ in range(3):
        before = {path.read_bytes() for path in (interrupted / "checkpoints").iterdir()}
        assert fit(config, interrupted, "--resume", "never", "--trainer.max_steps", 2) == 0
        assert before <= {path.read_bytes() for path in (interrupted / "checkpoints").iterdir()}


@pytest.mark.parametrize("option", ["--resume", "--ckpt_path"])
def test_a_run_that_began_from_a_path_goes_on_until_it_has_ended(config, whole, tmp_path, option, caplog):
    begins_from = shutil.copy(whole / "checkpoints" / "step-00000004.ckpt", tmp_path / "from.ckpt")
    command = (config, tmp_path / "run", option, begins_from)
    interrupt(5, *command)
    begins_from.unlink()  # not needed any more
    with caplog.at_level(logging.INFO, "w2v_lightning"):
        assert fit(*command) == 0
    newest = tmp_path / "run" / "checkpoints" / "step-00000005.ckpt"
    assert f"Resuming from {newest}, which was trained from {begins_from}" in caplog.messages
    assert first_steps(tmp_path / "run") == [0, 4, 5]  # the first segment belongs to the run of the checkpoint PATH
    expected, result = weights(whole), weights(tmp_path / "run")
    assert all(torch.equal(expected[name], result[name]) for name in expected)
    with caplog.at_level(logging.INFO, "w2v_lightning"):
        assert fit(*command) == 0
    assert any(message.startswith(f"This run is finished, at step {STEPS}") for message in caplog.messages)


def test_going_back_to_a_path_is_done_once_by_the_same_command_and_again_by_another(config, interrupted):
    command = (config, interrupted, "--resume", interrupted / "checkpoints" / "step-00000003.ckpt")
    interrupt(4, *command)
    assert fit(*command, "--trainer.max_steps", 5) == 0
    assert first_steps(interrupted) == [0, 3, 4]
    assert fit(*command, "--trainer.max_steps", 5, "--model.learning_rate", "0.01") == 0
    assert first_steps(interrupted) == [0, 3, 4, 3]


def test_going_back_sets_the_best_one_aside_if_that_is_newer(config, interrupted):
    folder = interrupted / "checkpoints"
    shutil.copy(folder / "step-00000005.ckpt", folder / "best.ckpt")
    assert fit(config, interrupted, "--resume", folder / "step-00000004.ckpt", "--trainer.max_steps", 5) == 0
    assert files.global_step(str(folder / "best.ckpt.set-aside")) == 5
    assert not (folder / "best.ckpt").exists()


@pytest.mark.parametrize(
    ("starts", "expected"),
    [
        ([], "auto"),
        ([(None, 0)], "auto"),  # written by a version without the key
        ([("auto", 0), ("must", 3)], "auto"),
        ([("P", 3), ("auto", 5), ("must", 6)], "P"),
        ([("P", 3), ("auto", 0)], "auto"),  # no checkpoint was complete
        ([("P", 3), ("Q", 5), ("auto", 6)], "Q"),
        ([("P", 3), ("never", 0), ("auto", 6)], "never"),
    ],
)
def test_what_a_run_began_with(starts, expected):
    segments = [{"first_step": step} | ({"resume": resume} if resume else {}) for resume, step in starts]
    assert history.initial_resume(segments) == expected


def sigterm_at(step, monkeypatch):
    """Send SIGTERM in the middle of a step, and wait until it is received."""
    training_step = Wav2Vec2CTC.training_step

    def until(module, batch, batch_idx):
        if module.global_step == step:
            os.kill(os.getpid(), signal.SIGTERM)
            preemption = next(each for each in module.trainer.callbacks if isinstance(each, Preemption))
            give_up_at = time.monotonic() + 30
            while preemption._agreement.last_gate is None:
                assert time.monotonic() < give_up_at
                time.sleep(0.01)
        return training_step(module, batch, batch_idx)

    monkeypatch.setattr(Wav2Vec2CTC, "training_step", until)


@pytest.mark.parametrize(
    ("asked", "said", "goes_on_at"),
    [
        ("auto", "The same command resumes from there", 2),
        ("never", "Resume from there with --resume auto: the same command, with --resume never, would start over", 0),
        ("PATH", "The same command resumes from there", 2),
    ],
)
def test_what_is_said_after_sigterm_is_true(config, whole, tmp_path, asked, said, goes_on_at, caplog, monkeypatch):
    path = shutil.copy(whole / "checkpoints" / "step-00000004.ckpt", tmp_path / "from.ckpt")
    first = 4 if asked == "PATH" else 0
    command = (config, tmp_path / "run", "--resume", path if asked == "PATH" else asked)
    with monkeypatch.context() as patch:
        sigterm_at(first + 1, patch)
        try:
            assert fit(*command, "--trainer.max_steps", 8) == signals.PREEMPTED
        finally:
            signals.sigterm.stop()
    assert f"{said} (exit status 75)." in caplog.messages
    assert fit(*command, "--trainer.max_steps", first + 3) == 0
    assert first_steps(tmp_path / "run")[-1] == (first + 2 if goes_on_at else 0)


def test_two_places_to_begin_from_are_refused(config, interrupted, capsys):
    path = interrupted / "checkpoints" / "step-00000004.ckpt"
    assert fit(config, interrupted, "--resume", "never", "--ckpt_path", path) == 2
    assert f"--resume is never and --ckpt_path is {path}: give one of them." in capsys.readouterr().err


def test_from_a_checkpoint_of_another_program(config, interrupted, tmp_path):
    """Resume from a checkpoint without a checksum, as Lightning writes it."""
    path = interrupted / "checkpoints" / "step-00000004.ckpt"
    torch.save(torch.load(path, weights_only=True), tmp_path / "foreign.ckpt")
    assert fit(config, tmp_path / "other", "--ckpt_path", tmp_path / "foreign.ckpt") == 0
    assert first_steps(tmp_path / "other")[-1] == 4
    cut_off(tmp_path / "foreign.ckpt")
    assert fit(config, tmp_path / "another", "--resume", tmp_path / "foreign.ckpt") == 2


@pytest.mark.parametrize("option", ["--resume", "--ckpt_path"])
def test_from_a_path_also_of_another_run(config, interrupted, tmp_path, option):
    path = interrupted / "checkpoints" / "step-00000004.ckpt"
    assert fit(config, tmp_path / "other", option, path, "--model.learning_rate", "0.01") == 0
    assert first_steps(tmp_path / "other")[-1] == 4


def test_a_run_that_has_ended_goes_back_to_a_path(config, whole, tmp_path):
    root = shutil.copytree(whole, tmp_path / "whole")
    assert fit(config, root, "--resume", root / "checkpoints" / "step-00000004.ckpt") == 0
    assert first_steps(root) == [0, 4]


@pytest.mark.parametrize("option", ["--resume", "--ckpt_path"])
def test_a_path_that_is_damaged_ends_in_one_line(config, interrupted, option, capsys):
    path = interrupted / "checkpoints" / "step-00000004.ckpt"
    flip(path)
    assert fit(config, interrupted, option, path) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert str(path) in error
    assert "SHA-256" in error


def test_another_experiment_in_the_same_folder_is_refused_by_name(config, interrupted, capsys):
    before = sorted((interrupted / "checkpoints").iterdir())
    assert fit(config, interrupted, "--model.learning_rate", "0.5") == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "belongs to another run: model.learning_rate was 0.001, is 0.5." in error
    assert "trainer.default_root_dir" in error
    assert fit(config, interrupted, "--data.batch_seconds", "10") == 2
    assert "made with other data: data.batch_seconds (was 14.0, is 10.0)" in capsys.readouterr().err
    assert sorted((interrupted / "checkpoints").iterdir()) == before


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--trainer.gradient_clip_val", "5"], "trainer.gradient_clip_val was null, is 5"),
        (["--data.augmentation.speeds", "[0.9, 1.1]"], 'data.augmentation was null, is {"speeds": [0.9, 1.1], '),
        (["--trainer.callbacks", AVERAGE], 'trainer.callbacks.MovingAverage was absent, is {"decay": 0.999}'),
    ],
)
def test_another_training_is_refused_and_from_a_path_announced(config, interrupted, options, expected, capsys, caplog):
    newest = interrupted / "checkpoints" / "step-00000005.ckpt"
    assert fit(config, interrupted, *options) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"{newest} belongs to another run: {expected}" in error
    assert f"or resume from the checkpoint regardless with resume={newest}." in error
    assert fit(config, interrupted, *options, "--resume", newest) == 0
    assert f"Options have changed since checkpoint {newest}: {expected}" in caplog.text


def test_a_dropped_average_is_refused_and_from_a_path_the_weights_train_on(config, whole, tmp_path, capsys, caplog):
    interrupt(5, config, tmp_path, "--trainer.callbacks", AVERAGE)
    assert fit(config, tmp_path) == 2
    assert 'trainer.callbacks.MovingAverage was {"decay": 0.999}, is absent' in capsys.readouterr().err
    assert fit(config, tmp_path, "--resume", tmp_path / "checkpoints" / "step-00000005.ckpt") == 0
    expected, result = weights(whole), weights(tmp_path)  # an average does not change the training
    assert all(torch.equal(expected[name], result[name]) for name in expected)
    assert "resuming from the weights themselves, and the average ends here" in caplog.text


@pytest.mark.parametrize("option", ["--resume", "--ckpt_path"])
def test_options_of_the_command_and_not_of_the_checkpoint_are_used_and_announced(
    config, interrupted, tmp_path, option, caplog
):
    path = interrupted / "checkpoints" / "step-00000004.ckpt"
    assert fit(config, tmp_path / "other", option, path, "--model.learning_rate", "0.01") == 0
    assert f"Options have changed since checkpoint {path}: model.learning_rate was 0.001, is 0.01." in caplog.messages
    last = tmp_path / "other" / "checkpoints" / f"step-{STEPS:08}.ckpt"
    assert files.peek(str(last))["hyper_parameters"]["learning_rate"] == 0.01
    assert any("The learning rate at step 4 is 0.00" in message for message in caplog.messages)


def test_a_later_end_is_announced_once_with_the_learning_rate(config, whole, tmp_path, caplog):
    root = shutil.copytree(whole, tmp_path / "whole")
    command = (config, root, "--trainer.max_steps", 12)
    interrupt(8, *command)
    newest = root / "checkpoints" / f"step-{STEPS:08}.ckpt"
    assert f"Options have changed since checkpoint {newest}: trainer.max_steps was 6, is 12." in caplog.messages
    (schedule,) = [message for message in caplog.messages if message.startswith("The learning rate at step 6")]
    assert "is 0.000652 instead of 5e-05 in the checkpoint" in schedule  # the first step of the decay, and the last
    caplog.clear()
    assert fit(*command) == 0
    assert not any("have changed" in message for message in caplog.messages)


def save_without(key):
    def damage(path):
        checkpoint = files.load(str(path))
        del checkpoint[key]
        files.save(checkpoint, str(path))

    return damage


def save_with(key, value):
    def damage(path):
        files.save({**files.load(str(path)), key: value}, str(path))

    return damage


MALFORMED = {
    "no weights": (save_without("state_dict"), "it lacks 'state_dict'"),
    "other weights": (save_with("state_dict", {"a": torch.zeros(1)}), "it lacks the weights model.wav2vec2"),
    "other callbacks": (save_with("callbacks", [1]), "its content is wrong: callbacks must be a mapping, found [1]"),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_a_signed_checkpoint_of_another_content_is_named_and_the_one_before_is_taken(
    config, interrupted, kind, caplog, capsys
):
    damage, expected = MALFORMED[kind]
    newest = interrupted / "checkpoints" / "step-00000005.ckpt"
    damage(newest)
    kept = shutil.copy(newest, interrupted / "kept.ckpt")
    assert fit(config, interrupted) == 0
    assert first_steps(interrupted) == [0, 4]
    assert any(f"Skipping checkpoint {newest}: {expected}" in message for message in caplog.messages)
    capsys.readouterr()
    assert fit(config, interrupted, "--resume", kept, "--trainer.max_steps", "9") == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert str(kept) in error


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "no weights", "other callbacks", "other weights"])
def test_scoring_a_checkpoint_that_is_damaged_ends_in_one_line(config, interrupted, command, damage, capsys, tmp_path):
    options = yaml.safe_load(config.read_text())
    path = interrupted / "checkpoints" / "step-00000005.ckpt"
    (MALFORMED[damage][0] if damage in MALFORMED else DAMAGES[damage])(path)
    settings = {"model": options["model"], "data": {**options["data"], "test_splits": ["dev"]}}
    scoring = tmp_path / "scoring.yaml"
    settings["trainer"] = {"accelerator": "cpu", "default_root_dir": str(tmp_path)}
    scoring.write_text(yaml.safe_dump(settings))
    assert main([command, "--config", str(scoring), "--ckpt_path", str(path)]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert str(path) in error
    assert "\x1b" not in error


def test_a_state_that_does_not_fit_the_run_ends_in_one_line(config, interrupted, capsys):
    """Refuse what no schema shows: the state of an optimiser with another number of groups."""
    path = interrupted / "checkpoints" / "step-00000005.ckpt"
    checkpoint = files.load(str(path))
    first, second = checkpoint["optimizer_states"][0]["param_groups"]
    checkpoint["optimizer_states"][0]["param_groups"] = [{**first, "params": [*first["params"], *second["params"]]}]
    files.save(checkpoint, str(path))
    assert fit(config, interrupted) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"error: {path} does not fit this run: ValueError: loaded state dict has a different ")


def test_another_machine_is_no_other_experiment(config, interrupted):
    options = ["--data.device_seconds", "5", "--model.gradient_checkpointing", "true", "--data.num_workers", "1"]
    assert fit(config, interrupted, *options) == 0
    assert first_steps(interrupted) == [0, 5]


def test_a_checkpoint_of_weights_alone_is_passed_over(config, interrupted):
    path = str(interrupted / "checkpoints" / "step-00000005.ckpt")
    files.save({"global_step": 5, "state_dict": files.load(path)["state_dict"]}, path)
    assert fit(config, interrupted) == 0
    assert first_steps(interrupted) == [0, 4]


def test_checkpoints_may_lie_elsewhere(config, tmp_path):
    options = ["--checkpoint.dirpath", tmp_path / "there", "--trainer.max_steps", "2"]
    assert fit(config, tmp_path / "run", *options) == 0
    assert len(files.list_checkpoints(str(tmp_path / "there"))) == 2
    assert not list((tmp_path / "run").rglob("*.ckpt"))


def test_checkpoints_may_lie_at_a_url(config, tmp_path):
    options = ["--checkpoint.dirpath", "memory://bucket/run", "--trainer.max_steps"]
    assert fit(config, tmp_path, *options, "2") == 0
    assert fit(config, tmp_path, *options, "4") == 0
    assert [files.global_step(path) for path in files.list_checkpoints("memory://bucket/run")] == [3, 2, 3, 4]
    assert [segment["first_step"] for segment in history.read("memory://bucket/run")] == [0, 2]


def test_wrong_options_are_named(config, tmp_path, capsys):
    assert fit(config, tmp_path, "--checkpoint_every", "often") == 2
    assert "checkpoint_every" in capsys.readouterr().err
    assert fit(config, tmp_path, "--resume", tmp_path / "none.ckpt") == 2
    assert "it is missing" in capsys.readouterr().err


def test_a_disk_that_fills_up_does_not_end_in_silence(config, interrupted, monkeypatch, capsys, caplog):
    def full(checkpoint, file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "_write", full)
    assert fit(config, interrupted) == 2
    assert "No space left on device" in caplog.text
    assert "error: The last checkpoint" in capsys.readouterr().err
    paths = files.list_checkpoints(str(interrupted / "checkpoints"))
    assert [files.global_step(path) for path in paths] == [3, 3, 4, 5]
    assert list(interrupted.rglob("model.safetensors"))  # the trained model was exported
