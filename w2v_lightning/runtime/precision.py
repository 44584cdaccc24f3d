"""The numbers that a device computes in, by Lightning's names."""

from contextlib import AbstractContextManager

import torch

from w2v_lightning.errors import InputError

# What weights are kept in, and what is computed in by autocast (None: in what the weights are kept in).
DTYPES = {
    "32-true": (torch.float32, None),
    "bf16-mixed": (torch.float32, torch.bfloat16),
    "16-mixed": (torch.float32, torch.float16),
    "bf16-true": (torch.bfloat16, None),
    "16-true": (torch.float16, None),
}

# Of the trainer; the last three are other names of the first.
TRAINER_PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "32", "bf16", "16")


def check_precision(precision: str | int) -> None:
    """Whether it can be `trainer.precision`.

    Raises:
        InputError: it would keep the weights in something else than float32.
    """
    if str(precision) not in TRAINER_PRECISIONS:
        raise InputError(
            f"trainer.precision is {precision}, but weights are kept in float32; half precision would round most of"
            " their updates away. Take bf16-mixed, on a GPU before the A100 16-mixed, or 32-true."
        )


def choose_precision(accelerator: str) -> tuple[str, str]:
    """The precision for the device at hand, and why.

    Args:
        accelerator: Lightning's name; any but auto, gpu and cuda means that no CUDA device is used.
    """
    if accelerator not in ("auto", "gpu", "cuda") or not torch.cuda.is_available():
        return "32-true", "no CUDA device is used"
    name, capability = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
    precision = of_capability(capability)
    has_bfloat16 = "computes in" if precision == "bf16-mixed" else "has no"
    return precision, f"{name} (compute capability {capability[0]}.{capability[1]}) {has_bfloat16} bfloat16"


def of_capability(capability: tuple[int, int]) -> str:
    """The precision for a GPU of CUDA's compute capability."""
    # torch.cuda.is_bf16_supported() says yes on a T4 too, where bf16 is emulated and slow.
    return "bf16-mixed" if capability >= (8, 0) else "16-mixed"


def weights_dtype(precision: str) -> torch.dtype:
    """What weights are kept in."""
    return DTYPES[precision][0]


def products_dtype(precision: str) -> torch.dtype:
    """What matrix products are computed in; float32 for a name that is not among DTYPES."""
    weights, computed = DTYPES.get(precision, DTYPES["32-true"])
    return computed or weights


def autocast(precision: str, device_type: str) -> AbstractContextManager:
    """The context that a model runs in."""
    dtype = DTYPES[precision][1]
    return torch.autocast(device_type, dtype=dtype, enabled=dtype is not None)
