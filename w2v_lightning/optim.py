"""The optimiser and the tri-stage learning rate of fairseq's fine-tuning recipes."""

from collections.abc import Callable

from torch import nn

from w2v_lightning.errors import InputError

INITIAL_LR_SCALE = 0.01


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """The trained parameters for an optimiser; biases and norms (one dimension) are spared the weight decay."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]


def tri_stage(
    num_updates: int, warmup: float = 0.1, hold: float = 0.4, final_lr_scale: float = 0.05
) -> Callable[[int], float]:
    """The factor on the learning rate at each optimiser update 0, 1, 2 ...: linear warm-up from 0.01, hold, exponential
    decay to `final_lr_scale`, which is kept from `num_updates` on.

    Source: fairseq's tri_stage scheduler with phase_ratio [warmup, hold, rest].

    Args:
        num_updates: optimiser updates of the whole run.
        warmup, hold: shares of `num_updates`; the decay has the rest.

    Raises:
        InputError: the shares do not fit into 1, or the final scale is not in (0, 1].
    """
    if not (warmup >= 0 and hold >= 0 and warmup + hold <= 1):
        raise InputError(f"model.warmup={warmup} and model.hold={hold} are shares of the run: together at most 1.")
    if not 0 < final_lr_scale <= 1:
        raise InputError(f"model.final_lr_scale={final_lr_scale} must be above 0 and at most 1.")
    warmup_updates = int(warmup * num_updates)
    hold_updates = int(hold * num_updates)
    decay_updates = num_updates - warmup_updates - hold_updates

    def factor(update: int) -> float:
        if update < warmup_updates:
            return INITIAL_LR_SCALE + (1 - INITIAL_LR_SCALE) * update / warmup_updates
        into_decay = min(update - warmup_updates - hold_updates, decay_updates)
        if into_decay <= 0:
            return 1.0
        return final_lr_scale ** (into_decay / decay_updates)

    return factor
