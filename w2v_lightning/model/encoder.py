"""transformers' wav2vec2, its modules called by us: blind to padding, with layers dropped on a schedule, and fast.

Weights, their names and the modules are transformers'; nothing is put in their place. What differs from its forward:

- The group norm of the base architecture sees real frames only. In transformers it sees the padding too, and an
  attention mask does not change that: an utterance's logits move with its neighbours' length (pytorch/audio#3094).
- The transformer never attends to padding; transformers' feature extractor gives the base models no attention mask.
- Which layers are dropped is told by the caller, and a dropped layer's parameters get gradients of zero, so that DDP
  need not search for unused parameters, and gradient checkpointing goes with both (transformers#11452, #30113).
- Each costly part goes the fastest way that computes the same: features.py, positional.py, layers.py, as `Speed` says.

So an utterance alone gives what transformers gives, and a batch gives what its utterances give alone.

Shapes: B utterances, F frames, C channels, N frames of all utterances, packed.
"""

from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.profiler import record_function
from transformers import Wav2Vec2Model

from w2v_lightning.model.features import layer_norm
from w2v_lightning.model.layers import Bounds, Packing
from w2v_lightning.model.positional import positional
from w2v_lightning.model.sharding import gathered_layer
from w2v_lightning.model.speed import Speed, to_device


def projected(
    wav2vec2: Wav2Vec2Model,
    features_BFC: Tensor,
    time_mask_BF: Tensor | None,
    channel_mask_BC: Tensor | None,
    speed: Speed = Speed(),
) -> tuple[Tensor, Tensor]:
    """Projected features with masks that were drawn elsewhere, and the normalised features; both (B, F, C).

    Args:
        wav2vec2: transformers' model without head.
        features_BFC: what the convolutions over the waveform made.
        time_mask_BF: bool, True where a frame is replaced by the mask embedding.
        channel_mask_BC: bool, True where a channel is zeroed.
        speed: how it is computed.
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
    """Output (B, F, C) of the transformer for projected, perhaps masked, features.

    Args:
        wav2vec2: transformers' model without head.
        hidden_BFC: what `projected` made.
        num_frames_B: int64, frames of each utterance without its padding, on the CPU; None: there is no padding, or it
            is to be seen.
        dropped_layers: layers that are skipped in this pass.
        speed: how it is computed.
    """
    encoder = wav2vec2.encoder
    is_pre_norm = wav2vec2.config.do_stable_layer_norm
    num_frames = hidden_BFC.shape[1]
    if num_frames_B is None:
        num_frames_B = torch.full((len(hidden_BFC),), num_frames)
    counts_B, mask_B11F = to_device(num_frames_B, hidden_BFC.device), None
    if bool((num_frames_B < num_frames).any()):
        is_real_BF = torch.arange(num_frames, device=hidden_BFC.device) < counts_B[:, None]
        # Behind an utterance the positional convolution finds zeros, as behind one that is alone.
        hidden_BFC = hidden_BFC.masked_fill(~is_real_BF[..., None], 0.0)
        mask_B11F = is_real_BF[:, None, None]
    with record_function("positional convolution"):
        positions_BFC = positional(encoder.pos_conv_embed.conv, hidden_BFC, speed.positional_convolution)
    add = speed.compiled(_with_positions, hidden_BFC.device)
    hidden_BFC = add(encoder, hidden_BFC, positions_BFC)
    if speed.packs(hidden_BFC.device, hidden_BFC.dtype, encoder):
        packing = Packing.of(num_frames_B, counts_B, num_frames)
        hidden_NC = _layers(encoder, packing.pack(hidden_BFC), packing.bounds, dropped_layers, speed)
        hidden_BFC = packing.unpack(hidden_NC)
    else:
        hidden_BFC = _layers(encoder, hidden_BFC, Bounds(mask_B11F), dropped_layers, speed)
    return layer_norm(encoder.layer_norm, hidden_BFC) if is_pre_norm else hidden_BFC


def _with_positions(encoder: nn.Module, hidden_BFC: Tensor, positions_BFC: Tensor) -> Tensor:
    hidden_BFC = hidden_BFC + encoder.pos_conv_embed.activation(positions_BFC)
    is_pre_norm = encoder.config.do_stable_layer_norm
    return encoder.dropout(hidden_BFC if is_pre_norm else layer_norm(encoder.layer_norm, hidden_BFC))


def _layers(
    encoder: nn.Module, hidden_XC: Tensor, bounds: Bounds, dropped_layers: Collection[int], speed: Speed
) -> Tensor:
    for number, layer in enumerate(encoder.layers):
        if number in dropped_layers:
            hidden_XC = with_zero_gradients(hidden_XC, layer)
        else:
            hidden_XC = gathered_layer(layer, hidden_XC, bounds, speed)
    return hidden_XC


def with_zero_gradients(values: Tensor, module: nn.Module) -> Tensor:
    """`values` as they are, and gradients of zero for the trained parameters of `module`."""
    return _ZeroGradients.apply(values, *(p for p in module.parameters() if p.requires_grad))


class _ZeroGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values: Tensor, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(*parameters)
        return values.view_as(values)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, ...]:
        return gradient, *(torch.zeros_like(parameter) for parameter in ctx.saved_tensors)
