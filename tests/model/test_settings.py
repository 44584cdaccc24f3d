"""Every key of transformers' Wav2Vec2Config: applied as transformers applies it, irrelevant, or refused by name."""

import json

import numpy as np
import pytest
import torch
from tiny import TINY_CONFIG
from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

from w2v_lightning.data.masking import draw_masks
from w2v_lightning.errors import InputError
from w2v_lightning.model import pretraining, settings, wav2vec2
from w2v_lightning.text.vocabulary import Vocabulary

DROPOUTS = ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout", "final_dropout")
NO_DROPOUT = dict.fromkeys((*DROPOUTS, "layerdrop"), 0.0)

# Other values than TINY_CONFIG's; logits must be those of transformers, and others than before.
APPLIED_IN_LOGITS = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "hidden_act": "relu",
    "initializer_range": 0.2,
    "layer_norm_eps": 0.5,
    "feat_extract_norm": "group",
    "feat_extract_activation": "relu",
    "conv_dim": [32, 32, 16],
    "conv_stride": [10, 4, 4],
    "conv_kernel": [20, 6, 4],
    "conv_bias": True,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "do_stable_layer_norm": True,
    "adapter_attn_dim": 4,
}
# Other values, and the masks that then are drawn of 100 frames and 48 channels.
APPLIED_IN_MASKS = {
    "mask_time_prob": 0.3,
    "mask_time_length": 20,
    "mask_time_min_masks": 30,
    "mask_feature_prob": 0.9,
    "mask_feature_length": 4,
    "mask_feature_min_masks": 20,
    "apply_spec_augment": False,
}
OF_PRETRAINING = "used by Wav2Vec2ForPreTraining alone; options of pre-training (pretraining.py)"
OF_CLASSIFIERS = "used by transformers' heads for classification alone"
OUTPUT_FORM = "form of what transformers' forward returns, not its values"
IRRELEVANT = {
    **dict.fromkeys(
        ("num_codevectors_per_group", "num_codevector_groups", "contrastive_logits_temperature"), OF_PRETRAINING
    ),
    **dict.fromkeys(
        ("num_negatives", "codevector_dim", "proj_codevector_dim", "diversity_loss_weight"), OF_PRETRAINING
    ),
    "feat_quantizer_dropout": OF_PRETRAINING,
    **dict.fromkeys(("use_weighted_layer_sum", "classifier_proj_size", "tdnn_dim", "tdnn_kernel"), OF_CLASSIFIERS),
    **dict.fromkeys(("tdnn_dilation", "xvector_output_dim", "id2label", "label2id", "problem_type"), OF_CLASSIFIERS),
    **dict.fromkeys(("output_hidden_states", "output_attentions", "return_dict"), OUTPUT_FORM),
    **dict.fromkeys(("adapter_kernel_size", "adapter_stride", "num_adapter_layers"), "used with add_adapter alone"),
    "output_hidden_size": "used with add_adapter alone",
    **dict.fromkeys(("bos_token_id", "eos_token_id"), "CTC has no such tokens; the tokenizer says what they are"),
    **dict.fromkeys(("transformers_version", "architectures", "_name_or_path", "model_type"), "says what wrote it"),
    **dict.fromkeys(("chunk_size_feed_forward", "is_encoder_decoder"), "transformers' wav2vec2 never reads it"),
    "num_feat_extract_layers": "follows from conv_dim",
    "tie_word_embeddings": "wav2vec2 has no input embeddings",
}
REFUSED = {
    "add_adapter": True,
    "ctc_loss_reduction": "mean",
    "ctc_zero_infinity": False,
    "dtype": "float16",
    "quantization_config": {"load_in_8bit": True},
    "vocab_size": 40,
    "pad_token_id": 3,
}
PROVED = (APPLIED_IN_LOGITS, APPLIED_IN_MASKS, IRRELEVANT, REFUSED, dict.fromkeys((*DROPOUTS, "layerdrop")))


def build(**config):
    torch.manual_seed(0)
    return wav2vec2.from_scratch({**TINY_CONFIG, **NO_DROPOUT, **config}, Vocabulary()).eval()


def logits(model, waveforms_BT, **options):
    num_samples_B = torch.full((len(waveforms_BT),), waveforms_BT.shape[1])
    with torch.no_grad():
        return wav2vec2.ctc_logits(model, waveforms_BT, num_samples_B, **options)


def test_every_key_of_transformers_is_accounted_for_once():
    keys = [key for table in PROVED for key in table]
    assert len(keys) == len(set(keys))
    assert set(Wav2Vec2Config().to_dict()) <= set(keys)


@pytest.mark.parametrize("key", APPLIED_IN_LOGITS)
def test_a_setting_changes_the_logits_as_in_transformers(key):
    waveforms_BT = torch.randn(1, 8_000)
    # Larger weights than the usual ones, so that each part of the model matters.
    base = {"initializer_range": 0.1, "do_stable_layer_norm": key == "adapter_attn_dim"}  # only these have adapters
    plain, model = build(**base), build(**{**base, key: APPLIED_IN_LOGITS[key]})
    for name, weight in model.named_parameters():
        if "adapter_layer" in name:  # new ones hardly change anything
            torch.nn.init.normal_(weight)
    ours = logits(model, waveforms_BT)
    torch.testing.assert_close(ours, model(waveforms_BT).logits, rtol=1e-4, atol=1e-5)
    before = logits(plain, waveforms_BT)
    assert ours.shape != before.shape or not torch.allclose(ours, before, atol=1e-4)


@pytest.mark.parametrize("key", [key for key in DROPOUTS if key != "attention_dropout"])
def test_a_dropout_of_everything_gives_what_transformers_gives(key):
    waveforms_BT = torch.randn(1, 8_000)
    model = build(**{key: 1.0}, apply_spec_augment=False)
    ours, theirs = logits(model.train(), waveforms_BT), model(waveforms_BT).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(ours, logits(model.eval(), waveforms_BT), atol=1e-4)


def test_attention_dropout_drops_attention():
    waveforms_BT, model = torch.randn(1, 8_000), build(attention_dropout=0.9)
    assert not torch.allclose(logits(model.train(), waveforms_BT), logits(model.eval(), waveforms_BT), atol=1e-4)


def test_layer_drop_of_everything_gives_what_transformers_gives():
    waveforms_BT = torch.randn(1, 8_000)
    model = build(layerdrop=1.0, apply_spec_augment=False).train()
    torch.testing.assert_close(logits(model, waveforms_BT, dropped_layers=(0, 1)), model(waveforms_BT).logits)


@pytest.mark.parametrize("key", APPLIED_IN_MASKS)
def test_a_setting_of_the_masks_changes_what_is_masked(key):
    def masks(**changes):
        # one span is the least, so that the number of spans is that of the setting
        config = {"mask_time_prob": 0.1, "mask_feature_prob": 0.1, "mask_feature_min_masks": 1, **changes}
        spec = settings.spec_augment(Wav2Vec2Config(**config))
        return draw_masks(spec, 100, 48, np.random.default_rng(0))

    changed, before = masks(**{key: APPLIED_IN_MASKS[key]}), masks()
    assert any(not np.array_equal(a, b) for a, b in zip(changed, before, strict=True))
    if key == "apply_spec_augment":
        assert not any(mask.any() for mask in changed)


def test_a_model_without_masks_waits_for_no_gradient_of_the_mask_embedding():
    model = build(apply_spec_augment=False, mask_time_prob=0.5)
    wav2vec2.freeze(model, feature_encoder=False)
    assert not model.wav2vec2.masked_spec_embed.requires_grad
    with pytest.raises(InputError, match=r"apply_spec_augment=true"):
        pretraining.from_scratch({**TINY_CONFIG, "apply_spec_augment": False})


@pytest.mark.parametrize("key", REFUSED)
def test_a_change_without_effect_is_refused_with_a_remedy(key):
    with pytest.raises(InputError, match=rf"model\.config: {key} is .*, only .* is supported: \w+"):
        build(**{key: REFUSED[key]})


@pytest.fixture
def folder(tmp_path):
    wav2vec2.save_pretrained(tmp_path / "model", build(), Vocabulary(), normalise=True)
    return tmp_path / "model"


@pytest.mark.parametrize("key", settings.REQUIRED)
def test_a_model_with_an_unsupported_setting_is_refused_by_name(folder, key):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: REFUSED[key]}))
    with pytest.raises(InputError, match=rf"{key} in config\.json is"):
        wav2vec2.from_pretrained(str(folder), {})


def test_training_settings_of_a_finished_model_are_no_obstacle(folder):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "ctc_loss_reduction": "mean", "dtype": "bfloat16"}))
    assert wav2vec2.from_pretrained(str(folder), {})[0].dtype == torch.float32


@pytest.mark.parametrize("changes", [{"hidden_size": 32}, {"conv_dim": [32, 32, 16]}, {"intermediate_size": 64}])
def test_a_change_that_contradicts_the_weights_names_key_shapes_and_remedy(folder, changes):
    ((key, value),) = changes.items()
    with pytest.raises(InputError) as caught:
        wav2vec2.from_pretrained(str(folder), {"mask_time_prob": 0.3, **changes})
    message = str(caught.value)
    assert f"model.config: {key}={value!r} (the model's own is {TINY_CONFIG[key]!r})" in message
    assert "has shape (" in message
    assert "model.pretrained=null" in message
    assert "\n" not in message


def test_a_config_file_that_contradicts_its_weights_is_named(folder):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "intermediate_size": 64}))
    with pytest.raises(InputError, match=r"config\.json contradicts the weights: .* has shape"):
        wav2vec2.from_pretrained(str(folder), {})


def test_the_stored_weights_are_those_of_transformers(folder):
    theirs = Wav2Vec2ForCTC.from_pretrained(folder).eval()
    waveforms_BT = torch.randn(1, 8_000)
    ours = logits(wav2vec2.from_pretrained(str(folder), {})[0].eval(), waveforms_BT)
    torch.testing.assert_close(ours, theirs(waveforms_BT).logits, rtol=1e-4, atol=1e-5)
