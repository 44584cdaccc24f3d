"""The positional convolution of the transformer's input, by Fourier transforms where that is faster.

Its kernel is 128 frames long and its channels come in 16 groups, for which cuDNN has no kernel that uses tensor cores:
a product of spectra does the same in a fraction of the time. The spectra are those of whole utterances, in float32 by
FFT, or, in bfloat16 on a GPU, those of blocks of frames, by kernels of ours (positional_kernels.py).

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

from w2v_lightning.data.manifest import cache_root
from w2v_lightning.errors import InputError
from w2v_lightning.model.speed import has_triton
from w2v_lightning.runtime.files import atomic_text_file

MAX_TAPS = 129  # that blocks of half their transforms' length leave room for
MAX_GROUP_CHANNELS = 128  # of a tile

# What a measurement runs on: the longest that most corpora have, and enough of them to fill a GPU.
TRIAL_FRAMES = 768
TRIAL_FRAMES_OF_ALL = {"cuda": 20_000, "cpu": 768}
TRIALS = 3


def positional(conv: nn.Conv1d, hidden_BFC: Tensor, way: str = "auto") -> Tensor:
    """The first F frames (B, F, C) of the convolution in transformers' Wav2Vec2PositionalConvEmbedding.

    Args:
        conv: that convolution, padded by half its taps.
        hidden_BFC: zero behind each utterance.
        way: "blocks", "fft" or "convolution"; "auto" is the fastest on this device.

    Raises:
        InputError: there are no blocks here.
    """
    device = hidden_BFC.device
    dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else conv.bias.dtype
    if way == "auto":
        way = fastest_way(conv, device, dtype)
    if way == "convolution":
        return conv(hidden_BFC.transpose(1, 2))[..., : hidden_BFC.shape[1]].transpose(1, 2)
    weight_CIK, offset = weight(conv), conv.padding[0]
    with torch.autocast(device.type, enabled=False):
        if way == "fft":
            full = torch.promote_types(weight_CIK.dtype, torch.float32)  # there is no FFT of bfloat16
            found_BFC = correlation(hidden_BFC.to(full), weight_CIK.to(full), conv.groups, offset)
            return (found_BFC + conv.bias).to(hidden_BFC.dtype)
        if obstacle := _obstacle_to_blocks(conv, device, dtype):
            raise InputError(f"model.speed.positional_convolution=blocks: {obstacle}; set it to auto.")
        from w2v_lightning.model.positional_kernels import correlation_in_blocks  # needs Triton

        return correlation_in_blocks(hidden_BFC.to(dtype), weight_CIK.float(), conv.bias, conv.groups, offset)


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


def _obstacle_to_blocks(conv: nn.Conv1d, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why our kernels cannot compute it here."""
    if not has_triton(device):
        return "its kernels need a GPU of compute capability 8.0 or later, Triton and a C compiler"
    if dtype != torch.bfloat16:
        return f"spectra are kept in bfloat16, found {dtype}"
    if conv.kernel_size[0] > MAX_TAPS:
        return f"at most {MAX_TAPS} taps have room, found {conv.kernel_size[0]}"
    if conv.in_channels // conv.groups > MAX_GROUP_CHANNELS:
        return f"at most {MAX_GROUP_CHANNELS} channels a group have room, found {conv.in_channels // conv.groups}"
    return None


def fastest_way(conv: nn.Conv1d, device: torch.device, dtype: torch.dtype) -> str:
    """Of those that are there on this device; measured once, then read from the cache folder.

    So a run that is resumed computes as it did before.
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
        is_half = dtype.itemsize == 2
        options = {"device": device, "dtype": torch.float32 if is_half else dtype}
        conv = nn.Conv1d(channels, channels, taps, padding=taps // 2, groups=groups, **options)
        hidden_BFC = torch.randn(num, TRIAL_FRAMES, channels, device=device, dtype=dtype, requires_grad=True)

        def trial() -> None:
            with torch.autocast(device.type, dtype, enabled=is_half):
                positional(conv, hidden_BFC, way).sum().backward()

        return min(_timed(trial, device) for _ in range(1 + TRIALS))


def _timed(function: Callable[[], None], device: torch.device) -> float:
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    synchronize()
    start = time.perf_counter()
    function()
    synchronize()
    return time.perf_counter() - start
