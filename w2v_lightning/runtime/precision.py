"""Numeric precision, by the names that Lightning uses."""

from contextlib import AbstractContextManager

import torch

from w2v_lightning.errors import InputError

# The data type of the weights, and the one that autocast computes in (None: no autocast).
DTYPES = {
    "32-true": (torch.float32, None),
    "bf16-mixed": (torch.float32, torch.bfloat16),
    "16-mixed": (torch.float32, torch.float16),
    "bf16-true": (torch.bfloat16, None),
    "16-true": (torch.float16, None),
}

# Values of trainer.precision; the last three are aliases of the first three.
TRAINER_PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "32", "bf16", "16")


def check_precision(precision: str | int) -> None:
    """Check that `precision` is supported as `trainer.precision`.

    Raises:
        InputError: it would not keep the weights in float32.
    """
    if str(precision) not in TRAINER_PRECISIONS:
        raise InputError(
            f"trainer.precision is {precision}, but weights are kept in float32: half precision would round most of"
            " their updates away. Use bf16-mixed, 16-mixed (GPUs before the A100) or 32-true."
        )


def choose_precision(accelerator: str) -> tuple[str, str]:
    """Return the best precision for this machine, and the reason.

    Args:
        accelerator: Lightning's name; no CUDA device is used unless it is auto, gpu or cuda.
    """
    if accelerator not in ("auto", "gpu", "cuda") or not torch.cuda.is_available():
        return "32-true", "no CUDA device is used"
    name, capability = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
    precision = precision_for_capability(capability)
    bfloat16_support = "supports" if precision == "bf16-mixed" else "does not support"
    return precision, f"{name} (compute capability {capability[0]}.{capability[1]}) {bfloat16_support} bfloat16"


def precision_for_capability(capability: tuple[int, int]) -> str:
    """Return the best precision for a GPU of a CUDA compute capability (major, minor)."""
    # torch.cuda.is_bf16_supported() is also true on a T4, where bfloat16 is emulated and slow.
    return "bf16-mixed" if capability >= (8, 0) else "16-mixed"


def weights_dtype(precision: str) -> torch.dtype:
    """Return the data type of the weights."""
    return DTYPES[precision][0]


def products_dtype(precision: str) -> torch.dtype:
    """Return the data type of matrix products; float32 for a name that is not in DTYPES."""
    weights, computed = DTYPES.get(precision, DTYPES["32-true"])
    return computed or weights


def autocast(precision: str, device_type: str) -> AbstractContextManager:
    """Return the autocast context for running a model in `precision`; it does nothing without autocast."""
    dtype = DTYPES[precision][1]
    return torch.autocast(device_type, dtype=dtype, enabled=dtype is not None)
