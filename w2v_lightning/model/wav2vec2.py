"""Wav2Vec2ForCTC: run here, built and read by loading.py, written by saving.py.

Weights are compatible with transformers in both directions.
"""

from collections.abc import Collection

import torch
from torch import Tensor
from torch.profiler import record_function
from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

from w2v_lightning.data.batch import SAMPLE_RATE, InputSpec
from w2v_lightning.model import settings
from w2v_lightning.model.encoder import contextualise, projected
from w2v_lightning.model.features import conv_features
from w2v_lightning.model.graphs import Graphs, Inputs
from w2v_lightning.model.loading import check_head, from_pretrained, from_scratch
from w2v_lightning.model.saving import save_pretrained
from w2v_lightning.model.speed import Speed
from w2v_lightning.text.vocabulary import Vocabulary

__all__ = ["check_head", "ctc_logits", "freeze", "from_pretrained", "from_scratch", "input_spec", "save_pretrained"]


def freeze(model: Wav2Vec2ForCTC, feature_encoder: bool) -> None:
    """Freeze the parameters that will get no gradient."""
    if feature_encoder:
        model.freeze_feature_encoder()
    if not settings.masks_time(model.config) and hasattr(model.wav2vec2, "masked_spec_embed"):
        model.wav2vec2.masked_spec_embed.requires_grad_(False)  # DDP would wait for its gradient


def input_spec(
    config: Wav2Vec2Config, vocabulary: Vocabulary, normalise: bool, sample_rate: int = SAMPLE_RATE
) -> InputSpec:
    """Return what the data module must know about the input of this model."""
    return InputSpec(
        vocabulary=vocabulary,
        conv_kernel=tuple(config.conv_kernel),
        conv_stride=tuple(config.conv_stride),
        num_channels=config.hidden_size,
        normalise=normalise,
        sample_rate=sample_rate,
        spec_augment=settings.spec_augment(config),
    )


def ctc_logits(
    model: Wav2Vec2ForCTC,
    waveforms_BT: Tensor,
    num_samples_B: Tensor,
    time_mask_BF: Tensor | None = None,
    channel_mask_BC: Tensor | None = None,
    *,
    dropped_layers: Collection[int] = (),
    hf_compat: bool = False,
    is_frozen: bool = False,
    speed: Speed = Speed(),
    graphs: Graphs | None = None,
) -> Tensor:
    """Return the logits (B, F, V) of `model` with the given masks; those of an utterance do not depend on the others.

    For a single utterance they are the same as those of `Wav2Vec2ForCTC.forward`, which draws its masks itself, on the
    CPU in every step, and whose base models see the padding (`model/encoder.py`).

    Args:
        model: transformers' model.
        waveforms_BT: float32, padded with 0.
        num_samples_B: int64, samples of each utterance without its padding, on the CPU.
        time_mask_BF, channel_mask_BC: bool, True where a frame is replaced by the mask embedding, a channel zeroed.
        dropped_layers: transformer layers that are skipped in this pass.
        hf_compat: True for the output of transformers for a padded batch; without an attention mask, its models with
            group norm see the padding.
        is_frozen: True if only the head gets gradients.
        speed: choice of the implementation.
        graphs: recordings of the encoder, to compute a training step with where they can.
    """
    num_frames_B: Tensor | None
    wav2vec2, config, hidden_BFC = model.wav2vec2, model.config, None
    with torch.set_grad_enabled(torch.is_grad_enabled() and not is_frozen):
        frames = _frames(config)
        num_frames_B = frames.num_frames(num_samples_B)
        sees_padding = hf_compat and config.feat_extract_norm == "group"
        if graphs is not None and not sees_padding:
            num_frames = frames.num_frames(waveforms_BT.shape[1])
            inputs = Inputs(waveforms_BT, num_samples_B, num_frames_B, num_frames, time_mask_BF, channel_mask_BC)
            hidden_BFC = graphs.hidden(inputs, dropped_layers)
        if hidden_BFC is None:
            if sees_padding:
                num_samples_B, num_frames_B = torch.full_like(num_samples_B, waveforms_BT.shape[1]), None
            with record_function("feature encoder"):
                features_BFC = conv_features(wav2vec2, waveforms_BT, num_samples_B, speed)
            hidden_BFC, _ = projected(wav2vec2, features_BFC, time_mask_BF, channel_mask_BC, speed)
            hidden_BFC = contextualise(wav2vec2, hidden_BFC, num_frames_B, dropped_layers, speed)
    return model.lm_head(model.dropout(hidden_BFC))


def _frames(config: Wav2Vec2Config) -> InputSpec:
    """Return the geometry of the convolutions."""
    return InputSpec(conv_kernel=tuple(config.conv_kernel), conv_stride=tuple(config.conv_stride))
