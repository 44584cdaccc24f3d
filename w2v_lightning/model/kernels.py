"""Two Triton kernels where torch.compile is slow: GELU with dropout, and the first convolution.

Imported only if there are Triton and a GPU. The compiler's version of the first is limited by the arithmetic of its
random numbers, and it discards three quarters of them; its version of the second writes, reads and again writes the
largest tensor of the model.

Kernels have no type annotations: Triton interprets those of their parameters.
"""

from typing import Any

import torch
import triton
from torch import Tensor
from torch.library import triton_op, wrap_triton
from triton import language as tl

PARTS = tl.constexpr(8)  # elements masked with the 128 random bits of one Philox call
PART = tl.constexpr(1024)  # adjacent elements; they fill the widest loads of 128 threads
BLOCK = 8 * 1024
ROUNDS = tl.constexpr(7)  # Philox rounds: the fewest that pass all of TestU01's BigCrush (Salmon et al. 2011)
DRAWS = 1 << 16  # number of values of 16 random bits


@triton.jit
def _normal(x, IS_HALF: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return the distribution function of the standard normal, and e^(-x^2 / 2).

    In half precision by Abramowitz and Stegun 7.1.26, exact to 1.5e-7, which needs one exponential for both.
    """
    bell = tl.exp(-0.5 * x * x)
    if IS_HALF:
        t = 1 / (1 + 0.2316418878 * tl.abs(x))  # 0.3275911 |x| / sqrt(2)
        series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
        tail = 0.5 * series * bell
        return tl.where(x < 0, tail, 1 - tail), bell
    else:  # noqa: RET505 - Triton compiles what follows a return in a branch
        return 0.5 + 0.5 * tl.erf(x * 0.7071067811865476), bell


@triton.jit
def _draw(draws, part):  # type: ignore[no-untyped-def]
    """Return 16 of the 128 random bits."""
    return (draws[part // 2].to(tl.uint32, bitcast=True) >> (16 * (part % 2))) & 0xFFFF


@triton.jit
def _gelu_dropout_forward(  # type: ignore[no-untyped-def]
    x, y, seed, size, threshold, scale, IS_HALF: tl.constexpr
):  # fmt: skip
    block = tl.program_id(0).to(tl.int64)
    first = block * (PARTS * PART)
    num_left = tl.minimum(size - first, PARTS * PART).to(tl.int32)  # counted from `first` in 32 bits, which is cheaper
    draws = tl.randint4x(tl.load(seed), block * PART + tl.arange(0, PART), ROUNDS)
    for part in tl.static_range(PARTS):
        at = part * PART + tl.arange(0, PART)
        value = tl.load(x + first + at, mask=at < num_left).to(tl.float32)
        share, _ = _normal(value, IS_HALF)
        kept = tl.where(_draw(draws, part) >= threshold, value * share * scale, 0.0)
        tl.store(y + first + at, kept.to(y.dtype.element_ty), mask=at < num_left)


@triton.jit
def _gelu_dropout_backward(  # type: ignore[no-untyped-def]
    x, dy, dx, seed, size, threshold, scale, IS_HALF: tl.constexpr
):  # fmt: skip
    """Gradient of GELU with dropout. It draws the same mask again, so that only the input is stored."""
    block = tl.program_id(0).to(tl.int64)
    first = block * (PARTS * PART)
    num_left = tl.minimum(size - first, PARTS * PART).to(tl.int32)
    draws = tl.randint4x(tl.load(seed), block * PART + tl.arange(0, PART), ROUNDS)
    for part in tl.static_range(PARTS):
        at = part * PART + tl.arange(0, PART)
        value = tl.load(x + first + at, mask=at < num_left).to(tl.float32)
        share, bell = _normal(value, IS_HALF)
        slope = (share + value * bell * 0.3989422804014327) * scale
        gradient = tl.load(dy + first + at, mask=at < num_left).to(tl.float32) * slope
        kept = tl.where(_draw(draws, part) >= threshold, gradient, 0.0)
        tl.store(dx + first + at, kept.to(dx.dtype.element_ty), mask=at < num_left)


def gelu_dropout(x: Tensor, probability: float) -> Tensor:
    """Return `dropout(gelu(x), probability)`, with the probability rounded to a multiple of 2^-16.

    The mask is drawn with a seed from torch's generator of the device.
    """
    seed = torch.randint(1 << 62, (), device=x.device)
    return _gelu_dropout(x, seed, probability)


@triton_op("w2v_lightning::gelu_dropout", mutates_args={})
def _gelu_dropout(x: Tensor, seed: Tensor, probability: float) -> Tensor:
    x = x.contiguous()
    y = torch.empty_like(x)
    wrap_triton(_gelu_dropout_forward)[_grid(x)](x, y, seed, x.numel(), *_constants(x, probability))
    return y


@triton_op("w2v_lightning::gelu_dropout_backward", mutates_args={})
def _gelu_dropout_gradient(x: Tensor, dy: Tensor, seed: Tensor, probability: float) -> Tensor:
    x, dy = x.contiguous(), dy.contiguous()
    dx = torch.empty_like(x)
    wrap_triton(_gelu_dropout_backward)[_grid(x)](x, dy, dx, seed, x.numel(), *_constants(x, probability))
    return dx


def _grid(x: Tensor) -> tuple[int]:
    return (triton.cdiv(x.numel(), BLOCK),)


def _constants(x: Tensor, probability: float) -> tuple[int, float, bool]:
    """Return the smallest draw that keeps an element, the factor on kept elements, and whether `x` is half precision.

    The factor is the inverse of the exact share of kept elements.
    """
    threshold = round(probability * DRAWS)
    return threshold, DRAWS / (DRAWS - threshold), x.dtype.itemsize == 2


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: Tensor) -> None:
    x, seed, ctx.probability = inputs
    ctx.save_for_backward(x, seed)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
    x, seed = ctx.saved_tensors
    return _gelu_dropout_gradient(x, dy, seed, ctx.probability), None, None


_gelu_dropout.register_autograd(_backward, setup_context=_setup_context)


@triton.autotune(
    [
        triton.Config({"FRAMES": frames, "CHANNELS": channels}, num_warps=warps)
        for frames, channels, warps in ((64, 128, 4), (128, 64, 4), (128, 128, 8), (32, 256, 4), (64, 256, 8))
    ],
    key=["num_channels"],
)
@triton.jit
def _first_convolution(  # type: ignore[no-untyped-def]
    x, weight, shift, y, num_samples, num_frames, num_channels, STRIDE: tl.constexpr, TAPS: tl.constexpr,
    TAPS_PADDED: tl.constexpr, PRECISION: tl.constexpr, FRAMES: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Compute a tile of one utterance: windows of samples times weights on tensor cores, plus shift, then GELU."""
    utterance = tl.program_id(1).to(tl.int64)
    frame = tl.program_id(0) * FRAMES + tl.arange(0, FRAMES)
    channel = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    tap = tl.arange(0, TAPS_PADDED)
    sample = frame[:, None] * STRIDE + tap[None, :]
    is_inside = (tap[None, :] < TAPS) & (sample < num_samples)
    windows = tl.load(x + utterance * num_samples + sample, mask=is_inside, other=0.0)
    weights = tl.load(
        weight + (utterance * TAPS + tap[:, None]) * num_channels + channel[None, :],
        mask=tap[:, None] < TAPS,
        other=0.0,
    )
    output = tl.dot(windows, weights, input_precision=PRECISION)
    output += tl.load(shift + utterance * num_channels + channel)[None, :]
    share, _ = _normal(output, y.dtype.element_ty != tl.float32)
    at = (utterance * num_frames + frame[:, None]) * num_channels + channel[None, :]
    tl.store(y + at, (output * share).to(y.dtype.element_ty), mask=frame[:, None] < num_frames)


def first_convolution(
    waveforms_BT: Tensor, weight_BKC: Tensor, shift_BC: Tensor, stride: int, dtype: torch.dtype, length: int
) -> Tensor:
    """Return GELU of a strided convolution over one channel, with separate weights and shift for each utterance.

    Computed more exactly than `dtype`, the type of the output. It has no gradient.

    Returns:
        (`length`, C): the frames of all utterances, one utterance after the other, followed by zeros.
    """
    num_utterances, num_samples = waveforms_BT.shape
    taps, channels = weight_BKC.shape[1:]
    frames = (num_samples - taps) // stride + 1
    y_NC = torch.empty(length, channels, device=waveforms_BT.device, dtype=dtype)
    y_NC[num_utterances * frames :] = 0.0

    def grid(tile: dict[str, int]) -> tuple[int, int, int]:
        return triton.cdiv(frames, tile["FRAMES"]), num_utterances, triton.cdiv(channels, tile["CHANNELS"])

    _first_convolution[grid](
        waveforms_BT.contiguous(), weight_BKC.contiguous(), shift_BC.contiguous(), y_NC, num_samples, frames, channels,
        STRIDE=stride, TAPS=taps, TAPS_PADDED=max(16, triton.next_power_of_2(taps)),
        PRECISION="tf32" if dtype == torch.bfloat16 else "tf32x3",  # exact to 11 bits, bfloat16 to 8
    )  # fmt: skip
    return y_NC
