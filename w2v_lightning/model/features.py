"""The convolutions over the waveform, with a frame's channels side by side in memory.

Tensor cores want them so; a waveform with one channel they cannot use at all. So the first convolution is a product of
its windows of samples with its weights. The group norm that follows it in the base models is made part of those
weights: it is linear once its mean and variance are known, and these follow from the covariance of the windows (10 x
10), without computing the output first, which is the largest tensor of the whole model.

The frames of all utterances follow each other in one row, as if they were one utterance: cuDNN plans a convolution anew
for each new shape, for milliseconds of the host's time each, and a row's length can be rounded to one of a few. Each
utterance has a multiple of what the later convolutions stride over, so that its frames begin where they would begin
alone; what reaches over its end is none of its own frames.

Shapes: B utterances, T samples, F frames, C channels, K samples in a window of the first convolution, N frames of all
utterances, in a row.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Wav2Vec2Model
from transformers.activations import GELUActivation

from w2v_lightning.data.batch import one_of_few
from w2v_lightning.model.speed import Speed, to_device

ALIGNMENT = 8  # half-precision matrix products are fast where sizes are multiples of it
KERNEL_CHANNELS = 256  # our kernel's widest tile
CHUNK_FRAMES = 256  # windows in one product of a covariance: enough of them at once to fill a GPU
MOST_ELEMENTS = 2_000_000_000  # of a row: cuDNN is fastest where 32 bits can count them
LENGTHS_AN_OCTAVE = 32  # of a row, on a GPU: 1.2 % is computed in vain


def conv_features(
    wav2vec2: Wav2Vec2Model, waveforms_BT: Tensor, num_samples_B: Tensor, speed: Speed = Speed()
) -> Tensor:
    """Output (B, F, C) of the convolutions over the waveform; frames beyond an utterance's own are arbitrary.

    Args:
        wav2vec2: transformers' model without head.
        waveforms_BT: float32, padded with anything.
        num_samples_B: int64, of each utterance without its padding, on the CPU.
        speed: how it is computed.
    """
    num_samples_B = to_device(num_samples_B, waveforms_BT.device)
    layers = wav2vec2.feature_extractor.conv_layers
    if speed.feature_way(waveforms_BT.device) == "transformers":
        return _by_transformers_modules(wav2vec2.feature_extractor, waveforms_BT, num_samples_B)
    num_elements = waveforms_BT.numel() // layers[0].conv.stride[0] * layers[0].conv.out_channels
    num_rows = 1 + num_elements // MOST_ELEMENTS
    rows = zip(waveforms_BT.chunk(num_rows), num_samples_B.chunk(num_rows), strict=True)
    return torch.cat([_in_a_row(layers, *row, speed) for row in rows])


def _by_transformers_modules(extractor: nn.Module, waveforms_BT: Tensor, num_samples_B: Tensor) -> Tensor:
    first, *others = extractor.conv_layers
    if not _has_group_norm(first):
        return extractor(waveforms_BT).transpose(1, 2)  # each frame is normalised by itself
    num_frames_B = _num_windows(first.conv, num_samples_B)
    hidden_BCF = first.activation(masked_group_norm(first.layer_norm, first.conv(waveforms_BT[:, None]), num_frames_B))
    for layer in others:
        hidden_BCF = layer(hidden_BCF)
    return hidden_BCF.transpose(1, 2)


def _in_a_row(layers: nn.ModuleList, waveforms_BT: Tensor, num_samples_B: Tensor, speed: Speed) -> Tensor:
    """Output (B, F, C) of the layers."""
    first, *others = layers
    num_utterances, num_samples = waveforms_BT.shape
    num_frames = num_samples
    for layer in layers:
        num_frames = _num_windows(layer.conv, num_frames)
    stride = math.prod(layer.conv.stride[0] for layer in others)
    room = math.ceil(_num_windows(first.conv, num_samples) / stride)  # frames, those that reach over the end included
    num_padded = (room * stride - 1) * first.conv.stride[0] + first.conv.kernel_size[0]
    waveforms_BT = functional.pad(waveforms_BT, (0, num_padded - num_samples))
    first_layer = _first_group_norm_layer if _has_group_norm(first) else _first_layer_norm_layer
    hidden_1NC = first_layer(first, waveforms_BT, num_samples_B, speed)[None]
    for layer in others:
        hidden_1NC = _norm_and_activation(layer, convolution(layer.conv, hidden_1NC))
    missing = num_utterances * room - hidden_1NC.shape[1]  # of the last one's, or too many: negative
    hidden_NC = functional.pad(hidden_1NC[0], (0, 0, 0, missing))
    return hidden_NC.unflatten(0, (num_utterances, room))[:, :num_frames]


def convolution(conv: nn.Conv1d, hidden_BFC: Tensor) -> Tensor:
    """`conv` of frames whose channels lie side by side; so do those of its output (B, F, C).

    cuDNN has such kernels for images only: the utterance is one of height 1.
    """
    image_BC1F = hidden_BFC[:, None].permute(0, 3, 1, 2)
    image_BC1F = functional.conv2d(image_BC1F, conv.weight[:, :, None], conv.bias, stride=(1, conv.stride[0]))
    return image_BC1F.permute(0, 2, 3, 1)[:, 0]


def row_length(num_frames: int, device: torch.device) -> int:
    """Frames of a row that has to hold so many."""
    return one_of_few(num_frames, LENGTHS_AN_OCTAVE) if device.type == "cuda" else num_frames


def _has_group_norm(layer: nn.Module) -> bool:
    return isinstance(getattr(layer, "layer_norm", None), nn.GroupNorm)


def _first_layer_norm_layer(layer: nn.Module, waveforms_BT: Tensor, _num_samples_B: Tensor, _speed: Speed) -> Tensor:
    """Its output (N, C)."""
    windows_NK = _windows(layer.conv, waveforms_BT).flatten(0, 1)
    num_spare = row_length(len(windows_NK), windows_NK.device) - len(windows_NK)
    windows_NK = functional.pad(windows_NK, (0, 0, 0, num_spare))
    return _norm_and_activation(layer, _product(windows_NK, *_window_weights(layer.conv)))


def _first_group_norm_layer(layer: nn.Module, waveforms_BT: Tensor, num_samples_B: Tensor, speed: Speed) -> Tensor:
    """Its output (N, C)."""
    windows_BFK = _windows(layer.conv, waveforms_BT)
    num_frames_B = _num_windows(layer.conv, num_samples_B)
    get_weights = speed.compiled(normalised_weights, waveforms_BT.device)
    weight_BKC, shift_BC = get_weights(layer, windows_BFK, num_frames_B)
    is_frozen = not (torch.is_grad_enabled() and weight_BKC.requires_grad)
    fits = weight_BKC.shape[2] % KERNEL_CHANNELS == 0 and is_gelu(layer.activation)
    if speed.feature_way(waveforms_BT.device) == "fused" and is_frozen and fits:
        from w2v_lightning.model.kernels import first_convolution  # needs Triton

        length = row_length(windows_BFK.shape[:2].numel(), windows_BFK.device)
        return first_convolution(waveforms_BT, weight_BKC, shift_BC, layer.conv.stride[0], _dtype(waveforms_BT), length)
    return layer.activation(_product(windows_BFK, weight_BKC, shift_BC)).flatten(0, 1)


def normalised_weights(layer: nn.Module, windows_BFK: Tensor, num_frames_B: Tensor) -> tuple[Tensor, Tensor]:
    """Weights (B, K, C) and bias (B, C) that make of the windows what the first convolution and its group norm do.

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
    """Mean (B, K) and covariance (B, K, K) of each utterance's first `num_frames_B` windows, in float64.

    Speech has little energy at high frequencies: a filter's variance may be a millionth of the waveform's, which in
    float32 would drown in the rounding of its covariance.
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


def _windows(conv: nn.Conv1d, waveforms_BT: Tensor) -> Tensor:
    return waveforms_BT.unfold(1, conv.kernel_size[0], conv.stride[0])


def _num_windows(conv: nn.Conv1d, num_samples: int | Tensor) -> int | Tensor:
    return (num_samples - conv.kernel_size[0]) // conv.stride[0] + 1


def _dtype(values: Tensor) -> torch.dtype:
    """What a convolution of `values` would put out."""
    device_type = values.device.type
    return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else values.dtype


def is_gelu(activation: nn.Module) -> bool:
    return isinstance(activation, nn.GELU | GELUActivation)


def _window_weights(conv: nn.Conv1d) -> tuple[Tensor, Tensor]:
    """Weights (K, C) and bias (C,) of a convolution over one channel."""
    weight_KC = conv.weight[:, 0].T
    return weight_KC, conv.bias if conv.bias is not None else weight_KC.new_zeros(weight_KC.shape[1])


def _product(windows_XK: Tensor, weight_KC: Tensor, bias_C: Tensor) -> Tensor:
    """Windows times weights, which may be each utterance's own, plus bias; (N, C), or (B, F, C).

    The bias is the weight of one more sample that is always 1: added to the output, it would be read and written again.

    In half precision both factors are split into what they round to and the rest. A filter for high frequencies takes
    differences of nearly equal samples, and the norm that follows makes them large again, their rounding included.
    """
    windows_XK = functional.pad(windows_XK, (0, 1), value=1.0)
    weight_KC = torch.cat([weight_KC, bias_C[..., None, :]], dim=-2)
    dtype = _dtype(windows_XK)
    if dtype.itemsize == 2:
        (windows_XK, rest_XK), (weight_KC, rest_KC) = _split(windows_XK, dtype), _split(weight_KC, dtype)
        windows_XK = torch.cat([windows_XK, rest_XK, windows_XK], dim=-1)
        weight_KC = torch.cat([weight_KC, weight_KC, rest_KC], dim=-2)
    missing = -windows_XK.shape[-1] % ALIGNMENT
    return functional.pad(windows_XK, (0, missing)) @ functional.pad(weight_KC, (0, 0, 0, missing))


def _split(values: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    rounded = values.to(dtype)
    return rounded, (values - rounded.to(values.dtype)).to(dtype)


def _norm_and_activation(layer: nn.Module, hidden_BFC: Tensor) -> Tensor:
    """What follows a convolution in `layer`: in the large models a norm over the channels."""
    if (norm := getattr(layer, "layer_norm", None)) is not None:
        hidden_BFC = layer_norm(norm, hidden_BFC)
    return layer.activation(hidden_BFC)


def layer_norm(norm: nn.LayerNorm, hidden_XC: Tensor) -> Tensor:
    """`norm` over the channels, computed in the precision of its weights, put out in that of its input."""
    with torch.autocast(hidden_XC.device.type, enabled=False):
        return norm(hidden_XC.to(norm.weight.dtype)).to(hidden_XC.dtype)
