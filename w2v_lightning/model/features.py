"""Convolutions over the waveform, with the channels of a frame adjacent in memory ("channels last").

Tensor cores need this layout, and cannot use a waveform with one channel at all. The first convolution is therefore a
product of windows of samples with its weights. The group norm after it in the base models is folded into those weights:
it is linear once mean and variance are known, and these follow from the covariance of the windows (10 x 10), without
computing the output first, which is the largest tensor of the whole model.

The frames of all utterances are concatenated in one row, as if they were one utterance: cuDNN plans a convolution for
each new shape, which takes milliseconds of host time, and a row's length can be rounded to one of a few. The number of
frames of each utterance is padded to a multiple of the later convolutions' total stride, so that its frames begin where
they would begin alone; frames that reach beyond its end are not part of it.

Shapes: B utterances, T samples, F frames, C channels, K samples in a window of the first convolution, N frames of all
utterances, in a row.
"""

import math
from collections.abc import Sequence
from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Wav2Vec2Model
from transformers.activations import GELUActivation
from transformers.models.wav2vec2.modeling_wav2vec2 import (
    Wav2Vec2FeatureEncoder,
    Wav2Vec2GroupNormConvLayer,
    Wav2Vec2LayerNormConvLayer,
    Wav2Vec2NoLayerNormConvLayer,
)

from w2v_lightning.data.batch import round_to_few_sizes
from w2v_lightning.model.speed import Speed, to_device

ConvLayer = Wav2Vec2GroupNormConvLayer | Wav2Vec2LayerNormConvLayer | Wav2Vec2NoLayerNormConvLayer
Number = TypeVar("Number", int, Tensor)

ALIGNMENT = 8  # half-precision matrix products are fast where sizes are multiples of it
KERNEL_CHANNELS = 256  # our kernel's widest tile
CHUNK_FRAMES = 256  # windows in one product of a covariance: enough of them at once to fill a GPU
MAX_ROW_ELEMENTS = 2_000_000_000  # cuDNN is fastest where 32 bits can index them
LENGTHS_PER_OCTAVE = 32  # row lengths on a GPU between a length and its double: rounding up costs 1.2 %


def conv_features(
    wav2vec2: Wav2Vec2Model, waveforms_BT: Tensor, num_samples_B: Tensor, speed: Speed = Speed()
) -> Tensor:
    """Return the output (B, F, C) of the convolutions over the waveform; frames beyond an utterance are arbitrary.

    Args:
        wav2vec2: transformers' model without head.
        waveforms_BT: float32, padded with anything.
        num_samples_B: int64, samples of each utterance without its padding, on the CPU.
        speed: choice of the implementation.
    """
    num_samples_B = to_device(num_samples_B, waveforms_BT.device)
    layers = cast(Sequence[ConvLayer], wav2vec2.feature_extractor.conv_layers)  # a ModuleList of these
    if speed.feature_way(waveforms_BT.device) == "transformers":
        return _by_transformers_modules(wav2vec2.feature_extractor, waveforms_BT, num_samples_B)
    num_elements = waveforms_BT.numel() // layers[0].conv.stride[0] * layers[0].conv.out_channels
    num_rows = 1 + num_elements // MAX_ROW_ELEMENTS
    rows = zip(waveforms_BT.chunk(num_rows), num_samples_B.chunk(num_rows), strict=True)
    return torch.cat([_in_a_row(layers, *row, speed) for row in rows])


def _by_transformers_modules(extractor: Wav2Vec2FeatureEncoder, waveforms_BT: Tensor, num_samples_B: Tensor) -> Tensor:
    first, *rest = cast(Sequence[ConvLayer], extractor.conv_layers)
    if not isinstance(first, Wav2Vec2GroupNormConvLayer):
        return extractor(waveforms_BT).transpose(1, 2)  # each frame is normalised by itself
    num_frames_B = _num_windows(first.conv, num_samples_B)
    hidden_BCF = first.activation(masked_group_norm(first.layer_norm, first.conv(waveforms_BT[:, None]), num_frames_B))
    for layer in rest:
        hidden_BCF = layer(hidden_BCF)
    return hidden_BCF.transpose(1, 2)


def _in_a_row(layers: Sequence[ConvLayer], waveforms_BT: Tensor, num_samples_B: Tensor, speed: Speed) -> Tensor:
    """Return the output (B, F, C) of the layers."""
    first, *rest = layers
    num_utterances, num_samples = waveforms_BT.shape
    num_frames = num_samples
    for layer in layers:
        num_frames = _num_windows(layer.conv, num_frames)
    stride = math.prod(layer.conv.stride[0] for layer in rest)
    room = math.ceil(
        _num_windows(first.conv, num_samples) / stride
    )  # frames, including those that reach beyond the end
    num_padded = (room * stride - 1) * first.conv.stride[0] + first.conv.kernel_size[0]
    waveforms_BT = functional.pad(waveforms_BT, (0, num_padded - num_samples))
    if isinstance(first, Wav2Vec2GroupNormConvLayer):
        hidden_1NC = _first_group_norm_layer(first, waveforms_BT, num_samples_B, speed)[None]
    else:
        hidden_1NC = _first_layer_norm_layer(first, waveforms_BT)[None]
    for layer in rest:
        hidden_1NC = _norm_and_activation(layer, convolution(layer.conv, hidden_1NC))
    missing = (
        num_utterances * room - hidden_1NC.shape[1]
    )  # frames of the last utterance; negative if there are too many
    hidden_NC = functional.pad(hidden_1NC[0], (0, 0, 0, missing))
    return hidden_NC.unflatten(0, (num_utterances, room))[:, :num_frames]


def convolution(conv: nn.Conv1d, hidden_BFC: Tensor) -> Tensor:
    """Return the output (B, F, C) of `conv` for frames whose channels are adjacent in memory, in the same layout.

    cuDNN has such kernels only for images, so the utterance is passed as an image of height 1.
    """
    image_BC1F = hidden_BFC[:, None].permute(0, 3, 1, 2)
    image_BC1F = functional.conv2d(image_BC1F, conv.weight[:, :, None], conv.bias, stride=(1, conv.stride[0]))
    return image_BC1F.permute(0, 2, 3, 1)[:, 0]


def row_length(num_frames: int, device: torch.device) -> int:
    """Return the length in frames of a row that holds `num_frames`."""
    return round_to_few_sizes(num_frames, LENGTHS_PER_OCTAVE) if device.type == "cuda" else num_frames


def _first_layer_norm_layer(layer: ConvLayer, waveforms_BT: Tensor) -> Tensor:
    """Return the layer's output (N, C)."""
    windows_NK = _windows(layer.conv, waveforms_BT).flatten(0, 1)
    num_spare = row_length(len(windows_NK), windows_NK.device) - len(windows_NK)
    windows_NK = functional.pad(windows_NK, (0, 0, 0, num_spare))
    return _norm_and_activation(layer, _product(windows_NK, *_window_weights(layer.conv)))


def _first_group_norm_layer(
    layer: Wav2Vec2GroupNormConvLayer, waveforms_BT: Tensor, num_samples_B: Tensor, speed: Speed
) -> Tensor:
    """Return the layer's output (N, C)."""
    windows_BFK = _windows(layer.conv, waveforms_BT)
    num_frames_B = _num_windows(layer.conv, num_samples_B)
    get_weights = speed.compiled(normalised_weights, waveforms_BT.device)
    weight_BKC, shift_BC = get_weights(layer, windows_BFK, num_frames_B)
    is_frozen = not (torch.is_grad_enabled() and weight_BKC.requires_grad)
    fits = weight_BKC.shape[2] % KERNEL_CHANNELS == 0 and is_gelu(layer.activation)
    if speed.feature_way(waveforms_BT.device) == "fused" and is_frozen and fits:
        from w2v_lightning.model.kernels import first_convolution  # needs Triton

        length = row_length(windows_BFK.shape[:2].numel(), windows_BFK.device)
        dtype = output_dtype(waveforms_BT)
        return first_convolution(waveforms_BT, weight_BKC, shift_BC, layer.conv.stride[0], dtype, length)
    return layer.activation(_product(windows_BFK, weight_BKC, shift_BC)).flatten(0, 1)


def normalised_weights(
    layer: Wav2Vec2GroupNormConvLayer, windows_BFK: Tensor, num_frames_B: Tensor
) -> tuple[Tensor, Tensor]:
    """Return weights (B, K, C) and bias (B, C) that combine the first convolution and its group norm.

    The norm is over each utterance's real frames, one group per channel. With W the weights, b the bias, m and S mean
    and covariance of the windows, the convolution's output has the mean m W + b and, channel by channel, the variance
    w' S w.
    """
    weight_KC, bias_C = _window_weights(layer.conv)
    mean_BK, covariance_BKK = moments(windows_BFK, num_frames_B)
    norm, exact_KC = layer.layer_norm, weight_KC.double()
    mean_BC = mean_BK @ exact_KC + bias_C
    variance_BC = ((covariance_BKK @ exact_KC) * exact_KC).sum(dim=1)
    scale_BC = norm.weight * (variance_BC + norm.eps).rsqrt()
    shift_BC = norm.bias + (bias_C - mean_BC) * scale_BC
    return (exact_KC * scale_BC[:, None]).to(weight_KC.dtype), shift_BC.to(weight_KC.dtype)


@torch.no_grad()
def moments(windows_BFK: Tensor, num_frames_B: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean (B, K) and covariance (B, K, K) of each utterance's first `num_frames_B` windows, in float64.

    Speech has little energy at high frequencies: a filter's variance may be a millionth of the waveform's, which in
    float32 would be lost in the rounding errors of the covariance.
    """
    frames_F = torch.arange(windows_BFK.shape[1], device=windows_BFK.device)
    is_real_BF1 = (frames_F < num_frames_B[:, None])[..., None]
    num_B1 = num_frames_B[:, None].double()
    real_BFK = windows_BFK.masked_fill(~is_real_BF1, 0.0)
    mean_BK = real_BFK.sum(dim=1, dtype=torch.float64) / num_B1
    centred_BFK = (real_BFK - mean_BK[:, None].to(real_BFK.dtype)).masked_fill(~is_real_BF1, 0.0)
    missing = -centred_BFK.shape[1] % CHUNK_FRAMES
    chunks_NFK = functional.pad(centred_BFK, (0, 0, 0, missing)).reshape(-1, CHUNK_FRAMES, centred_BFK.shape[2])
    chunks_NFK = chunks_NFK.double()
    products_NKK = torch.bmm(chunks_NFK.transpose(1, 2), chunks_NFK)
    return mean_BK, products_NKK.unflatten(0, (len(num_frames_B), -1)).sum(dim=1) / num_B1[..., None]


def masked_group_norm(norm: nn.GroupNorm, hidden_BCF: Tensor, num_frames_B: Tensor) -> Tensor:
    """Apply `norm` over each utterance's first `num_frames_B` frames, one group per channel; computed in float32."""
    num_B11 = num_frames_B[:, None, None]
    is_padding_B1F = torch.arange(hidden_BCF.shape[2], device=hidden_BCF.device) >= num_B11
    with torch.autocast(hidden_BCF.device.type, enabled=False):
        values_BCF = hidden_BCF.float().masked_fill(is_padding_B1F, 0.0)
        mean_BC1 = values_BCF.sum(dim=2, keepdim=True) / num_B11
        centred_BCF = (values_BCF - mean_BC1).masked_fill(is_padding_B1F, 0.0)
        variance_BC1 = centred_BCF.square().sum(dim=2, keepdim=True) / num_B11
        scale_BC1 = (variance_BC1 + norm.eps).rsqrt() * norm.weight[:, None]
        return (centred_BCF * scale_BC1 + norm.bias[:, None]).to(hidden_BCF.dtype)


def _windows(conv: nn.Conv1d, waveforms_BT: Tensor) -> Tensor:
    return waveforms_BT.unfold(1, conv.kernel_size[0], conv.stride[0])


def _num_windows(conv: nn.Conv1d, num_samples: Number) -> Number:
    return (num_samples - conv.kernel_size[0]) // conv.stride[0] + 1


def output_dtype(values: Tensor) -> torch.dtype:
    """Return the output type of a convolution of `values`."""
    device_type = values.device.type
    return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else values.dtype


def is_gelu(activation: nn.Module) -> bool:
    return isinstance(activation, nn.GELU | GELUActivation)


def _window_weights(conv: nn.Conv1d) -> tuple[Tensor, Tensor]:
    """Return weights (K, C) and bias (C,) of a convolution over one channel."""
    weight_KC = conv.weight[:, 0].T
    return weight_KC, conv.bias if conv.bias is not None else weight_KC.new_zeros(weight_KC.shape[1])


def _product(windows_XK: Tensor, weight_KC: Tensor, bias_C: Tensor) -> Tensor:
    """Return windows times weights, which may differ between utterances, plus bias; (N, C), or (B, F, C).

    The bias is the weight of an additional sample that is always 1: an addition would read and write the output again.

    In half precision both factors are split into their rounded value and the remainder. A filter for high frequencies
    takes differences of nearly equal samples, and the following norm amplifies them together with their rounding error.
    """
    windows_XK = functional.pad(windows_XK, (0, 1), value=1.0)
    weight_KC = torch.cat([weight_KC, bias_C[..., None, :]], dim=-2)
    dtype = output_dtype(windows_XK)
    if dtype.itemsize == 2:
        (windows_XK, rest_XK), (weight_KC, rest_KC) = _split(windows_XK, dtype), _split(weight_KC, dtype)
        windows_XK = torch.cat([windows_XK, rest_XK, windows_XK], dim=-1)
        weight_KC = torch.cat([weight_KC, weight_KC, rest_KC], dim=-2)
    missing = -windows_XK.shape[-1] % ALIGNMENT
    return functional.pad(windows_XK, (0, missing)) @ functional.pad(weight_KC, (0, 0, 0, missing))


def _split(values: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    rounded = values.to(dtype)
    return rounded, (values - rounded.to(values.dtype)).to(dtype)


def _norm_and_activation(layer: ConvLayer, hidden_BFC: Tensor) -> Tensor:
    """Apply the rest of `layer` after its convolution; in the large models this includes a norm over the channels."""
    if (norm := getattr(layer, "layer_norm", None)) is not None:
        hidden_BFC = layer_norm(norm, hidden_BFC)
    return layer.activation(hidden_BFC)


def layer_norm(norm: nn.LayerNorm, hidden_XC: Tensor) -> Tensor:
    """Apply `norm` over the channels, in the precision of its weights; the output has the type of the input."""
    with torch.autocast(hidden_XC.device.type, enabled=False):
        return norm(hidden_XC.to(norm.weight.dtype)).to(hidden_XC.dtype)
