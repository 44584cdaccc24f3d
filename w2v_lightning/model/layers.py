"""The transformer layers, over frames that lie packed one utterance behind the other, or padded.

Shapes: B utterances, F frames, C channels, N frames of all utterances together, H heads of D channels, 3: query, key
and value. X stands for (N,) or (B, F).
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers.models.wav2vec2 import modeling_wav2vec2

from w2v_lightning.model.features import is_gelu, layer_norm
from w2v_lightning.model.speed import Speed, varlen_attn

# From queries, keys and values (N, 3, H, D), where utterances begin, and the frames of the longest; to (N, H, D).
PackedAttention = Callable[[Tensor, Tensor, int], Tensor]


class Bounds(NamedTuple):
    """Which frames an utterance may attend to: those of its own."""

    mask_B11F: Tensor | None = None  # bool, of padded frames; None: all
    starts_B: Tensor | None = None  # int32, of packed frames: where each utterance begins, and the end of the last
    longest: int = 0  # frames of the longest utterance, of packed frames


def transformer_layer(layer: nn.Module, hidden_XC: Tensor, bounds: Bounds, speed: Speed) -> Tensor:
    """The output of one of transformers' Wav2Vec2EncoderLayer or ...StableLayerNorm; (X, C)."""
    device = hidden_XC.device
    # Compiled once for all layers: they differ in their weights only.
    function = speed.compiled(layer_output, device)
    attend = None if bounds.starts_B is None else _packed_attention(layer.attention, hidden_XC, speed)
    arguments = (layer, hidden_XC, *bounds, attend, speed.fuses_dropout(device))
    if layer.training and getattr(layer, "gradient_checkpointing", False):
        return checkpoint(function, *arguments, use_reentrant=False)
    return function(*arguments)


def layer_output(
    layer: nn.Module,
    hidden_XC: Tensor,
    mask_B11F: Tensor | None,
    starts_B: Tensor | None,
    longest: int,
    attend: PackedAttention | None,
    fuses_dropout: bool,
) -> Tensor:
    is_pre_norm = isinstance(layer, modeling_wav2vec2.Wav2Vec2EncoderLayerStableLayerNorm)
    heard_XC = layer_norm(layer.layer_norm, hidden_XC) if is_pre_norm else hidden_XC
    qkv_X3HD = heads(layer.attention, heard_XC)
    if attend is None:
        found_XHD = _padded_attention(layer.attention, *qkv_X3HD.unbind(-3), mask_B11F)
    else:
        found_XHD = attend(qkv_X3HD, starts_B, longest)
    hidden_XC = hidden_XC + layer.dropout(layer.attention.out_proj(found_XHD.flatten(-2)))
    if is_pre_norm:
        heard_XC = layer_norm(layer.final_layer_norm, hidden_XC)
        hidden_XC = hidden_XC + feed_forward(layer.feed_forward, heard_XC, fuses_dropout)
    else:
        hidden_XC = layer_norm(layer.layer_norm, hidden_XC)
        hidden_XC = hidden_XC + feed_forward(layer.feed_forward, hidden_XC, fuses_dropout)
        hidden_XC = layer_norm(layer.final_layer_norm, hidden_XC)
    adapter = getattr(layer, "adapter_layer", None)
    return hidden_XC if adapter is None else hidden_XC + adapter(hidden_XC)


def feed_forward(block: nn.Module, hidden_XC: Tensor, fuses_dropout: bool) -> Tensor:
    """The output of transformers' Wav2Vec2FeedForward."""
    inner_dropout = block.intermediate_dropout
    if not (fuses_dropout and inner_dropout.training and inner_dropout.p > 0 and is_gelu(block.intermediate_act_fn)):
        return block(hidden_XC)
    from w2v_lightning.model.kernels import gelu_dropout  # needs Triton

    inner_XC = gelu_dropout(block.intermediate_dense(hidden_XC), inner_dropout.p)
    return block.output_dropout(block.output_dense(inner_XC))


def heads(attention: nn.Module, hidden_XC: Tensor) -> Tensor:
    """Queries, keys and values (X, 3, H, D); in one matrix product, unless something (LoRA) wraps the projections."""
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    if all(type(projection) is nn.Linear for projection in projections):
        weight = torch.cat([projection.weight for projection in projections])
        bias = torch.cat([projection.bias for projection in projections])
        outputs_XC = functional.linear(hidden_XC, weight, bias)
    else:
        outputs_XC = torch.cat([projection(hidden_XC) for projection in projections], dim=-1)
    return outputs_XC.unflatten(-1, (3, attention.num_heads, attention.head_dim))


def _packed_attention(attention: nn.Module, hidden_NC: Tensor, speed: Speed) -> PackedAttention:
    if not speed.takes_flash4(hidden_NC.device, attention.head_dim, len(hidden_NC)):
        return _flash
    from w2v_lightning.model.flash4 import flash4  # where flash-attn-4 is installed

    return flash4


def _flash(qkv_N3HD: Tensor, starts_B: Tensor, longest: int) -> Tensor:
    return varlen_attn(*qkv_N3HD.unbind(1), starts_B, starts_B, longest, longest)


def _padded_attention(
    attention: nn.Module, query_BFHD: Tensor, key_BFHD: Tensor, value_BFHD: Tensor, mask_B11F: Tensor | None
) -> Tensor:
    found_BHFD = functional.scaled_dot_product_attention(
        *(x_BFHD.transpose(1, 2) for x_BFHD in (query_BFHD, key_BFHD, value_BFHD)),
        attn_mask=mask_B11F,
        dropout_p=attention.dropout if attention.training else 0.0,
    )
    return found_BHFD.transpose(1, 2)


class Packing(NamedTuple):
    """Where the frames of a padded batch lie when the padding is left out."""

    bounds: Bounds
    positions_N: Tensor | None  # of each packed frame in the padded batch, flattened; None: there is no padding
    shape: tuple[int, int]  # B, F of the padded batch

    @classmethod
    def of(cls, num_frames_B: Tensor, counts_B: Tensor, longest: int) -> "Packing":
        """For utterances of `num_frames_B` frames (int64, on the CPU; `counts_B`: on the device) padded to `longest`.

        Sizes come from the CPU, so that nobody waits for the device; the rest is made there. On the CPU torch would
        spread it over all cores, and wait for each of them, while loader processes keep them busy.
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

    def pack(self, hidden_BFC: Tensor) -> Tensor:
        hidden_NC = hidden_BFC.flatten(0, 1)
        return hidden_NC if self.positions_N is None else hidden_NC.index_select(0, self.positions_N)

    def unpack(self, hidden_NC: Tensor) -> Tensor:
        """Zeros where there was padding."""
        if self.positions_N is not None:
            padded_NC = hidden_NC.new_zeros(self.shape[0] * self.shape[1], hidden_NC.shape[1])
            hidden_NC = padded_NC.index_copy(0, self.positions_N, hidden_NC)
        return hidden_NC.unflatten(0, self.shape)
