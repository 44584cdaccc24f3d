"""The command line as a user meets it. What starts a process runs it for real."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from corpus import random_texts, write_split
from tiny import TINY_CONFIG
from transformers import Wav2Vec2Config, Wav2Vec2ForPreTraining

from w2v_lightning import Wav2Vec2CTC, cli
from w2v_lightning.__main__ import COMMANDS, main
from w2v_lightning.model import wav2vec2
from w2v_lightning.text.vocabulary import Vocabulary

FOLDER = Path(__file__).parents[1] / "configs"
CONFIGS = [path for path in sorted(FOLDER.glob("*.yaml")) if not path.stem.startswith("study_")]


def run(*args, cwd=None):
    return subprocess.run(
        [sys.executable, "-m", "w2v_lightning", *map(str, args)], capture_output=True, text=True, cwd=cwd, check=False
    )


@pytest.fixture
def tiny_config(tmp_path):
    """A config file that trains in seconds."""
    for split, number, speaker in (("train", 8, "1"), ("dev", 3, "2"), ("test", 3, "3")):
        write_split(tmp_path / "corpus", split, random_texts(number, seed=int(speaker)), speaker)
    config = {
        "model": {"pretrained": None, "config": TINY_CONFIG, "freeze_feature_encoder": False},
        "data": {
            "root": str(tmp_path / "corpus"),
            **{"train_splits": ["train"], "val_splits": ["dev"], "test_splits": ["test"]},
            **{"batch_seconds": 20, "device_seconds": 20, "num_workers": 0},
        },
        "trainer": {"max_epochs": 1, "default_root_dir": str(tmp_path / "runs"), "accelerator": "cpu"},
    }
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def in_process(capsys, *args):
    """Exit status, standard output and error of a command run here, which saves the seconds of a fresh import."""
    try:
        status = main([str(arg) for arg in args])
    except SystemExit as exit_:
        status = exit_.code
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_help_lists_the_commands_without_importing_what_is_heavy():
    code = "import sys; from w2v_lightning.__main__ import main; main(['--help']); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(command in done.stdout for command in COMMANDS)
    assert not {"torch", "lightning", "transformers", "numpy"} & set(done.stdout.rpartition("[")[2].split("'"))


def test_help_takes_under_two_seconds():
    for _ in range(5):  # what is late, on a machine that does other things as well, is not always late
        start = time.monotonic()
        assert run("--help").returncode == 0
        if time.monotonic() - start < 2:
            return
    pytest.fail("it took longer five times")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["fitt"], "error: unknown command 'fitt'. Did you mean fit?\n"),
        (["frobnicate"], "error: unknown command 'frobnicate'; choose from fit, validate, "),
    ],
)
def test_a_wrong_command_ends_in_one_line(args, message, capsys):
    status, out, err = in_process(capsys, *args)
    assert status == 2
    assert err.startswith(message)
    assert err.count("\n") == 1
    assert out == ""


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["fit", "--data.rot", "x"], ["--data.rot", "Did you mean data.root?"]),
        (
            ["fit", "--model.learning_rate", "abc", "--data.root", "x"],
            ["--model.learning_rate is abc: must be a number."],
        ),
        (["fit", "--config", "nowhere.yaml"], ["nowhere.yaml", "does not exist"]),
        (["validate", "--trainer.precison", "32", "--data.root", "x"], ["Did you mean trainer.precision?"]),
    ],
)
def test_a_wrong_option_ends_in_one_line(args, expected, capsys):
    status, _, err = in_process(capsys, *args)
    assert status == 2
    assert all(part in err for part in expected)
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("section", "key", "nearest"),
    [
        ("model", "learnin_rate", "model.learning_rate"),
        ("data", "batch_second", "data.batch_seconds"),
        ("trainer", "max_epoch", "trainer.max_epochs"),
        ("checkpoint", "moniter", "checkpoint.monitor"),
    ],
)
def test_an_unknown_config_key_is_named_with_the_nearest_right_one(tiny_config, section, key, nearest, capsys):
    config = yaml.safe_load(tiny_config.read_text())
    config.setdefault(section, {})[key] = 3
    tiny_config.write_text(yaml.safe_dump(config))
    status, _, err = in_process(capsys, "fit", "--config", tiny_config)
    assert status == 2
    assert f"{section}.{key}" in err
    assert f"Did you mean {nearest}?" in err


@pytest.mark.slow
def test_wrong_input_ends_in_one_line_before_training(tiny_config, tmp_path):
    done = run("fit", "--config", tiny_config, "--data.val_splits", "[nowhere]")
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    missing = "has no split 'nowhere', neither as a folder nor as nowhere.jsonl; it holds dev, test, train."
    assert last == f"error: data.root: {tmp_path / 'corpus'} {missing}"
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("runs/**/*.ckpt"))


def test_an_unwritable_output_folder_is_found_first(tiny_config, capsys):
    status, _, err = in_process(capsys, "fit", "--config", tiny_config, "--trainer.default_root_dir", "/proc/runs")
    assert status == 2
    assert "trainer.default_root_dir" in err
    assert "/proc/runs" in err
    assert "name another folder" in err


OPTIONS = {  # of `fit`, and what is said of them
    "trainer.precision=bf16-true": ["trainer.precision is bf16-true", "bf16-mixed"],
    "trainer.precision=16-true": ["trainer.precision is 16-true", "16-mixed"],
    "trainer.precision=64": ["trainer.precision is 64", "32-true"],
    "trainer.accelerator=gpu": ["trainer.accelerator is gpu", "sees no GPU", "omit this option"],
    "trainer.accelerator=foo": ["Lightning refuses", "accelerator='foo'", "cpu"],  # a ValueError of Lightning's
    "trainer.devices=0": ["Lightning refuses", "devices='0'"],
    "trainer.limit_train_batches=1.5": ["Lightning refuses", "1.5 for limit_train_batches", "[0.0, 1.0]"],
    "checkpoint.save_top_k=-3": ["Lightning refuses", "save_top_k=-3"],
    "trainer.logger=service_loggers.NotInstalled": ["NotInstalled cannot be created", "pip install -U x"],
    "trainer.overfit_batches=2": ["trainer.overfit_batches is 2", "manifest", "data.train_splits"],
    "trainer.val_check_interval=100": ["val_check_interval is 100", "has 1 of", "check_val_every_n_epoch=null"],
    "data.num_workers=-1": ["data.num_workers is -1", "0 for none"],
    "ckpt_path=/nowhere.ckpt": ["--ckpt_path /nowhere.ckpt", "it is missing"],
}


@pytest.mark.parametrize("option", OPTIONS)
def test_what_cannot_be_trained_with_ends_in_one_line(tiny_config, option, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    status, _, err = in_process(capsys, "fit", "--config", tiny_config, f"--{option}")
    assert status == 2
    last = err.splitlines()[-1]
    assert last.startswith("error: ")
    assert all(part in last for part in OPTIONS[option])
    assert "Traceback" not in err


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_a_checkpoint_that_is_not_there_ends_in_one_line(tiny_config, command, tmp_path, capsys):
    for path in (tmp_path / "nowhere.ckpt", tmp_path):
        status, _, err = in_process(capsys, command, "--config", tiny_config, "--ckpt_path", path)
        assert status == 2
        assert err.splitlines()[-1].startswith(f"error: ckpt_path={path}: file not found. Give")
    status, _, err = in_process(capsys, command, "--config", tiny_config, "--ckpt_path", "best")
    assert status == 2
    assert f"--ckpt_path is best: {command} needs a path" in err


def test_a_bug_is_not_taken_for_wrong_input(tiny_config, monkeypatch, capsys):
    def training_step(module, batch, batch_idx):
        raise ValueError("a bug")

    monkeypatch.setattr(Wav2Vec2CTC, "training_step", training_step)
    with pytest.raises(ValueError, match="a bug"):
        in_process(capsys, "fit", "--config", tiny_config)


def test_a_progress_bar_of_the_users_own_takes_the_place_of_ours(tiny_config, capsys):
    options = ["--trainer.callbacks+=TQDMProgressBar", "--trainer.callbacks.refresh_rate=1"]
    status, out, err = in_process(capsys, "fit", "--config", tiny_config, *options)
    assert status == 0, err
    assert "Epoch 0" in out + err
    assert "step 1/" not in out


def test_validations_counted_through_epochs(tiny_config, capsys):
    options = ["--trainer.val_check_interval=2", "--trainer.check_val_every_n_epoch=null", "--trainer.max_epochs=4"]
    status, out, err = in_process(capsys, "fit", "--config", tiny_config, *options)
    assert status == 0, err
    assert "Validation WER: " in out


@pytest.mark.slow
def test_audio_that_breaks_in_a_worker_ends_in_one_line(tiny_config, tmp_path):
    broken = next((tmp_path / "corpus" / "train").rglob("*-0003.flac"))
    data = bytearray(broken.read_bytes())
    data[200 : len(data) - 2000] = bytes(len(data) - 2200)  # the header and the last frame stay whole
    broken.write_bytes(data)
    done = run("fit", "--config", tiny_config, "--data.num_workers", "1")
    assert done.returncode == 2, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"error: {broken}")


@pytest.mark.slow
def test_fit_then_test_then_predict_then_transcribe(tiny_config, tmp_path):
    done = run("fit", "--config", tiny_config)
    assert done.returncode == 0, done.stderr
    (model,) = (tmp_path / "runs").rglob("model")
    assert "Validation WER: " in done.stdout
    assert f"transcribe --model {model}" in done.stdout
    assert (model.parent / "config.yaml").exists()
    assert list(model.parent.glob("events.out.tfevents*"))

    again = run("test", "--config", model.parent / "config.yaml", "--model.pretrained", model)
    assert again.returncode == 0, again.stderr
    assert "test_wer" in again.stdout

    done = run("predict", "--config", tiny_config, "--ckpt_path", tmp_path / "runs" / "checkpoints" / "best.ckpt")
    assert done.returncode == 0, done.stderr
    (predictions,) = (tmp_path / "runs").rglob("predictions.jsonl")
    rows = {row["id"]: row for row in map(json.loads, predictions.read_text().splitlines())}
    assert {row["reference"] for row in rows.values()} == set(random_texts(3, seed=3))

    files = sorted((tmp_path / "corpus" / "test").rglob("*.flac"))
    done = run("transcribe", *files, "--model", model)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "".join(f"{file}\t{rows[file.stem]['hypothesis']}\n" for file in files)


@pytest.fixture
def folders(tmp_path):
    """An encoder without a CTC head, and a model with one, of the same shape."""
    sizes = TINY_CONFIG | {"codevector_dim": 8, "proj_codevector_dim": 8}
    Wav2Vec2ForPreTraining(Wav2Vec2Config(**sizes)).save_pretrained(tmp_path / "encoder")
    model = wav2vec2.from_scratch(TINY_CONFIG, Vocabulary())
    wav2vec2.save_pretrained(tmp_path / "tuned", model, Vocabulary(), normalise=True)
    return {"encoder": tmp_path / "encoder", "tuned": tmp_path / "tuned"}


@pytest.mark.parametrize(
    ("command", "options", "reason"),
    [
        ("validate", [], "is null: the weights are random"),
        ("test", ["--model.pretrained", "{encoder}"], "encoder without a CTC head"),
        ("predict", ["--model.pretrained", "{encoder}"], "encoder without a CTC head"),
        ("test", ["--model.pretrained", "{tuned}", "--model.vocabulary", "build"], "is for other tokens than"),
    ],
)
def test_random_weights_are_not_scored(tiny_config, folders, command, options, reason, capsys):
    options = [option.format(**folders) for option in options]
    status, out, err = in_process(capsys, command, "--config", tiny_config, *options)
    assert status == 2
    (line,) = (line for line in err.splitlines() if line.startswith("error: model.pretrained"))
    assert reason in line
    assert "--ckpt_path" in line
    assert "wer" not in out


def test_weights_from_a_checkpoint_or_a_model_with_a_head_are_scored(tiny_config, folders, tmp_path, capsys):
    model = ["--model.pretrained", folders["encoder"]]
    assert in_process(capsys, "fit", "--config", tiny_config, *model)[0] == 0
    best = tmp_path / "runs" / "checkpoints" / "best.ckpt"
    for options in ([*model, "--ckpt_path", best], ["--model.pretrained", folders["tuned"]]):
        status, out, err = in_process(capsys, "test", "--config", tiny_config, *options)
        assert status == 0, err
        assert "test_wer" in out


@pytest.mark.slow
def test_two_processes_train_score_and_export_one_model(tiny_config, tmp_path):
    options = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--data.device_seconds", "5"]
    done = run("fit", "--config", tiny_config, *options)
    assert done.returncode == 0, done.stderr
    assert "in 2 x" in done.stderr  # devices x accumulation
    assert done.stdout.count("Validation WER: ") == 1
    assert len(list((tmp_path / "runs").rglob("model.safetensors"))) == 1


def test_a_run_without_checkpoints_and_progress_bar(tiny_config, tmp_path, capsys):
    options = ["--trainer.enable_checkpointing", "false", "--trainer.enable_progress_bar", "false"]
    status, out, err = in_process(capsys, "fit", "--config", tiny_config, *options)
    assert status == 0, err
    assert "step 1/" not in out
    assert not list((tmp_path / "runs").rglob("*.ckpt"))
    assert len(list((tmp_path / "runs").rglob("model.safetensors"))) == 1


def test_print_config_and_dotted_overrides(tiny_config, capsys):
    status, out, _ = in_process(
        capsys, "fit", "--config", tiny_config, "--model.learning_rate", "0.5", "--print_config"
    )
    assert status in (0, None)
    config = yaml.safe_load(out)
    assert config["model"]["learning_rate"] == 0.5
    assert config["data"]["batch_seconds"] == 20
    assert config["model"]["mask_time_prob"] == 0.65


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_parses(path, capsys):
    status, out, err = in_process(capsys, "fit", "--config", path, "--data.root", "x", "--print_config")
    assert status in (0, None), err
    shipped, full = yaml.safe_load(path.read_text()), yaml.safe_load(out)
    for section, options in shipped.items():
        if isinstance(options, dict):
            kept = {key: full[section][key] for key in options if key != "root"}
            assert kept == {key: value for key, value in options.items() if key != "root"}


@pytest.mark.parametrize(
    ("capability", "expected"),
    [((9, 0), "bf16-mixed"), ((8, 0), "bf16-mixed"), ((7, 5), "16-mixed"), ((7, 0), "16-mixed")],
)
def test_precision_suits_the_gpu(monkeypatch, capability, expected):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "Some GPU")
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: capability)
    precision, reason = cli.choose_precision("auto")
    assert precision == expected
    assert "Some GPU" in reason
    assert cli.choose_precision("cpu")[0] == "32-true"


def test_an_explicit_precision_is_left_alone(tiny_config, capsys, monkeypatch):
    monkeypatch.setattr(cli, "choose_precision", lambda accelerator: pytest.fail("asked"))
    options = ["--trainer.precision", "bf16-mixed", "--trainer.fast_dev_run", "true"]
    status, _, err = in_process(capsys, "fit", "--config", tiny_config, *options)
    assert status == 0, err


@pytest.mark.parametrize(
    ("torch", "torchaudio", "remedy"),
    [("2.10.0", "2.11.0", "torchaudio==2.10.*,"), ("2.11.0+cu130", "2.11.1+cu130", "torchaudio==2.11.*,<2.11.1")],
)
def test_torch_and_torchaudio_that_do_not_go_together_are_named_before_the_crash(
    monkeypatch, capsys, torch, torchaudio, remedy
):
    versions = {"torch": torch, "torchaudio": torchaudio}
    monkeypatch.setattr("w2v_lightning.__main__.version", versions.__getitem__)
    status, _, err = in_process(capsys, "fit")
    assert status == 2
    assert f"torch {torch} and torchaudio {torchaudio}" in err
    assert remedy in err


@pytest.mark.parametrize(("torch", "transformers"), [("2.5.1+cu124", "5.24.0"), ("2.5.1", "5.19.0")])
def test_a_transformers_that_switches_torch_off_is_named_before_the_crash(monkeypatch, capsys, torch, transformers):
    versions = {"torch": torch, "torchaudio": torch, "transformers": transformers}
    monkeypatch.setattr("w2v_lightning.__main__.version", versions.__getitem__)
    status, _, err = in_process(capsys, "fit")
    assert status == 2
    assert f"transformers {transformers} does not work with torch {torch}" in err
    assert "pip install 'transformers>=5.1,<5.19'" in err
