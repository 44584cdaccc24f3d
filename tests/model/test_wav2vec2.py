import json
import os
import pickle

import numpy as np
import pytest
import torch
from tiny import TINY_CONFIG
from transformers import AutoModelForCTC, AutoProcessor, Wav2Vec2Config, Wav2Vec2ForCTC, Wav2Vec2ForPreTraining

from w2v_lightning.errors import InputError
from w2v_lightning.model import pretraining, wav2vec2
from w2v_lightning.text.vocabulary import Vocabulary

NO_DROPOUT = dict.fromkeys(
    ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout", "final_dropout", "layerdrop"),
    0.0,
)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return wav2vec2.from_scratch({**TINY_CONFIG, **NO_DROPOUT}, Vocabulary()).eval()


@pytest.fixture
def folder(model, tmp_path):
    wav2vec2.save_pretrained(tmp_path / "model", model, Vocabulary(), normalise=True)
    return tmp_path / "model"


def edit_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_masks_do_what_those_of_transformers_do(model):
    waveforms_BT, num_samples_B = torch.randn(2, 16_000), torch.tensor([16_000, 16_000])
    num_frames = int(model._get_feat_extract_output_lengths(num_samples_B)[0])
    time_mask_BF = torch.rand(2, num_frames) < 0.5
    ours = wav2vec2.ctc_logits(model, waveforms_BT, num_samples_B, time_mask_BF)
    # Wav2Vec2ForCTC of transformers 5.2 ignores the mask; the model in it does not.
    theirs = model.lm_head(model.wav2vec2(waveforms_BT, mask_time_indices=time_mask_BF).last_hidden_state)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    channel_mask_BC = torch.rand(2, model.config.hidden_size) < 0.5
    with_channels = wav2vec2.ctc_logits(model, waveforms_BT, num_samples_B, time_mask_BF, channel_mask_BC)
    assert not torch.allclose(with_channels, ours)
    all_channels = torch.ones_like(channel_mask_BC)
    silenced = wav2vec2.ctc_logits(model, waveforms_BT, num_samples_B, channel_mask_BC=all_channels)
    torch.testing.assert_close(silenced[0], silenced[1])  # nothing of the waveforms is left


def test_saved_folder_is_loaded_by_plain_transformers(model, folder):
    theirs = AutoModelForCTC.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)
    assert type(theirs) is Wav2Vec2ForCTC
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), theirs.parameters(), strict=True))
    assert processor.tokenizer.get_vocab() == {token: i for i, token in enumerate(Vocabulary().tokens)}
    assert processor.tokenizer.pad_token_id == theirs.config.pad_token_id == 0
    assert processor.tokenizer("HELLO WORLD").input_ids == Vocabulary().encode("HELLO WORLD")
    assert processor.feature_extractor.do_normalize
    assert processor.feature_extractor.sampling_rate == 16_000


@pytest.mark.parametrize("normalise", [True, False])
def test_folder_comes_back_as_it_was_saved(model, tmp_path, normalise):
    vocabulary = Vocabulary((*"<|>", "[PAD]", *"abc"), blank="[PAD]")
    model = wav2vec2.from_scratch(TINY_CONFIG, vocabulary)
    wav2vec2.save_pretrained(tmp_path / "m", model, vocabulary, normalise)
    loaded, loaded_vocabulary, waveforms = wav2vec2.from_pretrained(str(tmp_path / "m"), {})
    assert (loaded_vocabulary, waveforms) == (vocabulary, (normalise, 16_000))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))
    assert AutoProcessor.from_pretrained(tmp_path / "m").tokenizer.pad_token_id == 3


def test_saving_over_a_model_replaces_it_whole(model, folder):
    folder.joinpath("config.json").write_text("of the previous model")
    wav2vec2.save_pretrained(folder, model, Vocabulary(), normalise=True)
    inode = folder.stat().st_ino
    wav2vec2.save_pretrained(folder, model, Vocabulary(), normalise=True)
    assert folder.stat().st_ino != inode
    assert AutoModelForCTC.from_pretrained(folder)
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o007, 0o660)])
def test_who_may_read_the_files_is_left_to_the_umask(model, tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        wav2vec2.save_pretrained(tmp_path / "m", model, Vocabulary(), normalise=True)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "m").iterdir()} == {mode}


def test_what_else_is_in_the_folder_stays(model, folder):
    (folder / "notes.txt").write_text("mine")
    (folder / "logs").mkdir()
    (folder / "config.json").write_text("of the previous model")
    wav2vec2.save_pretrained(folder, model, Vocabulary(), normalise=True)
    assert (folder / "notes.txt").read_text() == "mine"
    assert (folder / "logs").is_dir()
    assert AutoModelForCTC.from_pretrained(folder)
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_a_link_to_a_folder_stays_one(model, folder):
    link = folder.with_name("latest")
    link.symlink_to(folder)
    wav2vec2.save_pretrained(link, model, Vocabulary(), normalise=True)
    assert link.is_symlink()
    assert AutoModelForCTC.from_pretrained(folder)


def test_a_pretrained_encoder_gets_a_new_head_and_keeps_its_weights(tmp_path):
    encoder = Wav2Vec2ForPreTraining(Wav2Vec2Config(**TINY_CONFIG, codevector_dim=8, proj_codevector_dim=8))
    encoder.save_pretrained(tmp_path / "encoder")
    model, vocabulary, waveforms = wav2vec2.from_pretrained(str(tmp_path / "encoder"), {"mask_time_prob": 0.3})
    assert vocabulary == Vocabulary()
    assert waveforms == (True, 16_000)
    assert model.config.mask_time_prob == 0.3
    assert model.lm_head.out_features == len(vocabulary)
    theirs, ours = encoder.wav2vec2.state_dict(), model.wav2vec2.state_dict()
    assert theirs.keys() == ours.keys()  # including the parametrised positional convolution
    assert all(torch.equal(theirs[key], ours[key]) for key in theirs)


def test_weights_stored_in_half_precision_are_trained_in_float32(model, folder):
    model.half().save_pretrained(folder)
    loaded, _, _ = wav2vec2.from_pretrained(str(folder), {})
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}


@pytest.mark.parametrize("token_file", ["vocab_short", "vocab_missing", "blank_elsewhere"])
def test_a_vocabulary_that_does_not_fit_the_model_is_refused(folder, token_file):
    vocabulary_file = folder / "vocab.json"
    if token_file == "vocab_short":
        table = json.loads(vocabulary_file.read_text())
        vocabulary_file.write_text(json.dumps({token: i for token, i in table.items() if i < 20}))
        expected = "the tokenizer has 20 tokens, but the CTC head has 32"
    elif token_file == "vocab_missing":
        vocabulary_file.unlink()
        expected = "no vocab.json"
    else:
        edit_json(folder / "config.json", pad_token_id=5)
        expected = "pad_token_id in config.json is 5"
    with pytest.raises(InputError, match=expected):
        wav2vec2.from_pretrained(str(folder), {})


def test_missing_weights_are_refused(model, folder):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    del weights["wav2vec2.encoder.layers.1.attention.k_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lacks 1 weights .*layers\.1\.attention\.k_proj\.weight"):
        wav2vec2.from_pretrained(str(folder), {})


def test_what_is_no_wav2vec2_model_is_refused(tmp_path):
    with pytest.raises(InputError, match="neither a local model folder nor available on the Hugging Face Hub"):
        wav2vec2.from_pretrained(str(tmp_path / "nothing"), {})
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(InputError, match="is a bert model; a wav2vec2 model is required"):
        wav2vec2.from_pretrained(str(tmp_path), {})


def test_an_unknown_config_key_is_refused_with_the_nearest_right_one():
    with pytest.raises(InputError, match=r"no 'hiden_size'\. Did you mean hidden_size"):
        wav2vec2.from_scratch({"hiden_size": 3}, Vocabulary())


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def test_a_checkpoint_runs_no_code(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (folder / "model.safetensors").unlink()
    torch.save({"lm_head.weight": Bomb()}, folder / "pytorch_model.bin")
    with pytest.raises((InputError, pickle.UnpicklingError)):
        wav2vec2.from_pretrained(str(folder), {})
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("load", [wav2vec2.from_pretrained, pretraining.from_pretrained])
def test_pickled_weights_that_transformers_refuses_to_load_are_named(folder, monkeypatch, load):
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    monkeypatch.setattr("transformers.utils.import_utils.is_torch_greater_or_equal", lambda version: version != "2.6")
    with pytest.raises(InputError, match=r"model\.pretrained: .* has its weights in pytorch_model\.bin.*docs/smddp"):
        load(str(folder), {})


def test_input_spec_says_what_the_model_needs(model):
    spec = wav2vec2.input_spec(model.config, Vocabulary(), normalise=False)
    assert spec.num_frames(np.array([16_000])) == model._get_feat_extract_output_lengths(torch.tensor([16_000]))
    assert spec.num_channels == TINY_CONFIG["hidden_size"]
    assert not spec.normalise
