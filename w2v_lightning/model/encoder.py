"""transformers' wav2vec2, its modules called by us: blind to padding, and with layers dropped on a schedule.

Weights, their names and the modules are transformers'; nothing is put in their place. What differs from its forward:

- The group norm of the base architecture sees real frames only. In transformers it sees the padding too, and an
  attention mask does not change that: an utterance's logits move with its neighbours' length (pytorch/audio#3094).
- The transformer always has an attention mask; transformers' feature extractor gives none to the base models.
- Which layers are dropped is told by the caller, and a dropped layer's parameters get gradients of zero, so that DDP
  need not search for unused parameters, and gradient checkpointing goes with both (transformers#11452, #30113).

So an utterance alone gives what transformers gives, and a batch gives what its utterances give alone.

Shapes: B utterances, T samples, F frames, C channels.
"""

from collections.abc import Collection

import torch
from torch import Tensor, nn
from transformers import Wav2Vec2Model
from transformers.masking_utils import create_bidirectional_mask


def conv_features(wav2vec2: Wav2Vec2Model, waveforms_BT: Tensor, num_samples_B: Tensor) -> Tensor:
    """Output (B, F, C) of the convolutions over the waveform; frames beyond an utterance's own are arbitrary.

    Args:
        wav2vec2: transformers' model without head.
        waveforms_BT: float32, padded with anything.
        num_samples_B: int64, of each utterance without its padding, on the same device.
    """
    first, *others = wav2vec2.feature_extractor.conv_layers
    if not isinstance(getattr(first, "layer_norm", None), nn.GroupNorm):
        return wav2vec2.feature_extractor(waveforms_BT).transpose(1, 2)  # each frame is normalised by itself
    hidden_BCF = first.conv(waveforms_BT[:, None])
    num_frames_B = (num_samples_B - first.conv.kernel_size[0]) // first.conv.stride[0] + 1
    hidden_BCF = first.activation(masked_group_norm(first.layer_norm, hidden_BCF, num_frames_B))
    for layer in others:
        hidden_BCF = layer(hidden_BCF)
    return hidden_BCF.transpose(1, 2)


def masked_group_norm(norm: nn.GroupNorm, hidden_BCF: Tensor, num_frames_B: Tensor) -> Tensor:
    """`norm` over each utterance's first `num_frames_B` frames, one group per channel; computed in float32."""
    num_B11 = num_frames_B[:, None, None]
    is_padding_B1F = torch.arange(hidden_BCF.shape[2], device=hidden_BCF.device) >= num_B11
    with torch.autocast(hidden_BCF.device.type, enabled=False):
        values_BCF = hidden_BCF.float().masked_fill(is_padding_B1F, 0.0)
        mean_BC1 = values_BCF.sum(dim=2, keepdim=True) / num_B11
        centred_BCF = (values_BCF - mean_BC1).masked_fill(is_padding_B1F, 0.0)
        variance_BC1 = centred_BCF.square().sum(dim=2, keepdim=True) / num_B11
        scale_BC1 = (variance_BC1 + norm.eps).rsqrt() * norm.weight[:, None]
        return (centred_BCF * scale_BC1 + norm.bias[:, None]).to(hidden_BCF.dtype)


def masked(
    wav2vec2: Wav2Vec2Model, hidden_BFC: Tensor, time_mask_BF: Tensor | None, channel_mask_BC: Tensor | None
) -> Tensor:
    """Projected features (B, F, C) with masks that were drawn elsewhere: frames replaced by the mask embedding where
    `time_mask_BF` is True, channels zeroed where `channel_mask_BC` is."""
    if time_mask_BF is not None:
        embedding_C = wav2vec2.masked_spec_embed.to(hidden_BFC.dtype)
        hidden_BFC = torch.where(time_mask_BF[..., None], embedding_C, hidden_BFC)
    if channel_mask_BC is not None:
        hidden_BFC = hidden_BFC.masked_fill(channel_mask_BC[:, None], 0.0)
    return hidden_BFC


def contextualise(
    wav2vec2: Wav2Vec2Model, hidden_BFC: Tensor, num_frames_B: Tensor | None, dropped_layers: Collection[int] = ()
) -> Tensor:
    """Output (B, F, C) of the transformer for projected, perhaps masked, features.

    Args:
        wav2vec2: transformers' model without head.
        hidden_BFC: what the feature projection made.
        num_frames_B: frames of each utterance without its padding, on the same device; None: there is no padding, or it
            is to be seen.
        dropped_layers: layers that are skipped in this pass.
    """
    encoder = wav2vec2.encoder
    attention_mask = None
    if num_frames_B is not None:
        is_real_BF = torch.arange(hidden_BFC.shape[1], device=hidden_BFC.device) < num_frames_B[:, None]
        # Behind an utterance the positional convolution finds zeros, as behind one that is alone.
        hidden_BFC = hidden_BFC.masked_fill(~is_real_BF[..., None], 0.0)
        attention_mask = create_bidirectional_mask(encoder.config, hidden_BFC, attention_mask=is_real_BF)
    is_pre_norm = wav2vec2.config.do_stable_layer_norm
    hidden_BFC = hidden_BFC + encoder.pos_conv_embed(hidden_BFC)
    hidden_BFC = encoder.dropout(hidden_BFC if is_pre_norm else encoder.layer_norm(hidden_BFC))
    for number, layer in enumerate(encoder.layers):
        if number in dropped_layers:
            hidden_BFC = hidden_BFC + zero_of(layer)
        else:
            output = layer(hidden_BFC, attention_mask=attention_mask)
            hidden_BFC = output[0] if isinstance(output, tuple) else output  # some releases of transformers return one
    return encoder.layer_norm(hidden_BFC) if is_pre_norm else hidden_BFC


def zero_of(layer: nn.Module) -> Tensor:
    """Zero, with a gradient of zero for each trained parameter of `layer`."""
    return sum(parameter.flatten()[0] for parameter in layer.parameters() if parameter.requires_grad) * 0.0
