"""Every shipped config trains a tiny stand-in, and the recipes are what was published."""

from pathlib import Path

import pytest
import yaml
from corpus import random_texts, write_split
from tiny import TINY_CONFIG

from w2v_lightning.__main__ import main

FOLDER = Path(__file__).parents[1] / "configs"
# Those of `fit`; a study_*.yaml is one of `python -m w2v_lightning study` (tests/study/test_study_spec.py).
CONFIGS = {path.stem: path for path in sorted(FOLDER.glob("*.yaml")) if not path.stem.startswith("study_")}
OPTIONS = {name: yaml.safe_load(path.read_text()) for name, path in CONFIGS.items()}
CTC = [name for name, options in OPTIONS.items() if options.get("task", "ctc") == "ctc"]

# updates, frozen updates, learning rate, masks in time and of channels, layer drop
PUBLISHED = {
    "librispeech_100h": (80_000, 0, 3e-5, 0.65, 0.5, 0.1),
    "paper_base_100h": (50_000, 10_000, 3e-5, 0.05 * 10, 0.008 * 64, 0.1),
    "fairseq2_base_100h": (50_000, 0, 3e-5, 0.69, 0.55, 0.1),
    "base_960h": (320_000, 0, 1e-4, 0.5, 0.1, 0.1),
    "base_10h": (20_000, 10_000, 5e-5, 0.65, 0.5, 0.05),
    "base_1h": (13_000, 10_000, 5e-5, 0.65, 0.25, 0.1),
    "vox_100h": (80_000, 10_000, 3e-5, 0.5, 0.5, 0.1),
    "vox_10h": (20_000, 10_000, 1e-4, 0.75, 0.25, 0.1),
    "vox_1h": (13_000, 10_000, 3e-4, 0.75, 0.25, 0.1),
}


def command(name, *options):
    """The exit status of `fit` with a shipped config."""
    return main(["fit", "--config", str(CONFIGS[name]), *options])


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipe_has_the_published_values_defaults_included(name, capsys):
    with pytest.raises(SystemExit) as exit_:
        command(name, "--print_config")
    assert exit_.value.code in (0, None)
    config = yaml.safe_load(capsys.readouterr().out)
    model, data, trainer = config["model"], config["data"], config["trainer"]
    names = ("freeze_updates", "learning_rate", "mask_time_prob", "mask_channel_prob", "layerdrop")
    assert (trainer["max_steps"], *(model[name] for name in names)) == pytest.approx(PUBLISHED[name])

    assert data["batch_seconds"] == 1600
    assert trainer["gradient_clip_val"] is None
    assert config["checkpoint"]["monitor"] == "val_wer/dev-other"
    is_large = name.startswith("vox")
    assert model["pretrained"] == f"facebook/wav2vec2-{'large-lv60' if is_large else 'base'}"
    assert model["decay"] == ("linear" if name.startswith("paper") else "exponential")
    same_in_all = {
        **{"warmup": 0.1, "hold": 0.4, "final_lr_scale": 0.05, "weight_decay": 0.0, "adam_betas": [0.9, 0.98]},
        **{"mask_time_length": 10, "mask_channel_length": 64, "activation_dropout": 0.1, "attention_dropout": 0.0},
        **{"hidden_dropout": 0.0, "feat_proj_dropout": 0.0, "final_dropout": 0.0, "freeze_feature_encoder": True},
        **{"adam_eps": 1e-8, "layer_lr_decay": 1.0},
    }
    assert {key: model[key] for key in same_in_all} == same_in_all


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_says_first_how_it_is_run_and_what_to_expect(name):
    header = CONFIGS[name].read_text().partition("\nmodel:")[0]
    assert f"python -m w2v_lightning fit --config configs/{name}.yaml" in header
    if name in PUBLISHED:
        assert "# Expected: " in header
        assert any(source in header for source in ("arXiv 2006.11477", "recipes/wav2vec2/asr"))


@pytest.mark.parametrize("name", CTC)
def test_a_config_trains_a_tiny_stand_in(name, tmp_path, monkeypatch):
    """All that a config decides is built and runs; only the model is smaller, and the corpus."""
    monkeypatch.chdir(tmp_path)
    defaults = {"train_splits": ["train-clean-100"], "val_splits": ["dev-clean", "dev-other"]}
    data = defaults | OPTIONS[name]["data"]
    for number, split in enumerate(data["train_splits"] + data["val_splits"]):
        make_split(tmp_path / "corpus", split, str(number))
    stand_in = {
        "model": {"pretrained": None, "config": TINY_CONFIG, "mask_channel_length": 4},
        "data": {"root": str(tmp_path / "corpus"), "device_seconds": 1600, "num_workers": 0},
        "trainer": {"fast_dev_run": True, "accelerator": "cpu", "enable_progress_bar": False},
    }
    (tmp_path / "stand_in.yaml").write_text(yaml.safe_dump(stand_in))
    assert command(name, "--config", str(tmp_path / "stand_in.yaml")) == 0


def make_split(root, split, speaker):
    """`split` as a folder, or as a manifest made by `prepare`."""
    texts = random_texts(3, seed=int(speaker))
    if split.endswith("/manifest.jsonl"):
        source = write_split(root.parent / "source", "clean", texts, speaker)
        assert main(["prepare", str(source), "--out", str((root / split).parent), "--workers", "1"]) == 0
    else:
        write_split(root, split, texts, speaker)
