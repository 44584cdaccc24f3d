import sys

import pytest
import torch
import yaml
from corpus import random_texts, write_split
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny import TINY_CONFIG
from transformers import AutoModelForCTC, Wav2Vec2ForCTC

from w2v_lightning import LibriSpeechDataModule, Wav2Vec2CTC
from w2v_lightning.__main__ import main
from w2v_lightning.errors import InputError
from w2v_lightning.model import wav2vec2
from w2v_lightning.model.lora import ATTENTION_PROJECTIONS, Lora, merged
from w2v_lightning.text.vocabulary import Vocabulary


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    wav2vec2.save_pretrained(
        tmp_path / "base", wav2vec2.from_scratch(TINY_CONFIG, Vocabulary()), Vocabulary(), normalise=True
    )
    return str(tmp_path / "base")


@pytest.fixture
def data(tmp_path):
    write_split(tmp_path / "corpus", "train", random_texts(12, seed=1), "1")
    write_split(tmp_path / "corpus", "dev", random_texts(2, seed=2), "2")
    return LibriSpeechDataModule(
        str(tmp_path / "corpus"), ["train"], ["dev"], batch_seconds=8, device_seconds=8, num_workers=0
    )


def fit(module, data, tmp_path, max_steps, ckpt_path=None):
    trainer = Trainer(
        accelerator="cpu", max_steps=max_steps, limit_val_batches=0, logger=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
        callbacks=[ModelCheckpoint(every_n_train_steps=2, save_top_k=-1)],
    )  # fmt: skip
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
    return trainer


def module_of(folder, **options):
    torch.manual_seed(1)
    return Wav2Vec2CTC(folder, **{"lora": Lora(rank=4), "learning_rate": 1e-2, "warmup": 0.0, **options})


def logits(model):
    torch.manual_seed(2)
    with torch.no_grad():
        return wav2vec2.ctc_logits(model.eval(), torch.randn(2, 16_000), torch.tensor([16_000, 12_000]))


def test_only_lora_and_the_head_are_trained_and_said_to_be(folder, data, tmp_path, caplog):
    caplog.set_level("INFO")
    module = module_of(folder)
    before = {name: parameter.detach().clone() for name, parameter in module.model.named_parameters()}
    fit(module, data, tmp_path, max_steps=2)
    changed = {name for name, p in module.model.named_parameters() if not torch.equal(p, before[name])}
    projections = {
        f"wav2vec2.encoder.layers.{layer}.attention.{name}.lora_{matrix}.default.weight"
        for layer in range(TINY_CONFIG["num_hidden_layers"])
        for name in ATTENTION_PROJECTIONS
        for matrix in "AB"
    }
    assert changed == projections | {"lm_head.weight", "lm_head.bias"}
    assert "of them trained: LoRA and the CTC head." in caplog.text


def test_names_of_the_base_model_are_kept_but_for_the_projections(folder):
    base = {name.replace(".base_layer", "") for name in module_of(folder).model.state_dict() if "lora_" not in name}
    assert base == set(AutoModelForCTC.from_pretrained(folder).state_dict())


def test_it_starts_as_the_base_model(folder):
    assert torch.equal(logits(module_of(folder).model), logits(AutoModelForCTC.from_pretrained(folder)))


def test_the_exported_folder_is_a_plain_model_that_puts_out_the_same(folder, data, tmp_path):
    module = module_of(folder)
    fit(module, data, tmp_path, max_steps=3)
    module.save_pretrained(tmp_path / "exported")
    exported = AutoModelForCTC.from_pretrained(tmp_path / "exported")
    assert type(exported) is Wav2Vec2ForCTC
    assert not list((tmp_path / "exported").glob("adapter*"))
    assert exported.state_dict().keys() == AutoModelForCTC.from_pretrained(folder).state_dict().keys()
    torch.testing.assert_close(logits(exported), logits(module.model), rtol=0, atol=1e-5)
    assert (logits(exported) - logits(AutoModelForCTC.from_pretrained(folder))).abs().max() > 1e-2
    assert any("lora_" in name for name in module.model.state_dict())  # training can continue


def test_without_lora_nothing_is_copied(folder):
    model = module_of(folder, lora=None).model
    assert merged(model) is model


def test_a_checkpoint_resumes_and_loads(folder, data, tmp_path):
    exact = {"activation_dropout": 0.0, "layerdrop": 0.0}
    straight = module_of(folder, **exact)
    fit(straight, data, tmp_path, max_steps=4)
    half, last = sorted(tmp_path.rglob("*.ckpt"), key=lambda path: torch.load(path)["global_step"])
    resumed = module_of(folder, **exact)
    fit(resumed, data, tmp_path / "resumed", max_steps=4, ckpt_path=half)
    loaded = Wav2Vec2CTC.load_from_checkpoint(last, map_location="cpu", weights_only=True)
    assert loaded.hparams.lora == {"rank": 4, "alpha": 16.0, "dropout": 0.0}
    for module in (resumed, loaded):
        state = module.state_dict()
        assert all(torch.equal(state[name], value) for name, value in straight.state_dict().items())


def test_options_and_config_files_ask_for_it_by_name(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main(["fit", "--data.root", "x", "--model.lora.rank", "4", "--print_config"])
    assert not end.value.code
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["model"]["lora"] == {"rank": 4, "alpha": 16.0, "dropout": 0.0}


def test_the_missing_library_is_named_with_its_extra(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(InputError, match=r"pip install 'w2v-lightning\[peft\]'"):
        module_of(folder)


@pytest.mark.parametrize("lora", [Lora(rank=0), Lora(dropout=1.0)])
def test_impossible_values_are_refused(folder, lora):
    with pytest.raises(InputError, match=r"model\.lora"):
        module_of(folder, lora=lora)
