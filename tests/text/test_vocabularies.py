"""Alphabets other than the 32 tokens of facebook/wav2vec2-base-960h, from transcripts to the exported model."""

import json

import pytest
import torch
import yaml
from corpus import random_texts, write_split
from tiny import TINY_CONFIG
from transformers import AutoModelForCTC, AutoProcessor

from w2v_lightning import Wav2Vec2CTC
from w2v_lightning.__main__ import main
from w2v_lightning.errors import InputError
from w2v_lightning.inference.command import transcribe
from w2v_lightning.model import wav2vec2
from w2v_lightning.text.vocabulary import LIBRISPEECH_TOKENS, Vocabulary

CYRILLIC = str.maketrans("ABC", "\u0416\u0429\u042f")  # the tone corpus uses A, B, C: Zhe, Shcha, Ya
SPECIALS = ("<pad>", "<s>", "</s>", "<unk>", "|")


def write_cyrillic_split(root, split, number, seed, speaker):
    texts = random_texts(number, seed=seed, letters="ABC", longest=3)
    chapter = write_split(root, split, texts, speaker)
    table = chapter / f"{speaker}-1.trans.txt"
    lines = [line.split(" ", 1) for line in table.read_text().splitlines()]
    table.write_text("".join(f"{name} {text.translate(CYRILLIC).lower()}\n" for name, text in lines), encoding="utf-8")


@pytest.fixture
def config(tmp_path):
    write_cyrillic_split(tmp_path / "corpus", "train", 60, 1, "1")
    write_cyrillic_split(tmp_path / "corpus", "dev", 10, 2, "2")
    content = {
        "model": {
            **{"pretrained": None, "config": TINY_CONFIG, "freeze_feature_encoder": False, "learning_rate": 3e-3},
            **dict.fromkeys(("mask_time_prob", "mask_channel_prob", "layerdrop", "activation_dropout"), 0.0),
        },
        "data": {
            "root": str(tmp_path / "corpus"),
            **{"train_splits": ["train"], "val_splits": ["dev"], "test_splits": ["dev"]},
            **{"batch_seconds": 8, "device_seconds": 8, "num_workers": 0},
        },
        "trainer": {
            **{"max_steps": 75, "max_epochs": -1, "default_root_dir": str(tmp_path / "runs"), "accelerator": "cpu"},
            **{"enable_progress_bar": False, "gradient_clip_val": 1.0, "check_val_every_n_epoch": 1000},
        },
    }
    path = tmp_path / "cyrillic.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_a_vocabulary_built_from_the_transcripts_goes_all_the_way(config, tmp_path, caplog):
    """Train, save, export and transcribe with letters that are not in the default vocabulary."""
    main(["fit", "--config", str(config), "--model.vocabulary", "build"])
    (model,) = (tmp_path / "runs").rglob("model")
    expected = Vocabulary((*SPECIALS, "\u0416", "\u0429", "\u042f"))
    assert json.loads((model / "vocab.json").read_text(encoding="utf-8")) == {
        token: i for i, token in enumerate(expected.tokens)
    }

    (tmp_path / "corpus" / "train").rename(tmp_path / "gone")  # the exported model needs no transcripts
    (checkpoint,) = (tmp_path / "runs").rglob("step-*.ckpt")
    loaded = Wav2Vec2CTC.load_from_checkpoint(checkpoint, map_location="cpu", weights_only=True)
    assert loaded.vocabulary == expected
    written = yaml.safe_load((model.parent / "config.yaml").read_text())
    assert written["model"]["vocabulary"]["tokens"] == list(expected.tokens)

    files = sorted((tmp_path / "corpus" / "dev").rglob("*.flac"))
    expected_texts = [text.translate(CYRILLIC) for text in random_texts(10, seed=2, letters="ABC", longest=3)]
    transcripts = [text for _, text in transcribe(files, str(model), "cpu")]
    assert sum(a == b for a, b in zip(transcripts, expected_texts, strict=True)) >= 5
    processor = AutoProcessor.from_pretrained(model)
    assert processor.batch_decode(torch.tensor([[5, 0, 6, 4, 7]])) == ["\u0416\u0429 \u042f"]


def test_config_of_a_run_starts_the_same_run_without_building_again(config, tmp_path, capsys):
    main(["fit", "--config", str(config), "--model.vocabulary", "build", "--trainer.max_steps", "1"])
    (written,) = (tmp_path / "runs").rglob("config.yaml")
    (model,) = (tmp_path / "runs").rglob("model")
    main(["validate", "--config", str(written), "--model.pretrained", str(model)])
    assert "val_wer" in capsys.readouterr().out


@pytest.fixture
def folder(tmp_path):
    """Return a model with the default 32 tokens."""
    torch.manual_seed(0)
    model = wav2vec2.from_scratch(TINY_CONFIG, Vocabulary())
    wav2vec2.save_pretrained(tmp_path / "model", model, Vocabulary(), normalise=True)
    return tmp_path / "model"


@pytest.mark.parametrize("tokens", [(*SPECIALS, *"abc"), tuple(reversed(LIBRISPEECH_TOKENS))], ids=["fewer", "as many"])
def test_another_vocabulary_gets_a_new_head_on_the_old_encoder(folder, caplog, tokens):
    caplog.set_level("INFO")
    old = AutoModelForCTC.from_pretrained(folder)
    model, vocabulary, _ = wav2vec2.from_pretrained(str(folder), {}, Vocabulary(tokens))
    assert vocabulary.tokens == tokens
    assert model.lm_head.out_features == model.config.vocab_size == len(tokens)
    assert model.config.pad_token_id == tokens.index("<pad>")
    assert not torch.isin(model.lm_head.weight, old.lm_head.weight).any()
    theirs, ours = old.wav2vec2.state_dict(), model.wav2vec2.state_dict()
    assert all(torch.equal(theirs[key], ours[key]) for key in theirs)
    (message,) = (record.message for record in caplog.records if "head" in record.message)
    assert "has a CTC head for 32 tokens: adding a new CTC head" in message
    assert f"{len(tokens)} tokens" in message


def test_the_same_vocabulary_keeps_the_head(folder):
    old = AutoModelForCTC.from_pretrained(folder)
    model, _, _ = wav2vec2.from_pretrained(str(folder), {}, Vocabulary())
    assert torch.equal(model.lm_head.weight, old.lm_head.weight)


def test_an_encoder_of_another_shape_is_still_refused(folder):
    with pytest.raises(InputError, match=r"hidden_size=32 \(the model's own is 48\) contradicts"):
        wav2vec2.from_pretrained(str(folder), {"hidden_size": 32}, Vocabulary((*SPECIALS, *"abc")))


@pytest.mark.parametrize("blank", ["<pad>", "[PAD]"])
def test_a_folder_names_the_vocabulary_and_a_checkpoint_needs_it_no_more(folder, tmp_path, blank):
    vocabulary = Vocabulary((*"<|>", blank, "\u00c4", "b"), blank=blank)
    tokens = wav2vec2.from_scratch(TINY_CONFIG, vocabulary)
    wav2vec2.save_pretrained(tmp_path / "tokens", tokens, vocabulary, normalise=True)
    module = Wav2Vec2CTC(str(folder), vocabulary=str(tmp_path / "tokens"))
    assert module.vocabulary == vocabulary
    assert Wav2Vec2CTC(**module.hparams).vocabulary == vocabulary
    assert "tokens" not in json.dumps(module.hparams.pretrained)
    (tmp_path / "tokens").rename(tmp_path / "gone")
    assert Wav2Vec2CTC(**module.hparams).vocabulary == vocabulary


def test_in_a_script_the_transcripts_are_given(folder):
    module = Wav2Vec2CTC(str(folder), vocabulary=Vocabulary.build(["\u00c4b c"]))
    assert module.vocabulary.tokens == (*SPECIALS, "B", "C", "\u00c4")
    with pytest.raises(InputError, match=r"Vocabulary\.build\(texts\)"):
        Wav2Vec2CTC(str(folder), vocabulary="build")


def test_transcripts_outside_the_vocabulary_name_the_way_out(config, capsys, caplog):
    assert main(["fit", "--config", str(config)]) == 2
    assert "characters outside the vocabulary" in capsys.readouterr().err
    assert "model.vocabulary=build" in caplog.text
