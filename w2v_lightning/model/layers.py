"""Transformer layers, over frames that are packed (one utterance after the other, without padding) or padded.

Shapes: B utterances, F frames, C channels, N frames of all utterances together, H heads of D channels, 3: query, key
and value. X stands for (N,) or (B, F).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers.models.wav2vec2.modeling_wav2vec2 import (
    Wav2Vec2Attention,
    Wav2Vec2EncoderLayer,
    Wav2Vec2EncoderLayerStableLayerNorm,
    Wav2Vec2FeedForward,
)

from w2v_lightning.model.features import is_gelu, layer_norm
from w2v_lightning.model.speed import Speed, varlen_attn

EncoderLayer = Wav2Vec2EncoderLayer | Wav2Vec2EncoderLayerStableLayerNorm

# Arguments: queries, keys and values (N, 3, H, D), starts of the utterances, frames of the longest. Returns (N, H, D).
PackedAttention = Callable[[Tensor, Tensor, int], Tensor]


class Bounds(NamedTuple):
    """Boundaries of the utterances, which attend only to their own frames: a mask if padded, starts if packed."""

    mask_B11F: Tensor | None = None  # bool, True for real frames of a padded batch; None: all are real
    starts_B: Tensor | None = None  # int32, first packed frame of each utterance, and the end of the last
    longest: int = 0  # number of frames of the longest packed utterance


def transformer_layer(layer: EncoderLayer, hidden_XC: Tensor, bounds: Bounds, speed: Speed) -> Tensor:
    """Return the output (X, C) of a transformers Wav2Vec2EncoderLayer or Wav2Vec2EncoderLayerStableLayerNorm."""
    device = hidden_XC.device
    # The function is compiled once for all layers, which differ only in their weights.
    function = speed.compiled(layer_output, device)
    attend = None if bounds.starts_B is None else _packed_attention(layer.attention, hidden_XC, speed)
    arguments = (layer, hidden_XC, *bounds, attend, speed.fuses_dropout(device))
    if layer.training and getattr(layer, "gradient_checkpointing", False):
        return checkpoint(function, *arguments, use_reentrant=False)
    return function(*arguments)


def layer_output(
    layer: EncoderLayer,
    hidden_XC: Tensor,
    mask_B11F: Tensor | None,
    starts_B: Tensor | None,
    longest: int,
    attend: PackedAttention | None,
    fuses_dropout: bool,
) -> Tensor:
    is_pre_norm = isinstance(layer, Wav2Vec2EncoderLayerStableLayerNorm)
    input_XC = layer_norm(layer.layer_norm, hidden_XC) if is_pre_norm else hidden_XC
    qkv_X3HD = heads(layer.attention, input_XC)
    if attend is None:
        query_XHD, key_XHD, value_XHD = qkv_X3HD.unbind(-3)
        attended_XHD = _padded_attention(layer.attention, query_XHD, key_XHD, value_XHD, mask_B11F)
    else:
        assert starts_B is not None
        attended_XHD = attend(qkv_X3HD, starts_B, longest)
    hidden_XC = hidden_XC + layer.dropout(layer.attention.out_proj(attended_XHD.flatten(-2)))
    if is_pre_norm:
        input_XC = layer_norm(layer.final_layer_norm, hidden_XC)
        hidden_XC = hidden_XC + feed_forward(layer.feed_forward, input_XC, fuses_dropout)
    else:
        hidden_XC = layer_norm(layer.layer_norm, hidden_XC)
        hidden_XC = hidden_XC + feed_forward(layer.feed_forward, hidden_XC, fuses_dropout)
        hidden_XC = layer_norm(layer.final_layer_norm, hidden_XC)
    adapter = getattr(layer, "adapter_layer", None)
    return hidden_XC if adapter is None else hidden_XC + adapter(hidden_XC)


def feed_forward(block: Wav2Vec2FeedForward, hidden_XC: Tensor, fuses_dropout: bool) -> Tensor:
    """Return the output of transformers' Wav2Vec2FeedForward."""
    inner_dropout = block.intermediate_dropout
    if not (fuses_dropout and inner_dropout.training and inner_dropout.p > 0 and is_gelu(block.intermediate_act_fn)):
        return block(hidden_XC)
    from w2v_lightning.model.kernels import gelu_dropout  # needs Triton

    inner_XC = gelu_dropout(block.intermediate_dense(hidden_XC), inner_dropout.p)
    return block.output_dropout(block.output_dense(inner_XC))


def heads(attention: Wav2Vec2Attention, hidden_XC: Tensor) -> Tensor:
    """Return queries, keys and values (X, 3, H, D), by one matrix product unless LoRA wraps the projections."""
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    if all(type(projection) is nn.Linear for projection in projections):
        weight = torch.cat([projection.weight for projection in projections])
        bias = torch.cat([projection.bias for projection in projections])
        outputs_XC = functional.linear(hidden_XC, weight, bias)
    else:
        outputs_XC = torch.cat([projection(hidden_XC) for projection in projections], dim=-1)
    return outputs_XC.unflatten(-1, (3, attention.num_heads, attention.head_dim))


def _packed_attention(attention: Wav2Vec2Attention, hidden_NC: Tensor, speed: Speed) -> PackedAttention:
    if not speed.uses_flash4(hidden_NC.device, attention.head_dim, len(hidden_NC)):
        return _flash
    from w2v_lightning.model.flash4 import flash4  # needs flash-attn-4

    return flash4


def _flash(qkv_N3HD: Tensor, starts_B: Tensor, longest: int) -> Tensor:
    assert varlen_attn is not None  # Speed.packs has checked it
    query_NHD, key_NHD, value_NHD = qkv_N3HD.unbind(1)
    output_NHD = varlen_attn(query_NHD, key_NHD, value_NHD, starts_B, starts_B, longest, longest)
    assert isinstance(output_NHD, Tensor)  # a tuple only if the sums of the softmax are requested
    return output_NHD


def _padded_attention(
    attention: Wav2Vec2Attention, query_BFHD: Tensor, key_BFHD: Tensor, value_BFHD: Tensor, mask_B11F: Tensor | None
) -> Tensor:
    attended_BHFD = functional.scaled_dot_product_attention(
        query_BFHD.transpose(1, 2),
        key_BFHD.transpose(1, 2),
        value_BFHD.transpose(1, 2),
        attn_mask=mask_B11F,
        dropout_p=attention.dropout if attention.training else 0.0,
    )
    return attended_BHFD.transpose(1, 2)


class Packing(NamedTuple):
    """Mapping between a padded batch and its packed frames, without padding."""

    bounds: Bounds
    positions_N: Tensor | None  # index of each packed frame in the flattened padded batch; None without padding
    shape: tuple[int, int]  # B, F of the padded batch
    has_spare: bool = False  # positions_N may be B x F, which is the position of no frame

    @classmethod
    def from_counts(cls, num_frames_B: Tensor, counts_B: Tensor, longest: int) -> "Packing":
        """Create the packing of utterances of `num_frames_B` frames that are padded to `longest`.

        Sizes are computed from the counts on the CPU, so that the host does not wait for the device; the indices are
        computed on the device. On the CPU torch would use all cores and wait for each of them, while loader workers
        keep them busy.

        Args:
            num_frames_B: int64, on the CPU.
            counts_B: the same counts on the device.
            longest: number of frames of the padded batch.
        """
        starts_B = functional.pad(counts_B.cumsum(0), (1, 0))
        bounds = Bounds(starts_B=starts_B.int(), longest=int(num_frames_B.max()))
        positions_N = None
        if bool((num_frames_B < longest).any()):
            num_packed, batch_size = int(num_frames_B.sum()), len(num_frames_B)
            padding_before_B = torch.arange(batch_size, device=counts_B.device) * longest - starts_B[:-1]
            padding_before_N = padding_before_B.repeat_interleave(counts_B, output_size=num_packed)
            positions_N = torch.arange(num_packed, device=counts_B.device) + padding_before_N
        return cls(bounds, positions_N, (len(num_frames_B), longest))

    @classmethod
    def of_size(cls, counts_B: Tensor, longest: int, size: int, max_spare: int) -> "Packing":
        """Create the packing of utterances that are padded to `longest` frames in `size` rows, without reading counts.

        The rows that are left over are utterances of their own, repeat the first frame, and their output is dropped.

        Args:
            counts_B: frames of each utterance, on the device.
            longest: number of frames of the padded batch.
            size: number of rows, at least the sum of `counts_B`.
            max_spare: how many of the rows can be left over.
        """
        ends_B = counts_B.cumsum(0)
        rows_N = torch.arange(size, device=counts_B.device)
        padding_before_B = torch.arange(len(counts_B), device=counts_B.device) * longest - (ends_B - counts_B)
        utterance_N = torch.searchsorted(ends_B, rows_N, right=True).clamp(max=len(counts_B) - 1)
        positions_N = rows_N + padding_before_B.index_select(0, utterance_N)
        positions_N = torch.where(rows_N < ends_B[-1], positions_N, len(counts_B) * longest)
        num_spare = math.ceil(max_spare / longest)  # an utterance must not be longer than `longest`
        spare_ends = ends_B[-1] + longest * torch.arange(1, num_spare + 1, device=counts_B.device)
        starts_B = torch.cat([ends_B.new_zeros(1), ends_B, spare_ends.clamp(max=size)])
        return cls(Bounds(starts_B=starts_B.int(), longest=longest), positions_N, (len(counts_B), longest), True)

    def pack(self, hidden_BFC: Tensor) -> Tensor:
        hidden_NC = hidden_BFC.flatten(0, 1)
        if self.positions_N is None:
            return hidden_NC
        positions_N = self.positions_N % len(hidden_NC) if self.has_spare else self.positions_N
        return hidden_NC.index_select(0, positions_N)

    def unpack(self, hidden_NC: Tensor) -> Tensor:
        """Return the padded batch, with zeros in the padding."""
        if self.positions_N is not None:
            num_padded = self.shape[0] * self.shape[1]
            padded_NC = hidden_NC.new_zeros(num_padded + self.has_spare, hidden_NC.shape[1])
            hidden_NC = padded_NC.index_copy(0, self.positions_N, hidden_NC)[:num_padded]
        return hidden_NC.unflatten(0, self.shape)
