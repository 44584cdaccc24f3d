"""The positional convolution of the transformer's input, by FFT where that is faster.

Its kernel is 128 frames long and its channels come in 16 groups, for which cuDNN has no kernel that uses tensor cores:
a product of spectra does the same in a fraction of the time.

Shapes: B utterances, F frames, C channels, G groups of I input and O output channels, K taps, S frequencies.
"""

import json
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _WeightNorm

from w2v_lightning.data.manifest import atomic_text_file, cache_root

WAYS = ("fft", "convolution")

# What a measurement runs on: the longest that most corpora have, and enough of them to fill a GPU.
TRIAL_FRAMES = 768
TRIAL_FRAMES_OF_ALL = {"cuda": 20_000, "cpu": 768}
TRIALS = 3


def positional(embedding: nn.Module, hidden_BFC: Tensor, way: str = "auto") -> Tensor:
    """What transformers' Wav2Vec2PositionalConvEmbedding gives for frames (B, F, C): convolution and activation.

    Args:
        embedding: the module.
        hidden_BFC: zero behind each utterance.
        way: "fft" or "convolution"; "auto" is the faster one on this device.
    """
    if way == "auto":
        way = faster_way(embedding, hidden_BFC)
    if way == "convolution":
        return embedding(hidden_BFC)
    conv, weight_CIK = embedding.conv, weight(embedding.conv)
    with torch.autocast(hidden_BFC.device.type, enabled=False):
        full_BFC = hidden_BFC.to(weight_CIK.dtype)
        output_BFC = correlation(full_BFC, weight_CIK, conv.groups, offset=conv.padding[0]) + conv.bias
    return embedding.activation(output_BFC.to(hidden_BFC.dtype))


def weight(conv: nn.Module) -> Tensor:
    """The weight (C, I, K), made of its two parts where it is a weight norm by tap: torch's kernel for that is slow."""
    if not parametrize.is_parametrized(conv, "weight"):
        return conv.weight
    parts = conv.parametrizations.weight
    if len(parts) != 1 or not isinstance(parts[0], _WeightNorm):
        return conv.weight
    length_11K, direction_CIK = parts.original0, parts.original1
    return direction_CIK * (length_11K / torch.linalg.vector_norm(direction_CIK, dim=(0, 1), keepdim=True))


def correlation(hidden_BFC: Tensor, weight_CIK: Tensor, groups: int, offset: int) -> Tensor:
    """Grouped correlation y[t] = sum over k of weight[k] x[t + k - offset] for the F frames of x; (B, F, C).

    What conv1d with a padding of `offset` computes, less the frame too many that an even kernel gives.
    """
    num_frames, taps = hidden_BFC.shape[1], weight_CIK.shape[2]
    length = fft_length(num_frames + taps - 1)
    filter_SGIO = torch.fft.rfft(weight_CIK, n=length).conj().unflatten(0, (groups, -1)).permute(3, 0, 2, 1)
    delayed_BCF = functional.pad(hidden_BFC.transpose(1, 2), (offset, 0))
    spectrum_BCS = torch.fft.rfft(delayed_BCF, n=length)
    spectrum_SGBI = spectrum_BCS.unflatten(1, (groups, -1)).permute(3, 1, 0, 2)
    output_SGBO = spectrum_SGBI @ filter_SGIO
    output_BCS = output_SGBO.permute(2, 1, 3, 0).flatten(1, 2)
    return torch.fft.irfft(output_BCS, n=length)[..., :num_frames].transpose(1, 2)


@cache
def fft_length(least: int) -> int:
    """The smallest 2^a or 3 x 2^a from `least` on: few lengths, for each has to be planned."""
    length = 1 << (least - 1).bit_length()
    return length * 3 // 4 if length * 3 // 4 >= least else length


def faster_way(embedding: nn.Module, hidden_BFC: Tensor) -> str:
    """ "fft" or "convolution", whichever was faster on this device; measured once, then read from the cache folder.

    So a run that is resumed computes as it did before.
    """
    conv = embedding.conv
    device = hidden_BFC.device
    if device.type not in TRIAL_FRAMES_OF_ALL:
        return "convolution"
    is_autocast = torch.is_autocast_enabled(device.type)
    dtype = torch.get_autocast_dtype(device.type) if is_autocast else conv.bias.dtype
    shape = (conv.out_channels, conv.groups, conv.kernel_size[0])
    return _remembered_way(device, dtype, shape, torch.get_num_threads() if device.type == "cpu" else 1)


@cache
def _remembered_way(device: torch.device, dtype: torch.dtype, shape: tuple[int, int, int], threads: int) -> str:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {threads} threads"
    key = f"{name}, {dtype}, {shape}, torch {torch.__version__}"
    path = cache_root() / "positional_convolution.json"
    known = _read(path)
    if known.get(key) in WAYS:
        return known[key]
    seconds = {way: _seconds(way, device, dtype, shape) for way in WAYS}
    way = min(seconds, key=seconds.get)
    with atomic_text_file(path) as file:
        json.dump({**known, key: way}, file, indent=1)
    return way


def _read(path: Path) -> dict[str, str]:
    """What was measured before; nothing where the file is missing or damaged."""
    try:
        known = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _seconds(way: str, device: torch.device, dtype: torch.dtype, shape: tuple[int, int, int]) -> float:
    """The fastest of some trials, forward and backward, after one to warm up."""
    channels, groups, taps = shape
    num = max(1, TRIAL_FRAMES_OF_ALL[device.type] // TRIAL_FRAMES)
    devices = [device] if device.type == "cuda" else []
    # What is remembered is for training, also where scoring comes first.
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices):
        conv = nn.Conv1d(channels, channels, taps, padding=taps // 2, groups=groups, device=device)
        hidden_BFC = torch.randn(num, TRIAL_FRAMES, channels, device=device, requires_grad=True)

        def trial() -> None:
            with torch.autocast(device.type, dtype, enabled=dtype.itemsize == 2):
                positional(_Embedding(conv), hidden_BFC, way).sum().backward()

        return min(_timed(trial, device) for _ in range(1 + TRIALS))


def _timed(function: Callable[[], None], device: torch.device) -> float:
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    synchronize()
    start = time.perf_counter()
    function()
    synchronize()
    return time.perf_counter() - start


class _Embedding(nn.Module):
    """A positional convolution of no model, to measure with."""

    def __init__(self, conv: nn.Conv1d):
        super().__init__()
        self.conv = conv
        self.activation = nn.Identity()

    def forward(self, hidden_BFC: Tensor) -> Tensor:
        return self.conv(hidden_BFC.transpose(1, 2))[..., : hidden_BFC.shape[1]].transpose(1, 2)
