"""Choice of the implementation of each costly part of the model; all of them compute the same function.

docs/performance.md has measurements of each.
"""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, cast, get_args, get_type_hints

import torch
from torch import Tensor, nn

from w2v_lightning.errors import InputError
from w2v_lightning.runtime.hardware import installed_version

if TYPE_CHECKING:
    from transformers import Wav2Vec2Config

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # torch before 2.10
    varlen_attn = None  # type: ignore[assignment]

Switch = Literal["auto", True, False]

# Limits of the CTC kernels: a tile of the gradient holds all tokens, a block of threads all states of a frame.
MAX_TOKENS = 256
MAX_LABELS = 4000

# The Triton kernels use torch.library.triton_op, which torch 2.6 introduced, and tl.gather of the Triton beside it.
HAS_TRITON_OP = hasattr(torch.library, "triton_op")

FLASH4 = "4.0.0b36"  # the only supported version: we call private functions of flash-attn-4, which may change
FLASH4_FRAMES = 32_000  # with fewer, the GPU idles: the host takes longer to launch these kernels than torch's


@dataclass(frozen=True)
class Speed:
    """Implementations of the costly parts. "auto" is the fastest that the device supports; each can be set separately.

    Args:
        feature_encoder: implementation of the convolutions: "channels_last" keeps a frame's channels adjacent in memory
            and computes the group norm of the base models from the waveform; "fused" (on a GPU) also computes the first
            convolution, norm and activation of a frozen encoder in one kernel; "transformers" uses its own modules.
        positional_convolution: implementation of the positional convolution: "blocks" (bfloat16 on a GPU), "fft", or
            "convolution"; "auto" measures all of them once on each device and stores the result.
        attention: implementation of the attention: "packed" removes the padding (flash attention, half precision, GPUs
            from compute capability 8.0 on); "flash4" is "packed" with the kernels of flash-attn-4 for Hopper GPUs,
            which "auto" uses if it is installed and the micro-batch is long; "padded" masks the padding.
        feed_forward: implementation of the feed-forward blocks: "fused" computes GELU and dropout in one kernel, on a
            GPU; "transformers" uses its own modules.
        ctc: implementation of the CTC loss: "fused" computes loss and gradient in two kernels that the host does not
            wait for, on a GPU; "torch" is torch's own.
        compile: compilation of the transformer layers by torch.compile; auto: on a GPU, in training.
        fused_optimizer: AdamW in one kernel; auto: on a GPU.
        graphs: CUDA graphs in training, which launch hundreds of kernels at once (model/graphs.py); false unless asked
            for; auto: for micro-batches so short that launching takes longer than computing.
    """

    feature_encoder: Literal["auto", "fused", "channels_last", "transformers"] = "auto"
    positional_convolution: Literal["auto", "blocks", "fft", "convolution"] = "auto"
    attention: Literal["auto", "flash4", "packed", "padded"] = "auto"
    feed_forward: Literal["auto", "fused", "transformers"] = "auto"
    ctc: Literal["auto", "fused", "torch"] = "auto"
    compile: Switch = "auto"
    fused_optimizer: Switch = "auto"
    graphs: Switch = False

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            choices = choices_of(name)
            if value not in choices.values():
                raise InputError(f"model.speed.{name}: {value!r} is unknown; choose from {', '.join(choices)}.")
            if value in ("fused", "blocks") and not HAS_TRITON_OP:
                raise InputError(
                    f"model.speed.{name}={value}: its kernels need torch 2.6 or later, found {torch.__version__};"
                    " set it to auto."
                )

    def feature_way(self, device: torch.device) -> str:
        """Return the implementation of the feature encoder. MPS lacks float64, which our group norm needs."""
        if self.feature_encoder != "auto":
            return self.feature_encoder
        return "transformers" if device.type == "mps" else "fused" if has_triton(device) else "channels_last"

    def packs(self, device: torch.device, dtype: torch.dtype, encoder: nn.Module) -> bool:
        """Return True if the transformer's frames are packed.

        Raises:
            InputError: packing is requested but not possible.
        """
        obstacle = _obstacle_to_packing(device, dtype, encoder)
        if self.attention in ("packed", "flash4") and obstacle:
            raise InputError(f"model.speed.attention={self.attention}: {obstacle}; set it to auto or padded.")
        return self.attention != "padded" and obstacle is None

    def uses_flash4(self, device: torch.device, head_size: int, num_frames: int) -> bool:
        """Return True if this number of packed frames is computed by flash-attn-4's kernels.

        Raises:
            InputError: flash-attn-4 is requested but not possible.
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
        """Return True if our kernels compute the CTC loss; auto: except float64 and sizes beyond their limits."""
        if self.ctc != "auto":
            return self.ctc == "fused"
        is_small = logits_BFV.shape[2] <= MAX_TOKENS and labels_BU.shape[1] <= MAX_LABELS
        return has_triton(logits_BFV.device) and logits_BFV.dtype == torch.float32 and is_small

    def compiles(self, device: torch.device) -> bool:
        return torch.is_grad_enabled() and has_triton(device) if self.compile == "auto" else self.compile

    def compiled(self, function: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
        """Return `function`, compiled by torch.compile if `compiles`."""
        return _compiled(function) if self.compiles(device) else function

    def fuses_optimizer(self, device: torch.device) -> bool:
        return device.type == "cuda" if self.fused_optimizer == "auto" else self.fused_optimizer


def choices_of(name: str) -> dict[str, Any]:
    """Return the possible values of a field of `Speed`, by their text; the last one is the plain implementation."""
    return {str(way).lower(): way for way in get_args(get_type_hints(Speed)[name])}


def _obstacle_to_packing(device: torch.device, dtype: torch.dtype, encoder: nn.Module) -> str | None:
    """Return why flash attention for packed utterances is not possible here; None if it is."""
    if varlen_attn is None:
        return f"attention for packed utterances needs torch 2.10 or later, found {torch.__version__}"
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
        return "flash attention needs a GPU of compute capability 8.0 or later"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"flash attention needs half precision, found {dtype}"
    config = cast("Wav2Vec2Config", encoder.config)
    head_size = config.hidden_size // config.num_attention_heads
    if head_size % 8 or head_size > 256:
        return f"flash attention needs heads of at most 256 channels, in multiples of 8, found {head_size}"
    if encoder.training and config.attention_dropout > 0:
        return f"flash attention does not support attention_dropout, found {config.attention_dropout}"
    return None


@cache
def _obstacle_to_flash4(device: torch.device, head_size: int) -> str | None:
    """Return why flash-attn-4 is not used here; None in the one configuration that its kernels were tested in."""
    version = installed_version("flash-attn-4")
    if version is None:
        return "flash-attn-4 is not installed, pip install 'w2v-lightning[flash4]'"
    if version != FLASH4:
        return f"flash-attn-4 {FLASH4} is required, pip install 'w2v-lightning[flash4]', found {version}"
    if torch.cuda.get_device_capability(device) != (9, 0):
        return "flash-attn-4 needs a Hopper GPU, compute capability 9.0"
    return None if head_size == 64 else f"flash-attn-4 is supported for heads of 64 channels, found {head_size}"


@cache
def has_triton(device: torch.device) -> bool:
    """Return True if Triton and a C compiler can build kernels for `device`, a GPU from compute capability 8.0 on."""
    if device.type != "cuda" or not HAS_TRITON_OP or torch.cuda.get_device_capability(device) < (8, 0):
        return False
    compilers = (os.environ.get("CC"), "cc", "gcc", "clang")
    return find_spec("triton") is not None and any(shutil.which(compiler) for compiler in compilers if compiler)


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile `function` for tensors of any size; only a padded batch of one utterance is compiled again."""
    return torch.compile(function, dynamic=True)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy `tensor` to `device` without waiting for it; one that is there already is returned itself."""
    if tensor.device == device:
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
