"""Positional convolution as matrix products: blocks of 128 frames, each by a Fourier transform of length 256.

Overlap-save: 256 frames of input give the 128 frames of output that depend on nothing else. Transforms of this length
are matrix products on tensor cores, as is the product of a group's channels with its weights at each frequency. Three
Triton kernels therefore replace the transforms, products and transposes of long spectra: into spectra, times the
weights, back. The gradient uses them in reverse, and a fourth kernel sums the gradient of the weights.

Spectra are rounded to the precision of the frames. Each element of the transforms' matrices and of the weights is the
sum of two numbers of that precision, the rounded value and the remainder: exact to 2^-17 in bfloat16. Sums do not
use atomics.

Shapes: B utterances, F frames, N blocks of all utterances, C channels, G groups of I input and O output channels, K
taps, R = 256 numbers of a real spectrum: 128 real parts, then 128 imaginary parts. The first imaginary part is always
zero, so its slot holds the highest frequency instead, which is real.

Kernels have no type annotations: Triton interprets those of their parameters.
"""

import math
from functools import cache
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable
from triton import language as tl

BLOCK = tl.constexpr(128)
LENGTH = tl.constexpr(256)
PARTS = tl.constexpr(2)  # numbers whose sum is one element of a matrix

# Tile sizes and numbers of warps: the fastest of those tried on an H200.
TO_CHANNELS, TO_FRAMES, TO_WARPS = 128, 32, 8
FROM_CHANNELS, FROM_NUMBERS, FROM_WARPS = 128, 32, 8
PRODUCT_BLOCKS, PRODUCT_WARPS = 64, 4
SUM_BLOCKS, SUM_WARPS = 64, 4


@triton.jit(do_not_specialize=["num_frames", "num_blocks", "offset"])
def _to_spectra(  # type: ignore[no-untyped-def]
    x, transform, spectra, num_frames, num_channels, num_blocks, offset, WINDOW: tl.constexpr, CHANNELS: tl.constexpr,
    FRAMES: tl.constexpr,
):  # fmt: skip
    """Compute the spectrum of one block, whose WINDOW frames begin `offset` frames before it."""
    block = tl.program_id(0).to(tl.int64)
    utterance, first = block // num_blocks, block % num_blocks * BLOCK - offset
    channel, number = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS), tl.arange(0, LENGTH)
    is_channel = (channel < num_channels)[None, :]
    spectrum = tl.zeros((LENGTH, CHANNELS), tl.float32)
    for start in range(0, WINDOW, FRAMES):
        at = start + tl.arange(0, FRAMES)
        frame = first + at
        is_inside = ((frame >= 0) & (frame < num_frames))[:, None] & is_channel
        row = (utterance * num_frames + frame) * num_channels
        values = tl.load(x + row[:, None] + channel[None, :], mask=is_inside, other=0.0)
        for part in tl.static_range(PARTS):
            matrix = tl.load(transform + (number + part * LENGTH)[:, None] * WINDOW + at[None, :])
            spectrum = tl.dot(matrix, values, spectrum)
    row = (number.to(tl.int64) * tl.num_programs(0) + block) * num_channels
    tl.store(spectra + row[:, None] + channel[None, :], spectrum.to(spectra.dtype.element_ty), mask=is_channel)


@triton.jit(do_not_specialize=["num_frames", "num_blocks", "all_blocks", "offset"])
def _from_spectra(  # type: ignore[no-untyped-def]
    spectra, transform, bias, y, num_frames, num_channels, num_blocks, all_blocks, offset, REACH: tl.constexpr,
    HAS_BIAS: tl.constexpr, CHANNELS: tl.constexpr, NUMBERS: tl.constexpr,
):  # fmt: skip
    """Compute a block of frames, which begins `offset` frames early, as the sum over the REACH blocks that reach it."""
    tile = tl.program_id(0).to(tl.int64)
    utterance, place = tile // (num_blocks + REACH - 1), tile % (num_blocks + REACH - 1)
    channel, at = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS), tl.arange(0, BLOCK)
    is_channel = (channel < num_channels)[None, :]
    values = tl.zeros((BLOCK, CHANNELS), tl.float32)
    for before in tl.static_range(REACH):
        block = place - before
        is_there = is_channel & (block >= 0) & (block < num_blocks)
        for start in range(0, LENGTH, NUMBERS):
            number = start + tl.arange(0, NUMBERS)
            row = (number.to(tl.int64) * all_blocks + utterance * num_blocks + block) * num_channels
            spectrum = tl.load(spectra + row[:, None] + channel[None, :], mask=is_there, other=0.0)
            for part in tl.static_range(PARTS):
                part_base = transform + (part * REACH + before) * BLOCK * LENGTH
                matrix = tl.load(part_base + at[:, None] * LENGTH + number[None, :])
                values = tl.dot(matrix, spectrum, values)
    if HAS_BIAS:
        values += tl.load(bias + channel, mask=channel < num_channels, other=0.0)[None, :]
    frame = place * BLOCK - offset + at
    is_inside = ((frame >= 0) & (frame < num_frames))[:, None] & is_channel
    row = (utterance * num_frames + frame) * num_channels
    tl.store(y + row[:, None] + channel[None, :], values.to(y.dtype.element_ty), mask=is_inside)


@triton.jit(do_not_specialize=["num_blocks"])
def _spectra_product(  # type: ignore[no-untyped-def]
    inputs, weights, outputs, num_blocks, ADJOINT: tl.constexpr, SIZE: tl.constexpr, PADDED: tl.constexpr,
    BLOCKS: tl.constexpr,
):  # fmt: skip
    """Multiply the spectra of a tile of blocks and a group by the conjugate of the group's weights (I, O).

    ADJOINT multiplies the gradient by the weights, transposed, instead.
    """
    group, frequency = tl.program_id(0), tl.program_id(2)
    num_channels = tl.num_programs(0) * SIZE
    block, channel = tl.program_id(1) * BLOCKS + tl.arange(0, BLOCKS), tl.arange(0, PADDED)
    is_value = (block < num_blocks)[:, None] & (channel < SIZE)[None, :]
    half = LENGTH // 2
    real_row = (frequency.to(tl.int64) * num_blocks + block) * num_channels + group * SIZE
    at_real = real_row[:, None] + channel[None, :]
    at_imaginary = at_real + half * num_blocks.to(tl.int64) * num_channels
    real = tl.load(inputs + at_real, mask=is_value, other=0.0)
    imaginary = tl.load(inputs + at_imaginary, mask=is_value, other=0.0)

    is_first = frequency == 0  # this row holds two real numbers instead of a complex one
    matrix = SIZE * SIZE
    frequency_pitch = tl.num_programs(0) * matrix
    at_weight = channel[:, None] * SIZE + channel[None, :]
    if ADJOINT:
        at_weight = channel[:, None] + channel[None, :] * SIZE
    is_weight = (channel < SIZE)[:, None] & (channel < SIZE)[None, :]
    out_real = tl.zeros((BLOCKS, PADDED), tl.float32)
    out_imaginary = tl.zeros((BLOCKS, PADDED), tl.float32)
    for part in tl.static_range(PARTS):
        part_base = weights + part * LENGTH * frequency_pitch + group * matrix
        real_base = part_base + frequency * frequency_pitch
        imaginary_base = part_base + (half + frequency) * frequency_pitch
        straight = tl.load(real_base + at_weight, mask=is_weight, other=0.0)
        crossed = tl.load(imaginary_base + at_weight, mask=is_weight & (frequency > 0), other=0.0)
        second_frequency = tl.where(is_first, half, frequency)
        second = tl.load(part_base + second_frequency * frequency_pitch + at_weight, mask=is_weight, other=0.0)
        if ADJOINT:
            crossed = -crossed
        out_real = tl.dot(real, straight, out_real)
        out_real = tl.dot(imaginary, crossed, out_real)
        out_imaginary = tl.dot(imaginary, second, out_imaginary)
        out_imaginary = tl.dot(real, -crossed, out_imaginary)
    tl.store(outputs + at_real, out_real.to(outputs.dtype.element_ty), mask=is_value)
    tl.store(outputs + at_imaginary, out_imaginary.to(outputs.dtype.element_ty), mask=is_value)


@triton.jit(do_not_specialize=["num_blocks"])
def _spectra_sum(  # type: ignore[no-untyped-def]
    inputs, gradients, sums, num_blocks, SIZE: tl.constexpr, PADDED: tl.constexpr, BLOCKS: tl.constexpr
):  # fmt: skip
    """Compute the gradient of a group's weights at one frequency, from the spectra of all blocks."""
    group, frequency = tl.program_id(0), tl.program_id(1)
    num_channels = tl.num_programs(0) * SIZE
    channel = tl.arange(0, PADDED)
    half = LENGTH // 2
    to_imaginary = half * num_blocks.to(tl.int64) * num_channels
    straight = tl.zeros((PADDED, PADDED), tl.float32)
    second = tl.zeros((PADDED, PADDED), tl.float32)
    crossed = tl.zeros((PADDED, PADDED), tl.float32)
    first = 0
    while first < num_blocks:
        block = first + tl.arange(0, BLOCKS)
        is_value = (block < num_blocks)[:, None] & (channel < SIZE)[None, :]
        row = (frequency.to(tl.int64) * num_blocks + block) * num_channels + group * SIZE
        at = row[:, None] + channel[None, :]
        real = tl.trans(tl.load(inputs + at, mask=is_value, other=0.0))
        imaginary = tl.trans(tl.load(inputs + to_imaginary + at, mask=is_value, other=0.0))
        real_gradient = tl.load(gradients + at, mask=is_value, other=0.0)
        imaginary_gradient = tl.load(gradients + to_imaginary + at, mask=is_value, other=0.0)
        straight = tl.dot(real, real_gradient, straight)
        second = tl.dot(imaginary, imaginary_gradient, second)
        crossed = tl.dot(imaginary, real_gradient, crossed)
        crossed = tl.dot(real, -imaginary_gradient, crossed)
        first += BLOCKS
    is_first = frequency == 0
    frequency_pitch = tl.num_programs(0) * SIZE * SIZE
    at = sums + frequency * frequency_pitch + group * SIZE * SIZE + channel[:, None] * SIZE + channel[None, :]
    is_weight = (channel < SIZE)[:, None] & (channel < SIZE)[None, :]
    tl.store(at, tl.where(is_first, straight, straight + second), mask=is_weight)
    tl.store(at + half * frequency_pitch, tl.where(is_first, second, crossed), mask=is_weight)


def correlation_in_blocks(hidden_BFC: Tensor, weight_CIK: Tensor, bias_C: Tensor, groups: int, offset: int) -> Tensor:
    """Return the grouped correlation y[t] = bias + sum over k of weight[k] x[t + k - offset] for the F frames of x.

    Args:
        hidden_BFC: the frames x, in half precision, on a GPU.
        weight_CIK: weights in float32, at most 129 taps.
        bias_C: bias of each channel.
        groups: number of groups of channels.
        offset: shift between input and weights, in frames.

    Returns:
        (B, F, C), in the precision of `hidden_BFC`.
    """
    matrix_RK = _matrices(hidden_BFC.device)[0][:, : weight_CIK.shape[2]]
    weight_KGIO = weight_CIK.unflatten(0, (groups, -1)).permute(3, 0, 2, 1)
    weight_RGIO = (matrix_RK @ weight_KGIO.flatten(1)).unflatten(1, weight_KGIO.shape[1:])
    return _Correlation.apply(hidden_BFC, weight_RGIO, bias_C, offset)


class _Correlation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_BFC: Tensor, weight_RGIO: Tensor, bias_C: Tensor, offset: int) -> Tensor:
        transforms = _Transforms.create(hidden_BFC.device, hidden_BFC.dtype)
        weight_PRGIO = _parts(weight_RGIO, hidden_BFC.dtype)
        inputs_RNC = _spectra(hidden_BFC, transforms.to_spectrum, offset)
        ctx.save_for_backward(inputs_RNC if ctx.needs_input_grad[1] else None, weight_PRGIO)
        ctx.offset = offset
        return _frames(_by_weights(inputs_RNC, weight_PRGIO), transforms.to_frames, hidden_BFC.shape, 0, bias_C)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_BFC: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        inputs_RNC, weight_PRGIO = ctx.saved_tensors
        transforms = _Transforms.create(gradient_BFC.device, gradient_BFC.dtype)
        outputs_RNC = _spectra(gradient_BFC, transforms.to_frames_adjoint, 0)
        hidden_gradient_BFC = weight_gradient_RGIO = bias_gradient_C = None
        if ctx.needs_input_grad[0]:
            adjoint_RNC = _by_weights(outputs_RNC, weight_PRGIO, adjoint=True)
            hidden_gradient_BFC = _frames(adjoint_RNC, transforms.to_spectrum_adjoint, gradient_BFC.shape, ctx.offset)
        if ctx.needs_input_grad[1]:
            weight_gradient_RGIO = _sums(inputs_RNC, outputs_RNC, weight_PRGIO)
        if ctx.needs_input_grad[2]:
            bias_gradient_C = gradient_BFC.sum((0, 1), dtype=torch.float32)
        return hidden_gradient_BFC, weight_gradient_RGIO, bias_gradient_C, None


class _Transforms(NamedTuple):
    """Transform matrices as sums of two in half precision, (2, output, input); the adjoints are for gradients."""

    to_spectrum: Tensor
    to_frames: Tensor
    to_spectrum_adjoint: Tensor
    to_frames_adjoint: Tensor

    @staticmethod
    @cache
    def create(device: torch.device, dtype: torch.dtype) -> "_Transforms":
        matrices = _matrices(device)
        return _Transforms(*(_parts(matrix, dtype) for matrix in (*matrices, *(matrix.T for matrix in matrices))))


@cache
def _matrices(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the matrices from 256 frames to a spectrum (R, 256) and back to the first 128 frames (128, R); float32."""
    with torch.inference_mode(False):  # training uses the cached matrices too
        frequency_R = torch.arange(LENGTH.value) % (LENGTH.value // 2)
        angle_RL = 2 * math.pi / LENGTH.value * (frequency_R[:, None] * torch.arange(LENGTH.value)).double()
        to_spectrum = torch.cat([angle_RL[: LENGTH.value // 2].cos(), -angle_RL[LENGTH.value // 2 :].sin()])
        to_spectrum[LENGTH.value // 2] = 1 - 2 * (torch.arange(LENGTH.value) % 2)
        is_once_R = frequency_R == 0  # the other frequencies also represent their negatives
        to_frames = (to_spectrum * torch.where(is_once_R, 1.0, 2.0)[:, None] / LENGTH.value).T[: BLOCK.value]
        return to_spectrum.to(device, torch.float32), to_frames.to(device, torch.float32)


def _parts(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return two tensors of type `dtype` whose sum is `x`, stacked: (2, ...)."""
    parts = x.new_empty(PARTS.value, *x.shape, dtype=dtype)
    parts[0].copy_(x)
    torch.sub(x, parts[0], out=parts[1])
    return parts


def _blocks(num_frames: int) -> int:
    return triton.cdiv(num_frames, BLOCK.value)


def _spectra(frames_BFC: Tensor, transform_PRL: Tensor, offset: int) -> Tensor:
    """Return the spectra (R, N, C) of the blocks."""
    frames_BFC = frames_BFC.contiguous()
    num_utterances, num_frames, num_channels = frames_BFC.shape
    num_blocks = _blocks(num_frames)
    spectra_RNC = frames_BFC.new_empty(LENGTH.value, num_utterances * num_blocks, num_channels)
    _to_spectra[num_utterances * num_blocks, triton.cdiv(num_channels, TO_CHANNELS)](
        frames_BFC, transform_PRL, spectra_RNC, num_frames, num_channels, num_blocks, offset,
        WINDOW=transform_PRL.shape[2], CHANNELS=TO_CHANNELS, FRAMES=TO_FRAMES, num_warps=TO_WARPS,
    )  # fmt: skip
    return spectra_RNC


def _frames(
    spectra_RNC: Tensor, transform_PLR: Tensor, shape: torch.Size, offset: int, bias_C: Tensor | None = None
) -> Tensor:
    """Return the frames (B, F, C) of that `shape`; those of each block begin `offset` frames before it."""
    num_utterances, num_frames, num_channels = shape
    num_blocks, reach = _blocks(num_frames), transform_PLR.shape[1] // BLOCK.value
    frames_BFC = spectra_RNC.new_empty(shape)
    _from_spectra[num_utterances * (num_blocks + reach - 1), triton.cdiv(num_channels, FROM_CHANNELS)](
        spectra_RNC, transform_PLR, bias_C, frames_BFC, num_frames, num_channels, num_blocks, spectra_RNC.shape[1],
        offset, REACH=reach, HAS_BIAS=bias_C is not None, CHANNELS=FROM_CHANNELS, NUMBERS=FROM_NUMBERS,
        num_warps=FROM_WARPS,
    )  # fmt: skip
    return frames_BFC


def _by_weights(spectra_RNC: Tensor, weight_PRGIO: Tensor, adjoint: bool = False) -> Tensor:
    groups, size = weight_PRGIO.shape[2:4]
    num_blocks = spectra_RNC.shape[1]
    products_RNC = torch.empty_like(spectra_RNC)
    _spectra_product[groups, triton.cdiv(num_blocks, PRODUCT_BLOCKS), LENGTH.value // 2](
        spectra_RNC, weight_PRGIO, products_RNC, num_blocks, ADJOINT=adjoint, SIZE=size, PADDED=_padded(size),
        BLOCKS=PRODUCT_BLOCKS, num_warps=PRODUCT_WARPS,
    )  # fmt: skip
    return products_RNC


def _sums(inputs_RNC: Tensor, outputs_RNC: Tensor, weight_PRGIO: Tensor) -> Tensor:
    """Return the gradient (R, G, I, O) of the weights, in float32."""
    _, _, groups, size, _ = weight_PRGIO.shape
    sums_RGIO = weight_PRGIO.new_empty(weight_PRGIO.shape[1:], dtype=torch.float32)
    _spectra_sum[groups, LENGTH.value // 2](
        inputs_RNC, outputs_RNC, sums_RGIO, inputs_RNC.shape[1], SIZE=size, PADDED=_padded(size), BLOCKS=SUM_BLOCKS,
        num_warps=SUM_WARPS,
    )  # fmt: skip
    return sums_RGIO


def _padded(size: int) -> int:
    return max(16, triton.next_power_of_2(size))
