"""Output for an utterance: independent of the other utterances, and the same as that of transformers for it alone."""

import pytest
import torch
from tiny import TINY_CONFIG

from w2v_lightning.data.draw import draw_dropped_layers
from w2v_lightning.model import wav2vec2
from w2v_lightning.model.encoder import contextualise
from w2v_lightning.model.features import masked_group_norm
from w2v_lightning.model.speed import Speed
from w2v_lightning.text.vocabulary import Vocabulary

NUM_SAMPLES = (16_000, 9_000, 4_321, 400)
# The two published architectures with two layers each; the other layers would be the same.
BASE = {"num_hidden_layers": 2}
LARGE_LV60 = {
    "num_hidden_layers": 2,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "conv_bias": True,
}
ARCHITECTURES = {
    "base": BASE,
    "large-lv60": LARGE_LV60,
    "tiny group": TINY_CONFIG | {"feat_extract_norm": "group", "conv_bias": True, "do_stable_layer_norm": True},
    "tiny layer": TINY_CONFIG,
}


def build(architecture: str, **config):
    torch.manual_seed(0)
    return wav2vec2.from_scratch({**ARCHITECTURES[architecture], "layerdrop": 0.0, **config}, Vocabulary()).eval()


def speech(*num_samples: int, padded_to: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Waveforms that differ in loudness and offset, which a norm over time would mix, padded with zeros."""
    torch.manual_seed(1)
    waveforms_BT = torch.zeros(len(num_samples), padded_to or max(num_samples))
    for row, (waveform_T, number) in enumerate(zip(waveforms_BT, num_samples, strict=True)):
        waveform_T[:number] = (row + 1) * torch.randn(number) + 0.3 * row
    return waveforms_BT, torch.tensor(num_samples)


@torch.no_grad()
@pytest.mark.parametrize(
    "architecture",
    ["tiny group", "tiny layer", *(pytest.param(name, marks=pytest.mark.slow) for name in ("base", "large-lv60"))],
)
def test_alone_an_utterance_gives_what_transformers_gives(architecture):
    model = build(architecture)
    for number in NUM_SAMPLES:
        waveforms_BT, num_samples_B = speech(number)
        theirs = model(waveforms_BT).logits
        torch.testing.assert_close(wav2vec2.ctc_logits(model, waveforms_BT, num_samples_B), theirs, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("padding", [0, 24_000])
@pytest.mark.parametrize(
    "architecture", ["base", "tiny group", "tiny layer", pytest.param("large-lv60", marks=pytest.mark.slow)]
)
def test_a_batch_gives_what_its_utterances_give_alone(architecture, padding):
    model = build(architecture)
    waveforms_BT, num_samples_B = speech(*NUM_SAMPLES, padded_to=max(NUM_SAMPLES) + padding)
    logits_BFV = wav2vec2.ctc_logits(model, waveforms_BT, num_samples_B)
    for waveform_T, number, logits_FV in zip(waveforms_BT, NUM_SAMPLES, logits_BFV, strict=True):
        alone_FV = wav2vec2.ctc_logits(model, waveform_T[None, :number], torch.tensor([number]))[0]
        torch.testing.assert_close(logits_FV[: len(alone_FV)], alone_FV, rtol=0, atol=1e-5)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize(("architecture", "num_layers"), [("base", 12), ("large-lv60", 24)])
def test_so_it_is_in_the_published_depth(architecture, num_layers):
    model = build(architecture, num_hidden_layers=num_layers)
    numbers = (16_000, 9_000)
    waveforms_BT, num_samples_B = speech(*numbers, padded_to=32_000)
    logits_BFV = wav2vec2.ctc_logits(model, waveforms_BT, num_samples_B)
    for waveform_T, number, logits_FV in zip(waveforms_BT, numbers, logits_BFV, strict=True):
        stock_FV = model(waveform_T[None, :number]).logits[0]
        torch.testing.assert_close(logits_FV[: len(stock_FV)], stock_FV, rtol=0, atol=1e-5)


@torch.no_grad()
def test_stock_transformers_does_not_and_hf_compat_is_like_it():
    """If this fails, transformers has fixed the problem."""
    model = build("base")
    waveforms_BT, num_samples_B = speech(*NUM_SAMPLES, padded_to=32_000)
    stock_BFV = model(waveforms_BT).logits
    ours_BFV = wav2vec2.ctc_logits(model, waveforms_BT, num_samples_B)
    compat_BFV = wav2vec2.ctc_logits(model, waveforms_BT, num_samples_B, hf_compat=True)
    torch.testing.assert_close(compat_BFV, stock_BFV, rtol=0, atol=1e-5)
    assert (ours_BFV - stock_BFV).norm() > 0.05 * stock_BFV.norm()


@torch.no_grad()
def test_hf_compat_of_models_without_group_norm_keeps_the_attention_mask():
    model = build("tiny layer")
    waveforms_BT, num_samples_B = speech(*NUM_SAMPLES)
    attention_mask = torch.arange(waveforms_BT.shape[1]) < num_samples_B[:, None]
    stock_BFV = model(waveforms_BT, attention_mask=attention_mask).logits
    # After the end of an utterance all channels are equal, so a norm amplifies rounding errors a thousand times. Those
    # of the FFT are larger, and on a busy machine the measurement may choose the FFT.
    speed = Speed(positional_convolution="convolution")
    compat_BFV = wav2vec2.ctc_logits(model, waveforms_BT, num_samples_B, hf_compat=True, speed=speed)
    torch.testing.assert_close(compat_BFV, stock_BFV, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_group_norm_over_everything_is_torchs(dtype):
    norm = torch.nn.GroupNorm(8, 8)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    hidden_BCF = torch.randn(3, 8, 50).to(dtype)
    ours = masked_group_norm(norm, hidden_BCF, torch.tensor([50, 50, 50]))
    assert ours.dtype == dtype
    torch.testing.assert_close(
        ours.float(), norm(hidden_BCF.float()), atol=1e-5 if dtype == torch.float32 else 0.05, rtol=0
    )


def test_group_norm_does_not_look_behind_an_utterance():
    norm = torch.nn.GroupNorm(8, 8)
    hidden_BCF = torch.randn(1, 8, 50)
    spoilt_BCF = hidden_BCF.clone()
    spoilt_BCF[..., 30:] = float("nan")
    one, other = (masked_group_norm(norm, h, torch.tensor([30]))[..., :30] for h in (hidden_BCF, spoilt_BCF))
    assert torch.equal(one, other)


def gradients(model, dropped=(), **options) -> dict[str, torch.Tensor]:
    waveforms_BT, num_samples_B = speech(8_000, 6_000)
    model.zero_grad()
    logits_BFV = wav2vec2.ctc_logits(model, waveforms_BT, num_samples_B, dropped_layers=dropped, **options)
    logits_BFV[0, :10].square().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_a_dropped_layer_is_skipped_and_has_gradients_of_zero():
    model = build("tiny layer", num_hidden_layers=3)
    waveforms_BT, num_samples_B = speech(8_000)
    dropped = wav2vec2.ctc_logits(model, waveforms_BT, num_samples_B, dropped_layers=[1])
    actual = gradients(model, dropped=[1])
    assert actual.keys() == gradients(model).keys()
    assert all((g == 0).all() == (".layers.1." in name) for name, g in actual.items())
    del model.wav2vec2.encoder.layers[1]
    torch.testing.assert_close(dropped, wav2vec2.ctc_logits(model, waveforms_BT, num_samples_B))


def test_checkpointed_gradients_are_the_same_with_dropped_layers():
    model = build("tiny layer", num_hidden_layers=3).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    expected = gradients(model, dropped=[2])
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for name, gradient in gradients(model, dropped=[2]).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-7, msg=name)


def test_layers_are_dropped_by_seed_and_step():
    assert draw_dropped_layers(1, 7, 12, 0.5) == draw_dropped_layers(1, 7, 12, 0.5)
    draws = [tuple(draw_dropped_layers(seed, step, 12, 0.5)) for seed in range(3) for step in range(20)]
    assert len(set(draws)) > 55
    share = sum(len(draw_dropped_layers(0, step, 12, 0.1)) for step in range(2000)) / 24_000
    assert share == pytest.approx(0.1, abs=0.01)
    assert draw_dropped_layers(0, 0, 12, 0.0) == []


def test_the_transformer_without_lengths_sees_everything():
    model = build("tiny layer").wav2vec2
    hidden_BFC = torch.randn(2, 20, 48)
    everything = contextualise(model, hidden_BFC, None)
    assert torch.allclose(everything, contextualise(model, hidden_BFC, torch.tensor([20, 20])), atol=1e-6)
    assert not torch.allclose(everything[1], contextualise(model, hidden_BFC, torch.tensor([20, 10]))[1], atol=1e-3)
