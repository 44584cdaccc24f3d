"""Positional convolution of the transformer's input, by Fourier transforms where that is faster.

Its kernel has 128 frames and its channels form 16 groups, for which cuDNN has no kernel that uses tensor cores: a
product of spectra computes the same in a fraction of the time. The spectra are those of whole utterances, in float32 by
FFT, or, in bfloat16 on a GPU, those of blocks of frames, by our own kernels (positional_kernels.py).

Shapes: B utterances, F frames, C channels, G groups of I input and O output channels, K taps, S frequencies.
"""

import json
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from w2v_lightning.compat.torch import WeightNorm
from w2v_lightning.errors import InputError
from w2v_lightning.model.speed import has_triton
from w2v_lightning.runtime.files import atomic_text_file
from w2v_lightning.runtime.user_cache import cache_root

MAX_TAPS = 129  # limit of blocks that have half the length of their transforms
MAX_GROUP_CHANNELS = 128  # largest tile

# Input of a measurement: utterances as long as the longest of most corpora, and enough of them to fill a GPU.
TRIAL_FRAMES = 768
TRIAL_FRAMES_OF_ALL = {"cuda": 20_000, "cpu": 768}
TRIALS = 3


def positional(conv: nn.Conv1d, hidden_BFC: Tensor, way: str = "auto") -> Tensor:
    """Return the first F frames (B, F, C) of the convolution in transformers' Wav2Vec2PositionalConvEmbedding.

    Args:
        conv: that convolution, padded by half its taps.
        hidden_BFC: its input, zero after the end of each utterance.
        way: "blocks", "fft" or "convolution"; "auto" is the fastest on this device.

    Raises:
        InputError: "blocks" is not supported here.
    """
    device, bias_C, padding = hidden_BFC.device, conv.bias, conv.padding[0]
    assert bias_C is not None
    assert isinstance(padding, int)  # not one of torch's names, such as "same"
    dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else bias_C.dtype
    if way == "auto":
        way = fastest_way(conv, device, dtype)
    if way == "convolution":
        return conv(hidden_BFC.transpose(1, 2))[..., : hidden_BFC.shape[1]].transpose(1, 2)
    weight_CIK = weight(conv)
    with torch.autocast(device.type, enabled=False):
        if way == "fft":
            full = torch.promote_types(weight_CIK.dtype, torch.float32)  # torch has no FFT of bfloat16
            output_BFC = correlation(hidden_BFC.to(full), weight_CIK.to(full), conv.groups, padding)
            return (output_BFC + bias_C).to(hidden_BFC.dtype)
        if obstacle := _obstacle_to_blocks(conv, device, dtype):
            raise InputError(f"model.speed.positional_convolution=blocks: {obstacle}; set it to auto.")
        from w2v_lightning.model.positional_kernels import correlation_in_blocks  # needs Triton

        return correlation_in_blocks(hidden_BFC.to(dtype), weight_CIK.float(), bias_C, conv.groups, padding)


def weight(conv: nn.Conv1d) -> Tensor:
    """Return the weight (C, I, K). With a weight norm per tap it is computed here, because torch's kernel is slow."""
    if not parametrize.is_parametrized(conv, "weight"):
        return conv.weight
    parts = cast(nn.ModuleDict, conv.parametrizations)["weight"]
    assert isinstance(parts, parametrize.ParametrizationList)
    if len(parts) != 1 or not isinstance(parts[0], WeightNorm):
        return conv.weight
    length_11K, direction_CIK = cast(Tensor, parts.original0), cast(Tensor, parts.original1)
    return direction_CIK * (length_11K / torch.linalg.vector_norm(direction_CIK, dim=(0, 1), keepdim=True))


def correlation(hidden_BFC: Tensor, weight_CIK: Tensor, groups: int, offset: int) -> Tensor:
    """Return the grouped correlation y[t] = sum over k of weight[k] x[t + k - offset] for the F frames of x; (B, F, C).

    conv1d with a padding of `offset` computes the same, plus one more frame if the number of taps is even.
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
    """Return the smallest 2^a or 3 x 2^a that is at least `least`: few lengths, because each has to be planned."""
    length = 1 << (least - 1).bit_length()
    return length * 3 // 4 if length * 3 // 4 >= least else length


def _obstacle_to_blocks(conv: nn.Conv1d, device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why our kernels cannot compute it here; None if they can."""
    if not has_triton(device):
        return "its kernels require a GPU of compute capability 8.0 or later, Triton and a C compiler"
    if dtype != torch.bfloat16:
        return f"its kernels require bfloat16, found {dtype}"
    if conv.kernel_size[0] > MAX_TAPS:
        return f"its kernels support at most {MAX_TAPS} taps, found {conv.kernel_size[0]}"
    if conv.in_channels // conv.groups > MAX_GROUP_CHANNELS:
        return (
            f"its kernels support at most {MAX_GROUP_CHANNELS} channels per group, found"
            f" {conv.in_channels // conv.groups}"
        )
    return None


def fastest_way(conv: nn.Conv1d, device: torch.device, dtype: torch.dtype) -> str:
    """Return the fastest way that is available on this device; measured once, then read from the cache folder.

    A resumed run therefore computes in the same way as before.
    """
    if device.type not in TRIAL_FRAMES_OF_ALL:
        return "convolution"
    ways = ("fft", "convolution") if _obstacle_to_blocks(conv, device, dtype) else ("blocks", "fft", "convolution")
    shape = (conv.out_channels, conv.groups, conv.kernel_size[0])
    return _remembered_way(ways, device, dtype, shape, torch.get_num_threads() if device.type == "cpu" else 1)


@cache
def _remembered_way(
    ways: tuple[str, ...], device: torch.device, dtype: torch.dtype, shape: tuple[int, int, int], threads: int
) -> str:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {threads} threads"
    key = f"{name}, {dtype}, {shape}, torch {torch.__version__}, {' or '.join(ways)}"
    path = cache_root() / "positional_convolution.json"
    known = _read(path)
    if known.get(key) in ways:
        return known[key]
    seconds = {way: _seconds(way, device, dtype, shape) for way in ways}
    way = min(seconds, key=lambda way: seconds[way])
    with atomic_text_file(path) as file:
        json.dump({**known, key: way}, file, indent=1)
    return way


def _read(path: Path) -> dict[str, str]:
    """Return the earlier measurements; an empty dict if the file is missing or damaged."""
    try:
        known = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _seconds(way: str, device: torch.device, dtype: torch.dtype, shape: tuple[int, int, int]) -> float:
    """Return the time of the fastest trial, forward and backward, after one trial for warm-up."""
    channels, groups, taps = shape
    num = max(1, TRIAL_FRAMES_OF_ALL[device.type] // TRIAL_FRAMES)
    devices = [device] if device.type == "cuda" else []
    # Measure training, even if the first use is in scoring.
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices):
        is_half = dtype.itemsize == 2
        conv_dtype = torch.float32 if is_half else dtype
        conv = nn.Conv1d(channels, channels, taps, padding=taps // 2, groups=groups, device=device, dtype=conv_dtype)
        hidden_BFC = torch.randn(num, TRIAL_FRAMES, channels, device=device, dtype=dtype, requires_grad=True)

        def trial() -> None:
            with torch.autocast(device.type, dtype, enabled=is_half):
                positional(conv, hidden_BFC, way).sum().backward()

        return min(_timed(trial, device) for _ in range(1 + TRIALS))


def _timed(function: Callable[[], None], device: torch.device) -> float:
    synchronize: Callable[[], None] = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    synchronize()
    start = time.perf_counter()
    function()
    synchronize()
    return time.perf_counter() - start
