"""MMS models: choosing a language, training its adapter alone, exporting it; all as transformers loads it."""

import json
import re

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tiny import TINY_CONFIG, data, trainer, write_corpus
from transformers import AutoProcessor, Wav2Vec2ForCTC

from w2v_lightning.__main__ import main
from w2v_lightning.errors import InputError
from w2v_lightning.inference.transcriber import Transcriber
from w2v_lightning.model import wav2vec2
from w2v_lightning.module import Wav2Vec2CTC
from w2v_lightning.text.vocabulary import Vocabulary

SPECIALS = ("<pad>", "<s>", "</s>", "<unk>", "|")
LETTERS = {"eng": "abcdefghijklmnopqrstuvwxyz'", "pol": "abcdefghijklmnopqrstuvwxyz'\u0105\u0119\u0142"}
MMS = {**TINY_CONFIG, "adapter_attn_dim": 4, "do_stable_layer_norm": True, "initializer_range": 0.1}


@pytest.fixture
def folder(tmp_path):
    """A tiny model with the adapters of two languages whose vocabularies differ in size."""
    folder, tables = tmp_path / "mms", {}
    for number, (language, letters) in enumerate(LETTERS.items()):
        torch.manual_seed(0)
        vocabulary = Vocabulary((*SPECIALS, *letters))
        model = wav2vec2.from_scratch(MMS, vocabulary)
        if language == "eng":
            wav2vec2.save_pretrained(folder, model, vocabulary, normalise=True)
        torch.manual_seed(1 + number)
        weights = {name: torch.randn_like(weight) / 4 for name, weight in model._get_adapters().items()}
        save_file(weights, folder / f"adapter.{language}.safetensors", metadata={"format": "pt"})
        tables[language] = {token: i for i, token in enumerate(vocabulary.tokens)}
    (folder / "vocab.json").write_text(json.dumps(tables))
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "target_lang": "eng"}))
    return folder


def logits(model, waveforms_BT):
    with torch.no_grad():
        return wav2vec2.ctc_logits(model.eval(), waveforms_BT, torch.tensor([waveforms_BT.shape[1]]))


@pytest.mark.parametrize("language", LETTERS)
def test_a_language_gives_the_logits_and_text_of_transformers(folder, language):
    model, vocabulary, _ = wav2vec2.from_pretrained(str(folder), {}, target_lang=language)
    theirs = Wav2Vec2ForCTC.from_pretrained(folder).eval()
    theirs.load_adapter(language)
    waveforms_BT = torch.randn(1, 8_000)
    ours = logits(model, waveforms_BT)
    torch.testing.assert_close(ours, theirs(waveforms_BT).logits, rtol=1e-4, atol=1e-5)
    tokenizer = AutoProcessor.from_pretrained(folder).tokenizer
    tokenizer.set_target_lang(language)
    best_F = ours[0].argmax(dim=-1)
    theirs = re.sub(r"</?s>|<unk>", "", tokenizer.decode(best_F))
    assert vocabulary.decode(best_F.tolist()).strip() == theirs.strip()


def test_transcriber_takes_the_language(folder):
    polish = Transcriber.from_pretrained(str(folder), "cpu", target_lang="pol")
    assert "\u0142" in polish.vocabulary.tokens


def test_an_unknown_language_names_those_that_exist(folder):
    with pytest.raises(InputError, match=r"no adapter\.deu\.safetensors.* eng, pol.* model\.vocabulary"):
        wav2vec2.from_pretrained(str(folder), {}, target_lang="deu")
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "target_lang": None}))
    with pytest.raises(InputError, match=r"languages eng, pol.*model\.target_lang"):
        wav2vec2.from_pretrained(str(folder), {})


def test_a_model_without_adapters_has_no_languages(tmp_path):
    wav2vec2.save_pretrained(tmp_path / "m", wav2vec2.from_scratch(TINY_CONFIG, Vocabulary()), Vocabulary(), True)
    with pytest.raises(InputError, match="has no language adapters"):
        wav2vec2.from_pretrained(str(tmp_path / "m"), {}, target_lang="eng")
    with pytest.raises(InputError, match=r"model\.adapter_only is true"):
        Wav2Vec2CTC(str(tmp_path / "m"), adapter_only=True)


def test_a_damaged_adapter_is_named(folder):
    path = folder / "adapter.pol.safetensors"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(InputError, match=r"adapter\.pol\.safetensors cannot be read"):
        wav2vec2.from_pretrained(str(folder), {}, target_lang="pol")


@pytest.mark.parametrize("language", ["pol", "new"])
def test_the_adapter_alone_is_trained_and_exported_as_transformers_loads_it(folder, tmp_path, language):
    vocabulary = Vocabulary((*SPECIALS, *"abcdefghijklmnopqrstuvwxyz'")) if language == "new" else None
    module = Wav2Vec2CTC(
        str(folder), vocabulary=vocabulary, target_lang=language, adapter_only=True, learning_rate=0.01
    )
    before = {name: weight.clone() for name, weight in module.model.state_dict().items()}
    trainer(tmp_path, max_steps=2).fit(module, data(write_corpus(tmp_path / "corpus")))
    changed = {name for name, weight in module.model.state_dict().items() if not torch.equal(weight, before[name])}
    assert changed
    assert changed <= {name for name in before if "adapter" in name or "lm_head" in name}
    assert any("adapter" in name for name in changed)

    module.save_pretrained(tmp_path / "export")
    waveforms_BT = torch.randn(1, 8_000)
    ours = logits(module.model, waveforms_BT)
    theirs = Wav2Vec2ForCTC.from_pretrained(tmp_path / "export", target_lang=language).eval()
    torch.testing.assert_close(ours, theirs(waveforms_BT).logits, rtol=1e-4, atol=1e-5)
    tokenizer = AutoProcessor.from_pretrained(tmp_path / "export", target_lang=language).tokenizer
    assert tokenizer("abc").input_ids == module.vocabulary.encode("abc")
    assert (
        load_file(tmp_path / "export" / f"adapter.{language}.safetensors").keys() == module.model._get_adapters().keys()
    )
    for lang in (language, None):
        again, vocabulary, _ = wav2vec2.from_pretrained(str(tmp_path / "export"), {}, target_lang=lang)
        assert vocabulary == module.vocabulary
        torch.testing.assert_close(logits(again, waveforms_BT), ours)


@pytest.mark.parametrize(("language", "options"), [("pol", []), ("deu", ["--model.vocabulary", "build"])])
def test_the_command_line_trains_a_language(folder, tmp_path, capsys, language, options):
    config = {
        "model": {"pretrained": str(folder), "target_lang": language, "adapter_only": True},
        "data": {
            **{"root": str(write_corpus(tmp_path / "corpus")), "train_splits": ["train"], "val_splits": ["dev"]},
            **{"batch_seconds": 20, "device_seconds": 20, "num_workers": 0},
        },
        "trainer": {"max_steps": 1, "default_root_dir": str(tmp_path / "runs"), "accelerator": "cpu"},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", str(tmp_path / "config.yaml"), *options]) == 0
    (exported,) = (tmp_path / "runs").rglob("model")
    assert [path.name for path in exported.glob("adapter.*")] == [f"adapter.{language}.safetensors"]
    assert list(json.loads((exported / "vocab.json").read_text())) == [language]
    capsys.readouterr()
    audio = str(next((tmp_path / "corpus").rglob("*.flac")))
    texts = []
    for chosen in ([], ["--target-lang", language]):
        assert main(["transcribe", audio, "--model", str(exported), *chosen]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    assert main(["transcribe", audio, "--model", str(exported), "--target-lang", "eng"]) == 2
    assert f"Its languages are {language}" in capsys.readouterr().err
