"""Attention of packed utterances by FlashAttention-4, whose kernels are made for Hopper GPUs.

Imported only if flash-attn-4 is installed. The kernels of torch's own flash attention are for the previous generation.

Shapes: N frames of all utterances, H heads of D channels, B utterances.
"""

from typing import Any

import torch
from flash_attn.cute.interface import _flash_attn_bwd, _flash_attn_fwd
from torch import Tensor


@torch.library.custom_op("w2v_lightning::flash4", mutates_args=())
def _flash4(qkv_N3HD: Tensor, starts_B: Tensor, longest: int) -> tuple[Tensor, Tensor]:
    query_NHD, key_NHD, value_NHD = qkv_N3HD.unbind(1)
    output_NHD, log_sums_HN, *_ = _flash_attn_fwd(
        query_NHD, key_NHD, value_NHD, return_lse=True, **_bounds(starts_B, longest)
    )
    return output_NHD, log_sums_HN


@_flash4.register_fake
def _(qkv_N3HD: Tensor, starts_B: Tensor, longest: int) -> tuple[Tensor, Tensor]:
    num_frames, _, num_heads, _ = qkv_N3HD.shape
    return torch.empty_like(qkv_N3HD[:, 0]), qkv_N3HD.new_empty(num_heads, num_frames, dtype=torch.float32)


@torch.library.custom_op("w2v_lightning::flash4_backward", mutates_args=())
def _flash4_gradient(
    gradient_NHD: Tensor, qkv_N3HD: Tensor, output_NHD: Tensor, log_sums_HN: Tensor, starts_B: Tensor, longest: int
) -> Tensor:
    """Return the gradient in the layout of `qkv_N3HD`, so that three tensors need not be concatenated."""
    gradient_N3HD = torch.empty_like(qkv_N3HD)
    query_gradient_NHD, key_gradient_NHD, value_gradient_NHD = gradient_N3HD.unbind(1)
    _flash_attn_bwd(
        *qkv_N3HD.unbind(1), output_NHD, gradient_NHD.contiguous(), log_sums_HN, dq=query_gradient_NHD,
        dk=key_gradient_NHD, dv=value_gradient_NHD, deterministic=torch.are_deterministic_algorithms_enabled(),
        **_bounds(starts_B, longest),
    )  # fmt: skip
    return gradient_N3HD


@_flash4_gradient.register_fake
def _(gradient_NHD: Tensor, qkv_N3HD: Tensor, *_: object) -> Tensor:
    return torch.empty_like(qkv_N3HD)


def _bounds(starts_B: Tensor, longest: int) -> dict[str, Tensor | int]:
    return {"cu_seqlens_q": starts_B, "cu_seqlens_k": starts_B, "max_seqlen_q": longest, "max_seqlen_k": longest}


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: tuple[Tensor, Tensor]) -> None:
    qkv_N3HD, starts_B, ctx.longest = inputs
    ctx.save_for_backward(qkv_N3HD, *output, starts_B)


def _backward(ctx: Any, gradient_NHD: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
    return _flash4_gradient(gradient_NHD, *ctx.saved_tensors, ctx.longest), None, None


_flash4.register_autograd(_backward, setup_context=_setup_context)


def flash4(qkv_N3HD: Tensor, starts_B: Tensor, longest: int) -> Tensor:
    """Return the attention output (N, H, D), where each frame attends to the frames of its utterance.

    Args:
        qkv_N3HD: queries, keys and values, in half precision.
        starts_B: int32, first frame of each utterance, and the end of the last (B + 1).
        longest: number of frames of the longest utterance.
    """
    output_NHD, _ = _flash4(qkv_N3HD, starts_B, longest)
    return output_NHD
