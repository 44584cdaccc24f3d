"""A config that suits a prepared corpus: `init`, and the README's way from a folder of audio to a trained model."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from layouts import write_sound, write_text
from tiny import TINY_CONFIG

from w2v_lightning import Wav2Vec2CTC
from w2v_lightning.errors import InputError
from w2v_lightning.init.command import main

README = Path(__file__).parents[2] / "README.md"


def write_split(folder, name, texts, seconds=5.0):
    folder.mkdir(exist_ok=True)
    rows = [
        {
            "id": f"{name}-{i}",
            "audio_filepath": f"{i}.wav",
            "duration": seconds,
            "text": text,
            "speaker": f"{name}{i % 3}",
        }
        for i, text in enumerate(texts)
    ]
    folder.joinpath(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "prepared"
    write_split(folder, "train", ["HELLO WORLD"] * 800)
    write_split(folder, "validation", ["HELLO"])
    write_split(folder, "test-clean", ["HELLO"])
    write_split(folder, "manifest", ["HELLO"] * 802)
    folder.joinpath("rejected.jsonl").write_text('{"source": "a", "id": "b", "reason": "c"}\n')
    return folder


def config_of(corpus, *options):
    out = corpus.parent / "my.yaml"
    assert main(["--data", str(corpus), "--out", str(out), *options]) == 0
    return yaml.safe_load(out.read_text())


def test_splits_are_those_that_are_there(corpus):
    data = config_of(corpus)["data"]
    assert data["root"] == str(corpus)
    assert (data["train_splits"], data["val_splits"], data["test_splits"]) == (
        ["train"],
        ["validation"],
        ["test-clean"],
    )
    assert (data["batch_seconds"], data["device_seconds"]) == (1600, "auto")


@pytest.mark.parametrize(
    ("seconds", "updates", "learning_rate"), [(5, 13_000, 5e-5), (20, 20_000, 5e-5), (300, 80_000, None)]
)
def test_updates_and_learning_rate_are_those_of_the_recipe_for_these_hours(corpus, seconds, updates, learning_rate):
    write_split(corpus, "train", ["HELLO WORLD"] * 800, seconds)  # 1.1, 4.4 and 67 h
    config = config_of(corpus)
    assert config["trainer"]["max_steps"] == updates
    assert config["model"].get("learning_rate") == learning_rate


def test_a_small_corpus_has_smaller_steps_and_is_scored_after_about_a_thousand(corpus):
    write_split(corpus, "train", ["HELLO WORLD"] * 20)
    config = config_of(corpus)
    assert config["data"]["batch_seconds"] == 50
    assert config["trainer"]["check_val_every_n_epoch"] == 500


def test_a_vocabulary_is_built_where_the_models_own_lacks_letters(corpus, tmp_path):
    assert "vocabulary" not in config_of(corpus)["model"]
    (tmp_path / "my.yaml").unlink()
    write_split(corpus, "train", ["straße", "ÄRGER"] * 20)
    assert config_of(corpus)["model"]["vocabulary"] == "build"
    assert "the vocabulary of the model lacks Ä" in (tmp_path / "my.yaml").read_text()


def test_the_letter_case_of_turkish_is_written_down(corpus):
    write_split(corpus, "train", ["\u0131l\u0131k iki dakika s\u0131cak"] * 20)
    assert config_of(corpus)["data"]["text"] == {"language": "tr"}


def test_long_utterances_are_named(corpus, tmp_path):
    write_split(corpus, "train", ["HELLO"] * 20, 45.0)
    config_of(corpus)
    assert "# max_seconds: 30 # would leave out 20 longer utterances" in (tmp_path / "my.yaml").read_text()


def test_a_corpus_without_validation_split_is_refused_with_the_remedy(tmp_path):
    write_split(tmp_path / "prepared", "manifest", ["HELLO"])
    with pytest.raises(InputError, match=r"has no validation split, only manifest: .* --validation 5%"):
        main(["--data", str(tmp_path / "prepared"), "--out", str(tmp_path / "my.yaml")])
    assert not (tmp_path / "my.yaml").exists()


def test_an_existing_config_is_kept(corpus, tmp_path):
    tmp_path.joinpath("my.yaml").write_text("mine")
    with pytest.raises(InputError, match=r"my\.yaml exists already"):
        config_of(corpus)
    assert tmp_path.joinpath("my.yaml").read_text() == "mine"


@pytest.mark.parametrize("folder", ["missing", "empty"])
def test_a_folder_without_manifests_is_named(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=folder):
        main(["--data", str(tmp_path / folder)])


@pytest.mark.slow
def test_the_readmes_way_from_a_folder_of_audio_to_a_model(tmp_path):
    for speaker in range(6):
        for number in range(4):
            path = tmp_path / "CORPUS" / f"speaker{speaker}" / f"{speaker}-{number}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(write_sound(path, 1.0).with_suffix(".txt"), "HELLO WORLD")
    Wav2Vec2CTC(None, TINY_CONFIG).save_pretrained(tmp_path / "model")
    block = re.search(r"## Your own data\n\n```bash\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    commands = [shlex.split(line, comments=True) for line in block[1].splitlines()]
    assert [command[3] for command in commands] == ["prepare", "check", "init", "fit"]
    commands[2] += ["--model", "model"]  # instead of a download
    commands[3] += ["--trainer.max_steps", "3", "--trainer.check_val_every_n_epoch", "1"]
    for command in commands:
        done = subprocess.run(
            [sys.executable, *command[1:]], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-3000:]
    assert list(tmp_path.glob("runs/prepared/**/model.safetensors"))
