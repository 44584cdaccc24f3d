"""The section `data.text` of a config: in training, in the exported model, and in all that is done with it."""

import json
import re

import pytest
import soundfile
import yaml
from corpus import SAMPLE_RATE, spell
from lightning.pytorch import Trainer
from tiny import TINY_CONFIG

from w2v_lightning import LibriSpeechDataModule, Wav2Vec2CTC
from w2v_lightning.__main__ import main
from w2v_lightning.errors import InputError
from w2v_lightning.text.rules import TextRules
from w2v_lightning.text.vocabulary import Vocabulary

TEXTS = {
    "train": ["\u0131l\u0131k ilik", "Irak.", "\u0130zm\u0130r", "k\u0131\u015f gi\u0307di\u015f"],
    "dev": ["ili\u0307k.", "KI\u015e"],
}


@pytest.fixture
def config(tmp_path):
    """Return the path of a config that trains one step on Turkish texts, and writes to `runs` beside it."""
    for split, texts in TEXTS.items():
        rows = []
        for number, text in enumerate(texts):
            path, waveform_T = tmp_path / f"{split}-{number}.flac", spell("FACADE BEAD")[number:]
            soundfile.write(path, waveform_T, SAMPLE_RATE)
            rows.append(
                {"id": path.stem, "audio_filepath": str(path), "duration": len(waveform_T) / SAMPLE_RATE, "text": text}
            )
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    content = {
        "model": {"pretrained": None, "config": TINY_CONFIG, "vocabulary": "build"},
        "data": {
            **{"root": str(tmp_path), "train_splits": ["train"], "val_splits": ["dev"], "test_splits": ["dev"]},
            **{"batch_seconds": 8, "device_seconds": 8, "num_workers": 0, "text": {"drop": "."}},
        },
        "trainer": {
            **{"max_steps": 1, "default_root_dir": str(tmp_path / "runs"), "accelerator": "cpu"},
            **{"enable_progress_bar": False, "check_val_every_n_epoch": 1000},
        },
    }
    path = tmp_path / "turkish.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_rules_are_those_of_training_and_of_all_that_is_done_with_the_model(config, tmp_path, caplog, capsys):
    main(["fit", "--config", str(config)])
    assert "data.text.language=tr" in caplog.text
    assert "16 tokens, built from 4 training transcripts: A D G I K L M R Z \u0130 \u015e" in caplog.text
    (model,) = (tmp_path / "runs").rglob("model")
    expected = TextRules(drop=".", language="tr")
    assert Vocabulary.load(model).rules == expected
    (written,) = (tmp_path / "runs").rglob("config.yaml")
    assert yaml.safe_load(written.read_text())["data"]["text"]["language"] == "tr"
    (checkpoint,) = (tmp_path / "runs").rglob("step-*.ckpt")
    assert Wav2Vec2CTC.load_from_checkpoint(checkpoint, map_location="cpu").vocabulary.rules == expected

    caplog.clear()
    plain = yaml.safe_load(config.read_text())
    plain["model"] = {"pretrained": str(model)}
    del plain["data"]["text"]
    config.write_text(yaml.safe_dump(plain))
    main(["validate", "--config", str(config)])  # refuses characters without a token, such as the dot
    assert "val_wer" in capsys.readouterr().out
    assert "contradicts" not in caplog.text
    main(["validate", "--config", str(config), "--data.text.language", "tr", "--data.skip_unusable", "true"])
    assert "data.text contradicts the rules that the model was trained with: drop is '' instead of '.'" in caplog.text
    assert (
        main(["transcribe", "--model", str(model), str(tmp_path / "dev.jsonl"), "--out", str(tmp_path / "out.jsonl")])
        == 0
    )


def test_resuming_with_other_rules_is_refused(config, tmp_path, capsys):
    options = ["fit", "--config", str(config), "--data.text.language", "tr"]
    main(options)
    capsys.readouterr()
    assert main([*options, "--data.text.case", "lower"]) == 2
    assert re.search(r"text(\.case)? was", capsys.readouterr().err)


def test_texts_of_turkish_without_its_letter_case_are_warned_of(config, caplog, tmp_path):
    content = yaml.safe_load(config.read_text())
    content["model"]["vocabulary"] = {
        "tokens": list(Vocabulary.build(TEXTS["train"], rules=TextRules(language="en")).tokens)
    }
    config.write_text(yaml.safe_dump(content))
    main(["fit", "--config", str(config)])
    assert caplog.text.count("Set data.text.language=tr") == 1


def test_in_a_script_the_rules_are_given_to_both(config, tmp_path):
    rules = TextRules(drop=".", language="tr")
    vocabulary = Vocabulary.build(TEXTS["train"], rules=rules)
    splits = {"train_splits": ["train"], "val_splits": ["dev"], "test_splits": ["dev"]}
    data = LibriSpeechDataModule(str(tmp_path), **splits, num_workers=0, text=rules)
    trainer = Trainer(default_root_dir=tmp_path, accelerator="cpu", logger=False, enable_progress_bar=False)
    trainer.validate(Wav2Vec2CTC(None, config=TINY_CONFIG, vocabulary=vocabulary), data, verbose=False)
    trainer.validate(Wav2Vec2CTC(None, config=TINY_CONFIG, vocabulary=vocabulary, text=rules), data, verbose=False)
    assert data.datasets["dev"].spec.vocabulary.normalise("KI\u015e.") == "KI\u015e"
    with pytest.raises(InputError, match=r"data\.text was given to the data module alone"):
        trainer.validate(Wav2Vec2CTC(None, config=TINY_CONFIG), data, verbose=False)
