"""On a GPU, every implementation computes the same as transformers' own modules."""

import pytest
import torch
from torch.nn import functional

from w2v_lightning.model import wav2vec2
from w2v_lightning.model.ctc import ctc_loss
from w2v_lightning.model.positional import positional
from w2v_lightning.model.speed import FLASH4, Speed
from w2v_lightning.runtime.hardware import installed_version
from w2v_lightning.text.vocabulary import Vocabulary

pytestmark = pytest.mark.gpu

STOCK = Speed("transformers", "convolution", "padded", "transformers", "torch", False, False)
NO_DROPOUT = dict.fromkeys(
    ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout", "final_dropout", "layerdrop"),
    0.0,
) | {"apply_spec_augment": False}
HAS_FLASH4 = installed_version("flash-attn-4") == FLASH4
BASE = {"num_hidden_layers": 3}
LARGE = {
    "num_hidden_layers": 3,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "conv_bias": True,
}


@pytest.fixture(autouse=True)
def exact_products():
    """Disable TF32, which cuDNN uses for convolutions by default."""
    assert torch.cuda.is_available(), "run with W2V_TEST_GPUS=0 on a machine with a GPU"
    with torch.backends.cudnn.flags(allow_tf32=False):
        yield


def build(config, **options):
    torch.manual_seed(0)
    model = wav2vec2.from_scratch({**config, **NO_DROPOUT, **options}, Vocabulary()).train().cuda()
    wav2vec2.freeze(model, feature_encoder=True)
    return model


def loss_and_gradient(model, forward, num_samples):
    torch.manual_seed(1)
    waveforms_BT = torch.zeros(len(num_samples), max(num_samples))
    for waveform_T, number in zip(waveforms_BT, num_samples, strict=True):
        waveform_T[:number] = torch.randn(number).cumsum(0)  # most of its energy is at low frequencies, as in speech
        waveform_T[:number] /= waveform_T[:number].std()
    labels_BU = torch.randint(5, 31, (len(num_samples), 20))
    num_samples_B = torch.tensor(num_samples)
    model.zero_grad()
    logits_BFV = forward(waveforms_BT.cuda(), num_samples_B)
    num_frames_B = model._get_feat_extract_output_lengths(num_samples_B)
    loss = ctc_loss(logits_BFV, num_frames_B, labels_BU.cuda(), torch.full((len(num_samples),), 20)).mean()
    loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    is_real_BF = torch.arange(logits_BFV.shape[1]) < num_frames_B[:, None]
    return logits_BFV.detach().float()[is_real_BF.cuda()], gradient


def relative(actual, expected):
    return ((actual - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("config", [BASE, LARGE], ids=["base", "large"])
def test_in_float32_logits_and_gradients_are_those_of_transformers(config):
    """Use a single utterance, because transformers' output depends on padding."""
    model = build(config)
    for num_samples in ([48_000], [31_234, 31_234]):
        theirs = loss_and_gradient(model, lambda waveforms_BT, _: model(waveforms_BT).logits, num_samples)
        for speed in (Speed(), Speed(positional_convolution="fft"), Speed(positional_convolution="convolution")):
            ours = loss_and_gradient(model, lambda *x, s=speed: wav2vec2.ctc_logits(model, *x, speed=s), num_samples)
            for actual, expected in zip(ours, theirs, strict=True):
                assert relative(actual, expected) < 1e-4, speed


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("config", [BASE, LARGE], ids=["base", "large"])
def test_in_half_precision_no_way_is_less_exact_than_transformers_modules(config, dtype):
    """Compare all with float32, on padded utterances."""
    torch.compiler.reset()  # each precision counts towards the limit of recompilations of a function
    model = build(config)
    num_samples = [48_000, 40_000, 47_321]
    exact = loss_and_gradient(model, lambda *x: wav2vec2.ctc_logits(model, *x, speed=STOCK), num_samples)

    def error(speed):
        with torch.autocast("cuda", dtype):
            actual = loss_and_gradient(model, lambda *x: wav2vec2.ctc_logits(model, *x, speed=speed), num_samples)
        return [relative(*pair) for pair in zip(actual, exact, strict=True)]

    stock = error(STOCK)
    ways = [{}, {"compile": False}, {"attention": "padded"}, {"feature_encoder": "channels_last"}]
    positional_ways = ("blocks", "fft") if dtype == torch.bfloat16 else ("fft",)
    ways += [{"positional_convolution": way} for way in positional_ways]
    ways += [{"attention": way} for way in ("packed", *(("flash4",) if HAS_FLASH4 else ()))]
    for way in ways:
        ours = error(Speed(**way))
        print(config is BASE, dtype, way, "ours", ours, "transformers' modules", stock)
        assert ours[0] < 1.5 * stock[0], way
        assert ours[1] < 1.5 * stock[1], way


@pytest.mark.skipif(not HAS_FLASH4, reason=f"flash-attn-4 {FLASH4} is not installed")
@pytest.mark.parametrize("heads", [12, 16])
def test_flash4_is_the_attention_within_utterances(heads):
    """Compare with float32 and with torch's flash attention in bfloat16."""
    from w2v_lightning.model.flash4 import _flash4, flash4
    from w2v_lightning.model.layers import _flash

    torch.manual_seed(0)
    counts = [700, 1, 129, 128, 333]
    starts_B = torch.tensor([0, *counts], device="cuda").cumsum(0).int()
    qkv_N3HD = torch.randn(sum(counts), 3, heads, 64, device="cuda").bfloat16()
    gradient_NHD = torch.randn(sum(counts), heads, 64, device="cuda").bfloat16()

    def run(attend, qkv_N3HD):
        qkv_N3HD = qkv_N3HD.clone().requires_grad_()
        actual_NHD = attend(qkv_N3HD, starts_B, max(counts))
        return actual_NHD, *torch.autograd.grad(actual_NHD, qkv_N3HD, gradient_NHD.to(actual_NHD.dtype))

    def exact(qkv_N3HD, *_):
        parts = (x_F3HD.permute(1, 2, 0, 3)[:, None] for x_F3HD in qkv_N3HD.split(counts))
        return torch.cat([functional.scaled_dot_product_attention(*part)[0].transpose(0, 1) for part in parts])

    expected = run(exact, qkv_N3HD.float())
    for ours, theirs, true in zip(run(flash4, qkv_N3HD), run(_flash, qkv_N3HD), expected, strict=True):
        assert ours.shape == true.shape
        assert relative(ours.float(), true) < 1.2 * relative(theirs.float(), true)
    torch.library.opcheck(_flash4, (qkv_N3HD.requires_grad_(), starts_B, max(counts)))


@pytest.mark.parametrize(
    ("utterances", "frames", "channels", "taps"),
    [(3, 700, 768, 128), (1, 100, 768, 128), (3, 700, 1024, 128), (3, 700, 160, 15)],
)
def test_convolution_in_blocks_is_about_as_exact_as_cudnns(utterances, frames, channels, taps):
    """Compare output and gradients in bfloat16 with float64."""
    torch.manual_seed(0)
    conv = torch.nn.Conv1d(channels, channels, taps, padding=taps // 2, groups=16, device="cuda")
    hidden_BFC = torch.randn(utterances, frames, channels, device="cuda").cumsum(1).bfloat16()
    gradient_BFC = torch.randn_like(hidden_BFC)

    def run(conv, hidden_BFC, way):
        hidden_BFC = hidden_BFC.clone().requires_grad_()
        with torch.autocast("cuda", torch.bfloat16, enabled=hidden_BFC.dtype == torch.bfloat16):
            output_BFC = positional(conv, hidden_BFC, way)
        inputs = hidden_BFC, conv.weight, conv.bias
        return [output_BFC, *torch.autograd.grad(output_BFC, inputs, gradient_BFC.to(output_BFC.dtype))]

    results = [run(conv, hidden_BFC, way) for way in ("blocks", "blocks", "convolution")]
    exact = run(conv.double(), hidden_BFC.double(), "convolution")
    for ours, again, theirs, true in zip(*results, exact, strict=True):
        errors = relative(ours.double(), true), relative(theirs.double(), true)
        print(channels, taps, "ours", errors[0], "cuDNN's", errors[1])
        assert torch.equal(ours, again)
        assert errors[0] < 1.3 * errors[1] + 1e-6


def test_gelu_with_dropout_drops_its_share_and_has_the_gradient_of_what_it_kept():
    from w2v_lightning.model.kernels import gelu_dropout

    torch.manual_seed(0)
    x = torch.randn(3, 1001, 300, device="cuda", requires_grad=True)
    y = gelu_dropout(x, 0.1)
    kept = y != 0
    assert abs(kept.float().mean().item() - 0.9) < 2e-3
    torch.testing.assert_close(y[kept], functional.gelu(x)[kept] / 0.9, rtol=1e-4, atol=1e-6)
    gradient = torch.randn_like(y)
    (actual,) = torch.autograd.grad(y, x, gradient)
    (expected,) = torch.autograd.grad(functional.gelu(x) * kept / 0.9, x, gradient)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    again = gelu_dropout(x, 0.1)
    assert ((again != 0) != kept).float().mean().item() == pytest.approx(0.18, abs=0.01)  # a new mask each time
    torch.manual_seed(0)
    torch.randn(3, 1001, 300, device="cuda")
    assert torch.equal(gelu_dropout(x, 0.1), y)


def test_dropout_masks_of_rows_and_columns_are_unrelated():
    from w2v_lightning.model.kernels import gelu_dropout

    torch.manual_seed(0)
    dropped = (gelu_dropout(torch.full((2048, 2048), 3.0, device="cuda"), 0.1) == 0).float() - 0.1
    for lag in (1, 2, 4, 255, 256, 257, 512, 1024):
        for shifted in (dropped.roll(lag, 0), dropped.roll(lag, 1)):
            assert abs((dropped * shifted).mean().item()) < 5 * 0.09 / 2048


def test_a_step_waits_for_nothing():
    """No implementation makes the host wait for the device."""
    model = build(BASE)
    waveforms_BT, num_samples_B = torch.randn(4, 32_000, device="cuda"), torch.tensor([32_000, 31_000, 30_000, 32_000])
    for speed in (Speed(), Speed(attention="padded", compile=False)):
        for attempt in range(2):  # the first one compiles and measures
            torch.cuda.set_sync_debug_mode("error" if attempt else "default")
            try:
                with torch.autocast("cuda", torch.bfloat16):
                    wav2vec2.ctc_logits(model, waveforms_BT, num_samples_B, speed=speed).sum().backward()
            finally:
                torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(("frames", "labels"), [(1750, 600), (300, 100), (40, 30)])
def test_our_ctc_is_more_exact_than_torchs_and_the_same_every_time(frames, labels):
    """Compare both with the CPU in float64."""
    torch.manual_seed(0)
    logits_BFV = 3 * torch.randn(8, frames, 32)
    labels_BU = torch.randint(1, 32, (8, labels))
    num_labels_B = torch.randint(1, labels // 2, (8,))
    num_frames_B = torch.randint(labels, frames, (8,))
    num_labels_B[0], num_frames_B[0] = labels, frames
    num_frames_B[1] = num_labels_B[1] - 1  # cannot be aligned

    def loss_and_gradient(logits_BFV, way):
        logits_BFV = logits_BFV.requires_grad_()
        arguments = num_frames_B, labels_BU.to(logits_BFV.device), num_labels_B
        losses_B = ctc_loss(logits_BFV, *arguments, speed=Speed(ctc=way))
        return losses_B.detach().cpu().double(), torch.autograd.grad(losses_B.sum(), logits_BFV)[0].cpu().double()

    exact = loss_and_gradient(logits_BFV.double(), "torch")
    ours, again, torchs = (loss_and_gradient(logits_BFV.cuda(), way) for way in ("fused", "fused", "torch"))
    errors = [[relative(*pair) for pair in zip(actual, exact, strict=True)] for actual in (ours, torchs)]
    print(frames, "ours", errors[0], "torch's", errors[1])
    assert all(torch.equal(*pair) for pair in zip(ours, again, strict=True))
    assert errors[0][0] < 1e-6
    assert errors[0][1] < max(2e-5, errors[1][1] / 10)
    assert ours[0][1] == 0
    assert not ours[1][1].any()
