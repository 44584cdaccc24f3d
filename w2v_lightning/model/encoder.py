"""Forward pass of transformers' wav2vec2 with its own modules: independent of padding, with layer drop, and fast.

Modules, weights and their names are transformers'. The forward pass differs from transformers' in these points:

- The group norm of the base architecture sees only real frames. In transformers it sees the padding too, even with an
  attention mask: an utterance's logits depend on the length of its neighbours (pytorch/audio#3094).
- The transformer never attends to padding; transformers' feature extractor gives the base models no attention mask.
- The caller chooses the dropped layers. Their parameters get gradients of zero, so that DDP need not search for unused
  parameters, and gradient checkpointing works with both (transformers#11452, #30113).
- Each costly part uses the fastest implementation that computes the same: features.py, positional.py, layers.py, as
  `Speed` says.

An utterance alone gives the same output as in transformers, and in a batch each utterance gives the same as alone.

Shapes: B utterances, F frames, C channels, N frames of all utterances, packed. X stands
for (N,) or (B, F).
"""

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import record_function
from transformers import Wav2Vec2Model
from transformers.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2Encoder, Wav2Vec2EncoderStableLayerNorm

from w2v_lightning.model.features import layer_norm
from w2v_lightning.model.layers import Bounds, Packing
from w2v_lightning.model.positional import positional
from w2v_lightning.model.sharding import gathered_layer
from w2v_lightning.model.speed import Speed, to_device

Encoder = Wav2Vec2Encoder | Wav2Vec2EncoderStableLayerNorm


def projected(
    wav2vec2: Wav2Vec2Model,
    features_BFC: Tensor,
    time_mask_BF: Tensor | None,
    channel_mask_BC: Tensor | None,
    speed: Speed = Speed(),
) -> tuple[Tensor, Tensor]:
    """Return the projected features with masks applied, and the normalised features before projection; both (B, F, C).

    Args:
        wav2vec2: transformers' model without head.
        features_BFC: output of the convolutions over the waveform.
        time_mask_BF: bool, True where a frame is replaced by the mask embedding.
        channel_mask_BC: bool, True where a channel is zeroed.
        speed: choice of the implementation.
    """
    function = speed.compiled(_projected, features_BFC.device)
    return function(wav2vec2, features_BFC, time_mask_BF, channel_mask_BC)


def _projected(
    wav2vec2: Wav2Vec2Model, features_BFC: Tensor, time_mask_BF: Tensor | None, channel_mask_BC: Tensor | None
) -> tuple[Tensor, Tensor]:
    hidden_BFC, features_BFC = wav2vec2.feature_projection(features_BFC)
    if time_mask_BF is not None:
        embedding_C = wav2vec2.masked_spec_embed.to(hidden_BFC.dtype)
        hidden_BFC = torch.where(time_mask_BF[..., None], embedding_C, hidden_BFC)
    if channel_mask_BC is not None:
        hidden_BFC = hidden_BFC.masked_fill(channel_mask_BC[:, None], 0.0)
    return hidden_BFC, features_BFC


def contextualise(
    wav2vec2: Wav2Vec2Model,
    hidden_BFC: Tensor,
    num_frames_B: Tensor | None,
    dropped_layers: Collection[int] = (),
    speed: Speed = Speed(),
) -> Tensor:
    """Return the transformer's output (B, F, C) for projected, perhaps masked, features.

    Args:
        wav2vec2: transformers' model without head.
        hidden_BFC: first output of `projected`.
        num_frames_B: int64, frames of each utterance without its padding, on the CPU; None: treat all frames as real.
        dropped_layers: layers that are skipped in this pass.
        speed: choice of the implementation.
    """
    num_frames = hidden_BFC.shape[1]
    if num_frames_B is None:
        num_frames_B = torch.full((len(hidden_BFC),), num_frames)
    counts_B, is_real_BF = to_device(num_frames_B, hidden_BFC.device), None
    if bool((num_frames_B < num_frames).any()):
        is_real_BF = real_frames(counts_B, num_frames)
    hidden_BFC = with_positions(wav2vec2, hidden_BFC, is_real_BF, speed)
    if speed.packs(hidden_BFC.device, hidden_BFC.dtype, wav2vec2.encoder):
        packing = Packing.from_counts(num_frames_B, counts_B, num_frames)
        hidden_NC = _layers(wav2vec2.encoder, packing.pack(hidden_BFC), packing.bounds, dropped_layers, speed)
        hidden_BFC = packing.unpack(hidden_NC)
    else:
        mask_B11F = None if is_real_BF is None else is_real_BF[:, None, None]
        hidden_BFC = _layers(wav2vec2.encoder, hidden_BFC, Bounds(mask_B11F), dropped_layers, speed)
    return after_layers(wav2vec2, hidden_BFC)


def real_frames(num_frames_B: Tensor, num_frames: int) -> Tensor:
    """Return which of the padded `num_frames` are frames of the utterance; bool (B, F)."""
    return torch.arange(num_frames, device=num_frames_B.device) < num_frames_B[:, None]


def with_positions(wav2vec2: Wav2Vec2Model, hidden_BFC: Tensor, is_real_BF: Tensor | None, speed: Speed) -> Tensor:
    """Return the input (B, F, C) of the first layer: projected features and the positional convolution of them.

    Args:
        wav2vec2: transformers' model without head.
        hidden_BFC: first output of `projected`.
        is_real_BF: bool, False in the padding; None: there is none.
        speed: choice of the implementation.
    """
    encoder = wav2vec2.encoder
    if is_real_BF is not None:
        # The positional convolution must see zeros after an utterance, as for an utterance alone.
        hidden_BFC = hidden_BFC.masked_fill(~is_real_BF[..., None], 0.0)
    with record_function("positional convolution"):
        positions_BFC = positional(encoder.pos_conv_embed.conv, hidden_BFC, speed.positional_convolution)
    return speed.compiled(_with_positions, hidden_BFC.device)(encoder, hidden_BFC, positions_BFC)


def after_layers(wav2vec2: Wav2Vec2Model, hidden_BFC: Tensor) -> Tensor:
    """Return the transformer's output for that of its last layer: the large models normalise it."""
    is_pre_norm = wav2vec2.config.do_stable_layer_norm
    return layer_norm(wav2vec2.encoder.layer_norm, hidden_BFC) if is_pre_norm else hidden_BFC


def _with_positions(encoder: Encoder, hidden_BFC: Tensor, positions_BFC: Tensor) -> Tensor:
    hidden_BFC = hidden_BFC + encoder.pos_conv_embed.activation(positions_BFC)
    is_pre_norm = encoder.config.do_stable_layer_norm
    return encoder.dropout(hidden_BFC if is_pre_norm else layer_norm(encoder.layer_norm, hidden_BFC))


def _layers(
    encoder: Encoder, hidden_XC: Tensor, bounds: Bounds, dropped_layers: Collection[int], speed: Speed
) -> Tensor:
    for number, layer in enumerate(encoder.layers):
        if number in dropped_layers:
            hidden_XC = with_zero_gradients(hidden_XC, layer)
        else:
            hidden_XC = gathered_layer(layer, hidden_XC, bounds, speed)
    return hidden_XC


def with_zero_gradients(values: Tensor, module: nn.Module) -> Tensor:
    """Return `values` unchanged; backward gives the trained parameters of `module` gradients of zero."""
    return _ZeroGradients.apply(values, *(p for p in module.parameters() if p.requires_grad))


class _ZeroGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(*parameters)
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        return gradient, *(torch.zeros_like(parameter) for parameter in ctx.saved_tensors)
