"""Triton kernels in Triton's interpreter, which needs no GPU; tests/gpu runs them on a GPU."""

import os

import pytest
import torch
from torch.nn import functional

from w2v_lightning.model.ctc import ctc_loss
from w2v_lightning.model.speed import HAS_TRITON_OP, Speed

pytest.importorskip("triton")


pytestmark = [
    pytest.mark.skipif("TRITON_INTERPRET" not in os.environ, reason="compiled for a GPU"),
    pytest.mark.skipif(not HAS_TRITON_OP, reason="the Triton kernels need torch 2.6"),
]


@pytest.fixture(scope="module")
def kernels():
    from w2v_lightning.model import kernels

    return kernels


def constants(kernels, x):
    return kernels._constants(x, 0.1)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_gelu_with_dropout_and_its_gradient(kernels, dtype, tolerance):
    torch.manual_seed(0)
    x = (2 * torch.randn(20_000)).to(dtype)  # not a multiple of the block size
    y, dx, dy, seed = torch.full_like(x, 7.0), torch.full_like(x, 7.0), torch.randn_like(x), torch.tensor(12345)
    threshold, scale, is_half = constants(kernels, x)
    kernels._gelu_dropout_forward[kernels._grid(x)](x, y, seed, x.numel(), threshold, scale, is_half)
    kernels._gelu_dropout_backward[kernels._grid(x)](x, dy, dx, seed, x.numel(), threshold, scale, is_half)
    exact = x.float().requires_grad_()
    kept = (y != 0).float()
    assert kept.mean().item() == pytest.approx(0.9, abs=0.01)
    expected = functional.gelu(exact) * kept / 0.9
    (gradient,) = torch.autograd.grad(expected, exact, dy.float())
    torch.testing.assert_close(y.float(), expected.detach(), rtol=tolerance, atol=1e-4)
    torch.testing.assert_close(dx.float(), gradient, rtol=tolerance, atol=tolerance)


def test_no_two_elements_share_their_draw(kernels):
    x, seed = torch.ones(3 * kernels.BLOCK), torch.tensor(1)
    y = torch.empty_like(x)
    kernels._gelu_dropout_forward[kernels._grid(x)](x, y, seed, x.numel(), 1 << 15, 2.0, False)
    parts = (y == 0).float().view(-1, kernels.PART.value) - 0.5
    correlation = parts @ parts.T / parts.shape[1] * 4
    assert (correlation - torch.eye(len(parts))).abs().max() < 6 / parts.shape[1] ** 0.5


def test_the_half_precision_normal_distribution_is_exact_to_1e_6(kernels):
    """Test GELU through the first convolution, with a filter that passes its input through."""
    x = torch.linspace(-6, 6, 4096)[None]
    weight, shift = torch.zeros(1, 1, 256), torch.zeros(1, 256)
    weight[:] = 1.0
    outputs = []
    for dtype in (torch.float32, torch.bfloat16):
        y = torch.empty(1, 4096, 256, dtype=dtype)
        kernels._first_convolution.fn[(64, 1, 2)](
            x, weight, shift, y, 4096, 4096, 256, STRIDE=1, TAPS=1, TAPS_PADDED=16, PRECISION="ieee", FRAMES=64,
            CHANNELS=128,
        )  # fmt: skip
        outputs.append(y[0, :, 0].float())
    expected = functional.gelu(x[0])
    torch.testing.assert_close(outputs[0], expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(outputs[1], expected, rtol=2**-7, atol=1e-6)


def test_first_convolution(kernels):
    torch.manual_seed(0)
    waveforms_BT, weight_BKC, shift_BC = torch.randn(2, 1003), torch.randn(2, 10, 256), torch.randn(2, 256)
    y_BFC = torch.empty(2, 199, 256)
    kernels._first_convolution.fn[(4, 2, 2)](
        waveforms_BT, weight_BKC, shift_BC, y_BFC, 1003, 199, 256, STRIDE=5, TAPS=10, TAPS_PADDED=16,
        PRECISION="tf32x3", FRAMES=64, CHANNELS=128,
    )  # fmt: skip
    expected = functional.gelu(waveforms_BT.unfold(1, 10, 5) @ weight_BKC + shift_BC[:, None])
    torch.testing.assert_close(y_BFC, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("tokens", "frames", "labels"),
    [
        (32, [30, 25, 20, 10, 1], [12, 10, 0, 11, 1]),  # the fourth cannot be aligned
        (5, [21, 17], [3, 2]),
        (40, [90, 90], [80, 7]),  # more labels than a tile of the gradient holds
    ],
)
def test_ctc_and_its_gradient_are_torchs_in_double_precision(tokens, frames, labels):
    from w2v_lightning.model.ctc_kernels import ctc

    torch.manual_seed(0)
    logits_BFV = 3 * torch.randn(len(frames), max(frames) + 3, tokens)
    labels_BU = torch.randint(1, tokens, (len(frames), max(labels) + 2))
    labels_BU[0, 2] = labels_BU[0, 1]  # the same label twice needs a blank in between
    counts = torch.tensor(frames), torch.tensor(labels)
    exact = logits_BFV.double().requires_grad_()
    expected = ctc_loss(exact, counts[0], labels_BU, counts[1], speed=Speed(ctc="torch"))
    expected.sum().backward()
    losses, gradient = ctc(logits_BFV.log_softmax(-1), labels_BU, *counts, 0, with_gradient=True)
    alone, none = ctc(logits_BFV.log_softmax(-1), labels_BU, *counts, 0, with_gradient=False)
    assert none is None
    assert torch.equal(alone, losses)
    assert [loss == float("inf") for loss in losses] == [u > f for u, f in zip(labels, frames, strict=True)]
    torch.testing.assert_close(losses.nan_to_num(posinf=0.0), expected.detach(), rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(gradient.double(), exact.grad, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_ctc_stays_exact_over_many_frames():
    """Compare with torch's CTC in float32 on the same logits; its logarithms grow with the number of frames."""
    torch.manual_seed(0)
    logits_BFV, labels_BU = 3 * torch.randn(1, 700, 32), torch.randint(1, 32, (1, 200))
    counts, errors = (torch.tensor([700]), torch.tensor([200])), []
    exact = logits_BFV.double().requires_grad_()
    (expected,) = torch.autograd.grad(ctc_loss(exact, counts[0], labels_BU, counts[1]).sum(), exact)
    for way in ("fused", "torch"):
        actual = logits_BFV.clone().requires_grad_()
        loss = ctc_loss(actual, counts[0], labels_BU, counts[1], speed=Speed(ctc=way))
        (gradient,) = torch.autograd.grad(loss.sum(), actual)
        errors.append(((gradient - expected).norm() / expected.norm()).item())
    assert errors[0] < 2e-5
    assert errors[0] < errors[1] / 10


def test_ctc_of_logits_that_are_no_numbers_is_none_either():
    from w2v_lightning.model.ctc_kernels import ctc

    log_probs_BFV = torch.randn(2, 6, 5).log_softmax(-1)
    log_probs_BFV[0, 3] = float("nan")
    counts = torch.tensor([6, 6]), torch.tensor([2, 2])
    losses, gradient = ctc(log_probs_BFV, torch.tensor([[1, 2], [3, 3]]), *counts, 0, with_gradient=True)
    assert losses[0].isnan()
    assert gradient[0].isnan().any()
    assert losses[1].isfinite()
    assert gradient[1].isfinite().all()


def test_the_loss_by_our_kernels_has_zeros_where_labels_cannot_be_aligned():
    """Test the kernels through `ctc_loss`, whose other tests use torch's CTC."""
    logits_BFV = torch.randn(2, 6, 5, requires_grad=True)
    labels_BU, counts = torch.tensor([[1, 1, 1, 1], [2, 3, 0, 0]]), (torch.tensor([6, 6]), torch.tensor([4, 2]))
    results = []
    for way in ("fused", "torch"):
        losses = ctc_loss(logits_BFV, counts[0], labels_BU, counts[1], speed=Speed(ctc=way))
        results.append((losses.detach(), *torch.autograd.grad((losses * torch.tensor([2.0, 3.0])).sum(), logits_BFV)))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
    assert results[0][0][0] == 0
    assert results[0][1][0].abs().sum() == 0


@pytest.mark.parametrize(
    ("utterances", "frames", "channels", "groups", "taps"),
    [
        pytest.param(2, 300, 48, 1, 128, marks=pytest.mark.slow),  # the size of a group in wav2vec2
        pytest.param(3, 129, 32, 2, 129, marks=pytest.mark.slow),  # the last block has one frame
        (1, 256, 20, 1, 7),
    ],
)
def test_convolution_in_blocks_and_its_gradients(utterances, frames, channels, groups, taps):
    """Use float32, because its products are exact in the interpreter."""
    from w2v_lightning.model.positional_kernels import correlation_in_blocks

    sizes = utterances, frames, channels, groups, taps
    actual, _, exact = blocks_and_conv1d(correlation_in_blocks, torch.float32, *sizes)
    for ours, true in zip(actual, exact, strict=True):
        assert ((ours - true).norm() / true.norm()).item() < 1e-6


@pytest.mark.slow
def test_in_half_precision_convolution_in_blocks_is_about_as_exact_as_conv1d():
    """Use float16, because the interpreter does not support products of bfloat16."""
    from w2v_lightning.model.positional_kernels import correlation_in_blocks

    actual, expected, exact = blocks_and_conv1d(correlation_in_blocks, torch.float16, 2, 300, 48, 1, 128)
    for ours, theirs, true in zip(actual, expected, exact, strict=True):
        ours_off, theirs_off = (((x.double() - true).norm() / true.norm()).item() for x in (ours, theirs))
        # Blocks round to float16 twice, conv1d on some CPUs only once: its error is then 1 / sqrt(2) of ours.
        assert ours_off < 1.5 * theirs_off


def blocks_and_conv1d(correlation_in_blocks, dtype, utterances, frames, channels, groups, taps):
    """Return output and gradients (hidden, weight, bias) with frames of `dtype`, and those of conv1d in float64."""
    torch.manual_seed(0)
    hidden_BFC = torch.randn(utterances, frames, channels).to(dtype)
    weight_CIK, bias_C = torch.randn(channels, channels // groups, taps), torch.randn(channels)
    gradient_BFC = torch.randn_like(hidden_BFC)

    def conv1d(hidden_BFC, weight_CIK, bias_C, groups, offset):
        weights = (x.to(hidden_BFC.dtype) for x in (weight_CIK, bias_C))
        output_BCF = functional.conv1d(hidden_BFC.transpose(1, 2), *weights, padding=offset, groups=groups)
        return output_BCF[..., :frames].transpose(1, 2)

    def run(function, exact=False):
        given = [x.double() if exact else x.clone() for x in (hidden_BFC, weight_CIK, bias_C)]
        output_BFC = function(*(x.requires_grad_() for x in given), groups, taps // 2)
        return [output_BFC.detach(), *torch.autograd.grad(output_BFC, given, gradient_BFC.to(output_BFC.dtype))]

    return run(correlation_in_blocks), run(conv1d), run(conv1d, exact=True)
