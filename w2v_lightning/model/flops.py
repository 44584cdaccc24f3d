"""Floating-point operations of wav2vec2, computed from lengths; the numerator of the model FLOPs utilisation.

A multiply-add counts as two. Only convolutions and matrix products count; the rest is about 1 %. For an utterance of
F_i frames after convolution i (F after the last), hidden size H, feed-forward size I, L layers, V tokens:

    feature encoder          sum over i of  2 F_i x C_(i-1) x C_i x kernel_i    (C_0 = 1)
    feature projection       2 F x C x H
    positional convolution   2 F x H x H / groups x kernel             (as a direct convolution, always)
    layers                   L x (8 F H^2 + 4 F H I + 4 F^2 H)         (projections, feed-forward, attention)
    CTC head                 2 F x H x V

Backward costs twice as much as forward for trained parts, and nothing for a frozen feature encoder. Padding does not
count.
"""

from collections.abc import Sequence

import numpy as np
from torch import Tensor
from transformers import Wav2Vec2Config

Lengths = Sequence[int] | np.ndarray | Tensor


def forward_flops(config: Wav2Vec2Config, num_samples_B: Lengths) -> float:
    """Return the FLOPs of a forward pass with all layers over utterances of these lengths (samples at 16 kHz)."""
    encoder, layers, rest = _parts(config, num_samples_B)
    return encoder + layers + rest


def training_flops(config: Wav2Vec2Config, num_samples_B: Lengths, *, trains_feature_encoder: bool) -> float:
    """Return the FLOPs of forward and backward over utterances of these lengths (samples at 16 kHz).

    Layers count in proportion to how often they run: 1 - `config.layerdrop`.
    """
    encoder, layers, rest = _parts(config, num_samples_B)
    return (3 if trains_feature_encoder else 1) * encoder + 3 * (layers * (1 - config.layerdrop) + rest)


def _parts(config: Wav2Vec2Config, num_samples_B: Lengths) -> tuple[float, float, float]:
    """Return the forward FLOPs of the feature encoder, of the layers, and of the rest."""
    encoder, frames_B = _feature_encoder(config, num_samples_B)
    assert config.vocab_size is not None  # our models always have it
    frames, hidden = frames_B.sum(), config.hidden_size
    projections = 8 * frames * hidden**2
    feed_forward = 4 * frames * hidden * config.intermediate_size
    attention = 4 * np.square(frames_B).sum() * hidden
    layers = config.num_hidden_layers * (projections + feed_forward + attention)
    positional = 2 * frames * hidden**2 / config.num_conv_pos_embedding_groups * config.num_conv_pos_embeddings
    projection_and_head = 2 * frames * hidden * (config.conv_dim[-1] + config.vocab_size)
    return float(encoder), float(layers), float(positional + projection_and_head)


def _feature_encoder(config: Wav2Vec2Config, num_samples_B: Lengths) -> tuple[float, np.ndarray]:
    """Return the FLOPs, and the number of output frames of each utterance."""
    frames_B, flops = np.asarray(num_samples_B, dtype=np.float64), 0.0
    shapes = zip((1, *config.conv_dim), config.conv_dim, config.conv_kernel, config.conv_stride, strict=False)
    for channels_in, channels_out, kernel, stride in shapes:
        frames_B = np.maximum((frames_B - kernel) // stride + 1, 0)
        flops += 2 * frames_B.sum() * channels_in * channels_out * kernel
    return flops, frames_B
