"""All implementations compute the same logits and gradients, and an explicit setting is used."""

import tomllib
from pathlib import Path

import pytest
import torch
from tiny import TINY_CONFIG
from torch.nn import functional

from w2v_lightning.errors import InputError
from w2v_lightning.model import features, positional, speed, wav2vec2
from w2v_lightning.model.features import convolution, moments, normalised_weights
from w2v_lightning.model.layers import Packing
from w2v_lightning.model.positional import correlation, fastest_way, fft_length
from w2v_lightning.model.speed import FLASH4, FLASH4_FRAMES, Speed, _obstacle_to_flash4
from w2v_lightning.text.vocabulary import Vocabulary

STOCK = Speed("transformers", "convolution", "padded", "transformers", "torch", False, False)
NO_DROPOUT = dict.fromkeys(
    ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout", "final_dropout", "layerdrop"),
    0.0,
)
GROUP = TINY_CONFIG | {"feat_extract_norm": "group"}
GROUP_BIAS = GROUP | {"conv_bias": True, "num_conv_pos_embeddings": 15}
PRE_NORM = TINY_CONFIG | {"do_stable_layer_norm": True, "conv_bias": True}
CONFIGS = {"group": GROUP, "group with bias": GROUP_BIAS, "layer": TINY_CONFIG, "pre-norm": PRE_NORM}
# Few samples, so that every frame matters for the statistics of the norm, and an offset that a covariance must ignore.
NUM_SAMPLES = (8_000, 7_210, 5_333)


def build(config, dtype=torch.float32, **options):
    torch.manual_seed(0)
    model = wav2vec2.from_scratch({**config, **NO_DROPOUT, "apply_spec_augment": False, **options}, Vocabulary())
    for name, parameter in model.named_parameters():
        if "feature_extractor" in name and parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=1.0)  # by default norms start as 1 and 0, which hides mistakes
    return model.train().to(dtype)


def logits_and_gradients(model, forward, num_samples=NUM_SAMPLES):
    torch.manual_seed(1)
    waveforms_BT = torch.zeros(len(num_samples), max(num_samples), dtype=model.dtype)
    for waveform_T, number in zip(waveforms_BT, num_samples, strict=True):
        waveform_T[:number] = torch.randn(number, dtype=model.dtype).cumsum(0) / 10 + 0.5
    num_samples_B = torch.tensor(num_samples)
    logits_BFV = forward(waveforms_BT, num_samples_B)
    is_real_BF = torch.arange(logits_BFV.shape[1]) < model._get_feat_extract_output_lengths(num_samples_B)[:, None]
    model.zero_grad()
    logits_BFV[is_real_BF].square().mean().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"logits": logits_BFV[is_real_BF].detach(), **gradients}


def assert_same(actual, expected, tolerance):
    assert actual.keys() == expected.keys()
    whole = torch.cat([values.flatten() for values in expected.values()]).norm()
    for name, values in expected.items():
        assert (actual[name] - values).norm() < tolerance * max(values.norm(), 1e-3 * whole), name


@pytest.mark.parametrize("speed", [Speed(), Speed("channels_last"), Speed(positional_convolution="fft")])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_in_float64_every_way_computes_the_same(config, speed):
    model = build(config, torch.float64)
    expected = logits_and_gradients(model, lambda *x: wav2vec2.ctc_logits(model, *x, speed=STOCK))
    actual = logits_and_gradients(model, lambda *x: wav2vec2.ctc_logits(model, *x, speed=speed))
    # The group norm of STOCK is computed in float32.
    assert_same(actual, expected, 1e-4 if config["feat_extract_norm"] == "group" else 1e-9)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_in_float32_logits_and_gradients_are_those_of_transformers(config):
    model = build(config)
    expected = logits_and_gradients(model, lambda waveforms_BT, _: model(waveforms_BT).logits, [8_000])
    for way in ("fft", "convolution"):
        speed = Speed(positional_convolution=way)
        actual = logits_and_gradients(model, lambda *x, s=speed: wav2vec2.ctc_logits(model, *x, speed=s), [8_000])
        assert_same(actual, expected, 1e-4)


def test_a_trained_bias_before_the_group_norm_gets_a_gradient_though_it_is_zero():
    """DDP waits for the gradient of this bias."""
    model = build(GROUP_BIAS)
    actual = logits_and_gradients(model, lambda *x: wav2vec2.ctc_logits(model, *x))
    assert actual["wav2vec2.feature_extractor.conv_layers.0.conv.bias"].abs().max() < 1e-6


@pytest.mark.slow
def test_compiled_layers_compute_the_same():
    model = build(GROUP)
    expected = logits_and_gradients(model, lambda *x: wav2vec2.ctc_logits(model, *x, speed=Speed(compile=False)))
    actual = logits_and_gradients(model, lambda *x: wav2vec2.ctc_logits(model, *x, speed=Speed(compile=True)))
    assert_same(actual, expected, 1e-4)


def test_in_bfloat16_no_way_is_less_exact_than_transformers_modules():
    model = build(GROUP | {"conv_dim": [64, 64, 64]})
    exact = logits_and_gradients(model, lambda *x: wav2vec2.ctc_logits(model, *x, speed=STOCK))

    def error(speed):
        with torch.autocast("cpu", torch.bfloat16):
            actual = logits_and_gradients(model, lambda *x: wav2vec2.ctc_logits(model, *x, speed=speed))
        return [((actual[name] - values).norm() / values.norm()).item() for name, values in exact.items()]

    stock, ours = error(STOCK), error(Speed(positional_convolution="fft"))
    assert ours[0] < stock[0]
    assert sorted(ours)[len(ours) // 2] < sorted(stock)[len(stock) // 2]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_in_half_precision_are_transformed_in_float32(dtype):
    """FFTs do not support bfloat16, nor float16 on a CPU."""
    torch.manual_seed(0)
    conv, hidden_BFC = torch.nn.Conv1d(32, 32, 16, padding=8, groups=4), torch.randn(2, 50, 32)
    expected = positional.positional(conv, hidden_BFC, "convolution")
    actual = positional.positional(conv.to(dtype), hidden_BFC.to(dtype), "fft")
    assert actual.dtype == dtype
    torch.testing.assert_close(actual.float(), expected, rtol=0.02, atol=0.02)


# ---- the pieces -----------------------------------------------------------------------------------------------------


def test_moments_are_those_of_the_real_windows():
    torch.manual_seed(0)
    windows_BFK = (torch.randn(2, 700, 5).cumsum(1) + 100).double()
    mean_BK, covariance_BKK = moments(windows_BFK, torch.tensor([700, 301]))
    for row, number in enumerate((700, 301)):
        real_FK = windows_BFK[row, :number]
        torch.testing.assert_close(mean_BK[row], real_FK.mean(dim=0))
        torch.testing.assert_close(covariance_BKK[row], real_FK.T.cov(correction=0))


def test_a_filter_that_hears_a_millionth_of_the_waveform_is_normalised_exactly():
    """The variance of its output follows from a covariance whose entries are a million times larger."""
    torch.manual_seed(0)
    layer = build(GROUP).wav2vec2.feature_extractor.conv_layers[0]
    with torch.no_grad():
        layer.conv.weight.zero_()
        layer.conv.weight[:, 0, :3] = torch.tensor([1.0, -2.0, 1.0])
    low_T = torch.sin(torch.arange(20_000) / 2_000)
    windows_BFK = (low_T + 1e-5 * torch.randn(20_000))[None].unfold(1, 20, 10)
    weight_BKC, _ = normalised_weights(layer, windows_BFK, torch.tensor([windows_BFK.shape[1]]))
    exact_BFC = windows_BFK.double() @ layer.conv.weight[:, 0].T.double()
    expected_C = layer.layer_norm.weight / (exact_BFC.var(dim=1, correction=0)[0] + layer.layer_norm.eps).sqrt()
    torch.testing.assert_close(weight_BKC[0, 0].double(), expected_C.double(), rtol=1e-5, atol=0)


@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (2, 2), (8, 5), (2, 3)])
def test_convolution_with_channels_last(kernel, stride):
    conv = torch.nn.Conv1d(6, 10, kernel, stride)
    hidden_BFC = torch.randn(2, 31, 6)
    expected_BFC = conv(hidden_BFC.transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(convolution(conv, hidden_BFC), expected_BFC)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_rows_of_the_feature_encoder_may_be_longer_and_several(config, monkeypatch):
    model = build(config, torch.float64)
    expected = logits_and_gradients(model, wav2vec2_features(model))
    monkeypatch.setattr(features, "row_length", lambda num_frames, _: num_frames + 500)
    assert_same(logits_and_gradients(model, wav2vec2_features(model)), expected, 1e-9)
    rows, in_a_row = [], features._in_a_row
    monkeypatch.setattr(features, "_in_a_row", lambda *x: rows.append(x) or in_a_row(*x))
    monkeypatch.setattr(features, "MAX_ROW_ELEMENTS", 30_000)
    assert_same(logits_and_gradients(model, wav2vec2_features(model)), expected, 1e-9)
    assert len(rows) == 3


def wav2vec2_features(model):
    return lambda *x: features.conv_features(model.wav2vec2, *x)


@pytest.mark.parametrize(("kernels", "strides"), [((4, 5, 2), (3, 2, 2)), ((5, 1, 4), (2, 3, 3)), ((2, 7), (5, 1))])
def test_an_utterance_in_a_row_finds_its_own_frames_whatever_the_geometry(kernels, strides):
    config = TINY_CONFIG | {"conv_kernel": kernels, "conv_stride": strides, "conv_dim": [8] * len(kernels)}
    model = build(config, torch.float64, num_feat_extract_layers=len(kernels))
    for num_samples in ((100, 53, 100), (61,)):
        expected = logits_and_gradients(model, lambda x, _: model.wav2vec2.feature_extractor(x).mT, num_samples)
        assert_same(logits_and_gradients(model, wav2vec2_features(model), num_samples), expected, 1e-9)
    waveforms_BT = torch.zeros(2, 77, dtype=torch.float64)
    actual_BFC = features.conv_features(model.wav2vec2, waveforms_BT, torch.tensor([77, 60]))
    assert actual_BFC.shape == model.wav2vec2.feature_extractor(waveforms_BT).mT.shape


@pytest.mark.parametrize("taps", [1, 4, 5, 128])
@pytest.mark.parametrize("num_frames", [1, 3, 50])
def test_correlation_is_the_grouped_convolution(taps, num_frames):
    torch.manual_seed(0)
    hidden_BFC, weight_CIK = torch.randn(2, num_frames, 6).double(), torch.randn(6, 3, taps).double()
    expected_BCF = functional.conv1d(hidden_BFC.transpose(1, 2), weight_CIK, padding=taps // 2, groups=2)
    actual_BFC = correlation(hidden_BFC, weight_CIK, 2, offset=taps // 2)
    torch.testing.assert_close(actual_BFC, expected_BCF[..., :num_frames].transpose(1, 2))


def test_fft_lengths_are_few_and_long_enough():
    lengths = [fft_length(least) for least in range(1, 3000)]
    assert all(length >= least for least, length in enumerate(lengths, start=1))
    assert all(length < 1.51 * least for least, length in enumerate(lengths, start=1) if least > 2)
    assert len(set(lengths)) < 25


def test_the_fastest_positional_convolution_is_measured_once_and_remembered(tmp_path, monkeypatch):
    monkeypatch.setenv("W2V_LIGHTNING_CACHE", str(tmp_path))
    trials = []
    seconds = {"fft": 1.0, "convolution": 2.0}
    monkeypatch.setattr(positional, "_seconds", lambda way, *_: trials.append(way) or seconds[way])
    conv = build(TINY_CONFIG).wav2vec2.encoder.pos_conv_embed.conv
    for content, expected_trials in ((None, 2), ("", 0), ("{", 2), ("[]", 2), ('{"other": "fft"}', 2)):
        positional._remembered_way.cache_clear()
        if content:
            (tmp_path / "positional_convolution.json").write_text(content)
        trials.clear()
        assert fastest_way(conv, torch.device("cpu"), torch.float32) == "fft"
        assert len(trials) == expected_trials, content
    assert '"other": "fft"' in (tmp_path / "positional_convolution.json").read_text()
    positional._remembered_way.cache_clear()


def test_a_way_that_was_not_there_before_is_tried_too(tmp_path, monkeypatch):
    monkeypatch.setenv("W2V_LIGHTNING_CACHE", str(tmp_path))
    seconds = {"blocks": 0.5, "fft": 1.0, "convolution": 2.0}
    monkeypatch.setattr(positional, "_seconds", lambda way, *_: seconds[way])
    conv, cpu = build(TINY_CONFIG).wav2vec2.encoder.pos_conv_embed.conv, torch.device("cpu")
    positional._remembered_way.cache_clear()
    assert fastest_way(conv, cpu, torch.bfloat16) == "fft"
    monkeypatch.setattr(positional, "has_triton", lambda device: True)
    positional._remembered_way.cache_clear()
    assert fastest_way(conv, cpu, torch.bfloat16) == "blocks"
    assert fastest_way(conv, cpu, torch.float32) == "fft"
    assert fastest_way(torch.nn.Conv1d(8, 8, 130, padding=65), cpu, torch.bfloat16) == "fft"
    assert fastest_way(torch.nn.Conv1d(256, 256, 3, padding=1), cpu, torch.bfloat16) == "fft"
    positional._remembered_way.cache_clear()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_it_can_be_measured_where_nothing_is_trained(dtype):
    positional._remembered_way.cache_clear()
    conv = build(GROUP).wav2vec2.encoder.pos_conv_embed.conv
    with torch.inference_mode():
        assert fastest_way(conv, torch.device("cpu"), dtype) in ("fft", "convolution")


def test_packed_frames_come_back_where_they_were():
    hidden_BFC = torch.randn(3, 7, 2)
    num_frames_B = torch.tensor([7, 1, 4])
    packing = Packing.from_counts(num_frames_B, num_frames_B, 7)
    packed_NC = packing.pack(hidden_BFC)
    assert packing.bounds.starts_B.tolist() == [0, 7, 8, 12]
    assert packing.bounds.longest == 7
    assert torch.equal(packed_NC, torch.cat([hidden_BFC[0], hidden_BFC[1, :1], hidden_BFC[2, :4]]))
    again_BFC = packing.unpack(packed_NC)
    is_real_BF1 = (torch.arange(7) < num_frames_B[:, None])[..., None]
    assert torch.equal(again_BFC, hidden_BFC * is_real_BF1)
    num_frames_B = torch.tensor([7, 7, 7])
    assert Packing.from_counts(num_frames_B, num_frames_B, 7).positions_N is None


@pytest.mark.skipif(speed.varlen_attn is None, reason="torch before 2.10 has no packed attention on any device")
def test_what_a_device_cannot_do_is_refused_and_auto_goes_round_it():
    model = build(TINY_CONFIG)
    x = torch.randn(1, 8_000), torch.tensor([8_000])
    wav2vec2.ctc_logits(model, *x)
    with pytest.raises(InputError, match=r"model\.speed\.attention=packed: flash attention needs a GPU"):
        wav2vec2.ctc_logits(model, *x, speed=Speed(attention="packed"))
    with pytest.raises(InputError, match=r"model\.speed\.positional_convolution=blocks: its kernels require a GPU"):
        wav2vec2.ctc_logits(model, *x, speed=Speed(positional_convolution="blocks"))
    with pytest.raises(InputError, match=r"model\.speed\.positional_convolution: 'fast' is unknown; choose from auto"):
        Speed(positional_convolution="fast")


@pytest.mark.parametrize(
    ("name", "value"),
    [("feature_encoder", "fused"), ("positional_convolution", "blocks"), ("feed_forward", "fused"), ("ctc", "fused")],
)
def test_kernels_are_refused_where_torch_is_too_old_for_them(monkeypatch, name, value):
    monkeypatch.setattr(speed, "HAS_TRITON_OP", False)
    Speed()
    with pytest.raises(InputError, match=rf"model\.speed\.{name}={value}: its kernels need torch 2\.6"):
        Speed(**{name: value})


@pytest.mark.parametrize(
    ("installed", "capability", "head_size", "obstacle"),
    [
        (FLASH4, (9, 0), 64, None),
        (None, (9, 0), 64, "flash-attn-4 is not installed, pip install 'w2v-lightning"),
        ("4.0.1", (9, 0), 64, f"flash-attn-4 {FLASH4} is required.* found 4.0.1"),
        (FLASH4, (8, 0), 64, "flash-attn-4 needs a Hopper GPU"),
        (FLASH4, (9, 0), 80, "flash-attn-4 is supported for heads of 64 channels, found 80"),
    ],
)
def test_flash4_is_taken_where_it_has_been_tried(monkeypatch, request, installed, capability, head_size, obstacle):
    _obstacle_to_flash4.cache_clear()
    request.addfinalizer(_obstacle_to_flash4.cache_clear)
    monkeypatch.setattr("w2v_lightning.model.speed.installed_version", lambda name: installed)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    device = torch.device("cuda")
    assert Speed().uses_flash4(device, head_size, FLASH4_FRAMES) == (obstacle is None)
    assert not Speed().uses_flash4(device, head_size, FLASH4_FRAMES - 1)
    assert not Speed(attention="packed").uses_flash4(device, head_size, FLASH4_FRAMES)
    if obstacle:
        with pytest.raises(InputError, match=rf"model\.speed\.attention=flash4: {obstacle}"):
            Speed(attention="flash4").uses_flash4(device, head_size, 1)
    else:
        assert Speed(attention="flash4").uses_flash4(device, head_size, 1)


def test_the_extra_installs_the_flash4_that_is_taken():
    project = tomllib.loads(Path(__file__).parents[2].joinpath("pyproject.toml").read_text())["project"]
    assert project["optional-dependencies"]["flash4"] == [f"flash-attn-4[cu13]=={FLASH4}"]


def test_on_the_cpu_nothing_that_needs_a_gpu_is_taken():
    cpu = torch.device("cpu")
    assert Speed().feature_way(cpu) == "channels_last"
    assert not Speed().compiles(cpu)
    assert not Speed().fuses_dropout(cpu)
    assert not Speed().fuses_optimizer(cpu)
    assert Speed().feature_way(torch.device("mps")) == "transformers"
