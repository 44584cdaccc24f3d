"""Which way each costly part of the model is computed: all ways give the same function, one of them is fastest.

docs/performance.md has what each is worth, measured.
"""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any, Literal, get_args, get_type_hints

import torch
from torch import Tensor, nn

from w2v_lightning.errors import InputError
from w2v_lightning.runtime.hardware import installed_version

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # torch before 2.10
    varlen_attn = None

Switch = Literal["auto", True, False]

# What the kernels of the CTC loss hold: a tile of its gradient has all tokens, a block of threads a frame's states.
MAX_TOKENS = 256
MAX_LABELS = 4000

FLASH4 = "4.0.0b36"  # the functions of flash-attn-4 that are called are private, and may change
FLASH4_FRAMES = 32_000  # so many keep the GPU busy while the host prepares its next kernels, which takes it longer


@dataclass(frozen=True)
class Speed:
    """What "auto" takes is the fastest way that the device can go; each can be set alone.

    Args:
        feature_encoder: "channels_last" keeps a frame's channels together in memory and computes the group norm of the
            base models from the waveform; "fused", for a frozen one on a GPU, has the first convolution, its norm and
            activation in one kernel besides; "transformers" is its own modules.
        positional_convolution: "blocks", for bfloat16 on a GPU, "fft", or "convolution"; "auto" times all of them once
            on each device, and remembers.
        attention: "packed" leaves out the padding (flash attention, half precision, on a GPU from compute capability
            8.0 on), "flash4" does that with the kernels of flash-attn-4 for Hopper GPUs, where that is installed and
            a micro-batch is long, "padded" masks it.
        feed_forward: "fused" has GELU and dropout in one kernel, on a GPU; "transformers" is its own modules.
        ctc: "fused" has the loss and its gradient in two kernels that the host does not wait for, on a GPU; "torch" is
            torch's own.
        compile: the transformer layers by torch.compile; auto: on a GPU, in training.
        fused_optimizer: AdamW in one kernel; auto: on a GPU.
    """

    feature_encoder: Literal["auto", "fused", "channels_last", "transformers"] = "auto"
    positional_convolution: Literal["auto", "blocks", "fft", "convolution"] = "auto"
    attention: Literal["auto", "flash4", "packed", "padded"] = "auto"
    feed_forward: Literal["auto", "fused", "transformers"] = "auto"
    ctc: Literal["auto", "fused", "torch"] = "auto"
    compile: Switch = "auto"
    fused_optimizer: Switch = "auto"

    def __post_init__(self):
        for name, found in vars(self).items():
            ways = ways_of(name)
            if found not in ways.values():
                raise InputError(f"model.speed.{name}: {found!r} is not known; choose from {', '.join(ways)}.")

    def feature_way(self, device: torch.device) -> str:
        """The way through the feature encoder; auto: the group norm's statistics need float64, which MPS lacks."""
        if self.feature_encoder != "auto":
            return self.feature_encoder
        return "transformers" if device.type == "mps" else "fused" if has_triton(device) else "channels_last"

    def packs(self, device: torch.device, dtype: torch.dtype, encoder: nn.Module) -> bool:
        """Whether the transformer's frames are packed.

        Raises:
            InputError: they are to be and cannot.
        """
        obstacle = _obstacle_to_packing(device, dtype, encoder)
        if self.attention in ("packed", "flash4") and obstacle:
            raise InputError(f"model.speed.attention={self.attention}: {obstacle}; set it to auto or padded.")
        return self.attention != "padded" and obstacle is None

    def takes_flash4(self, device: torch.device, head_size: int, num_frames: int) -> bool:
        """Whether that many packed frames go through flash-attn-4's kernels.

        Raises:
            InputError: they are to and cannot.
        """
        obstacle = _obstacle_to_flash4(device, head_size)
        if self.attention == "flash4" and obstacle:
            raise InputError(f"model.speed.attention=flash4: {obstacle}; set it to auto or packed.")
        if self.attention == "auto":
            return obstacle is None and num_frames >= FLASH4_FRAMES
        return self.attention == "flash4"

    def fuses_dropout(self, device: torch.device) -> bool:
        return has_triton(device) if self.feed_forward == "auto" else self.feed_forward == "fused"

    def fuses_ctc(self, logits_BFV: Tensor, labels_BU: Tensor) -> bool:
        """auto: what the kernels hold, float64 and very long utterances left out."""
        if self.ctc != "auto":
            return self.ctc == "fused"
        is_small = logits_BFV.shape[2] <= MAX_TOKENS and labels_BU.shape[1] <= MAX_LABELS
        return has_triton(logits_BFV.device) and logits_BFV.dtype == torch.float32 and is_small

    def compiles(self, device: torch.device) -> bool:
        return torch.is_grad_enabled() and has_triton(device) if self.compile == "auto" else self.compile

    def compiled(self, function: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
        """`function`, by torch.compile where that is the way."""
        return _compiled(function) if self.compiles(device) else function

    def fuses_optimizer(self, device: torch.device) -> bool:
        return device.type == "cuda" if self.fused_optimizer == "auto" else self.fused_optimizer


def ways_of(name: str) -> dict[str, Any]:
    """The values that a field of `Speed` may have, by how they are written; the last one is the plain way."""
    return {str(way).lower(): way for way in get_args(get_type_hints(Speed)[name])}


def _obstacle_to_packing(device: torch.device, dtype: torch.dtype, encoder: nn.Module) -> str | None:
    """Why there is no flash attention for packed utterances here."""
    if varlen_attn is None:
        return f"torch {torch.__version__} has no attention for packed utterances, 2.10 has"
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
        return "flash attention needs a GPU of compute capability 8.0 or later"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"flash attention needs half precision, found {dtype}"
    head_size = encoder.config.hidden_size // encoder.config.num_attention_heads
    if head_size % 8 or head_size > 256:
        return f"flash attention needs heads of a multiple of 8 channels and at most 256, found {head_size}"
    if encoder.training and encoder.config.attention_dropout > 0:
        return f"it knows no attention_dropout, found {encoder.config.attention_dropout}"
    return None


@cache
def _obstacle_to_flash4(device: torch.device, head_size: int) -> str | None:
    """Why its kernels are not taken here: where there is none they have been tried."""
    found = installed_version("flash-attn-4")
    if found is None:
        return "flash-attn-4 is not installed, pip install 'w2v-lightning[flash4]'"
    if found != FLASH4:
        return f"flash-attn-4 {FLASH4} is needed, pip install 'w2v-lightning[flash4]', found {found}"
    if torch.cuda.get_device_capability(device) != (9, 0):
        return "it is for Hopper GPUs, compute capability 9.0"
    return None if head_size == 64 else f"it is for heads of 64 channels, found {head_size}"


@cache
def has_triton(device: torch.device) -> bool:
    """Whether kernels can be built for `device`: Triton is for GPUs from compute capability 8.0 on, and needs a C
    compiler."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
        return False
    compilers = (os.environ.get("CC"), "cc", "gcc", "clang")
    return find_spec("triton") is not None and any(shutil.which(compiler) for compiler in compilers if compiler)


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` by torch.compile, for tensors of any sizes: only a padded batch of one utterance is compiled anew."""
    return torch.compile(function, dynamic=True)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` on `device`, without waiting for it."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
