"""Parameter groups of the optimiser, and the learning rate schedules of the published recipes."""

import re
from collections.abc import Callable
from typing import Any, Literal, get_args

from lightning.pytorch import Trainer
from torch import nn

from w2v_lightning.errors import InputError

INITIAL_LR_SCALE = 0.01
Decay = Literal["exponential", "linear"]


def parameter_groups(
    model: nn.Module, weight_decay: float, learning_rate: float, layer_lr_decay: float = 1.0
) -> list[dict[str, Any]]:
    """Return the trained parameters in named groups for an optimiser, the highest learning rate first.

    Biases and norms (one dimension) have no weight decay.

    Args:
        model: transformers' Wav2Vec2ForCTC; any module if `layer_lr_decay` is 1.
        weight_decay: weight decay of the other parameters.
        learning_rate: learning rate of the head.
        layer_lr_decay: factor per layer: transformer layer l of L learns at `learning_rate` x `layer_lr_decay`^(L-l),
            everything before the layers at `learning_rate` x `layer_lr_decay`^L. 1 is off.

    Raises:
        InputError: `layer_lr_decay` is not in (0, 1].
    """
    if not 0 < layer_lr_decay <= 1:
        raise InputError(f"model.layer_lr_decay={layer_lr_decay} must be above 0 and at most 1 (off).")
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        part, num_layers_above = _location(name, model.config) if layer_lr_decay < 1 else ("all", 0)
        is_matrix = parameter.ndim > 1
        group_name = f"{part}/{'weights' if is_matrix else 'biases and norms'}"
        group = {
            "name": group_name,
            "params": [],
            "lr": learning_rate * layer_lr_decay**num_layers_above,
            "weight_decay": weight_decay if is_matrix else 0.0,
        }
        groups.setdefault(group_name, group)["params"].append(parameter)
    return sorted(groups.values(), key=lambda group: -group["lr"])


def _location(name: str, config: Any) -> tuple[str, int]:
    """Return the part of Wav2Vec2ForCTC that holds a parameter, and the number of transformer layers above it.

    The encoder's own norm is below its layers in the base models, above them in the large ones.
    """
    if layer := re.search(r"encoder\.layers\.(\d+)\.", name):
        index = int(layer[1])
        return f"layer {index + 1}", config.num_hidden_layers - 1 - index
    is_final_norm = "encoder.layer_norm." in name and config.do_stable_layer_norm
    if "lm_head." in name or is_final_norm:
        return "head", 0
    return "below the layers", config.num_hidden_layers


def tri_stage(
    num_updates: int,
    warmup: float = 0.1,
    hold: float = 0.4,
    final_lr_scale: float = 0.05,
    decay: Decay = "exponential",
) -> Callable[[int], float]:
    """Return the factor on the learning rate as a function of the optimiser update 0, 1, 2 ...

    It rises linearly from 0.01 (warm-up), stays at 1 (hold), decays to `final_lr_scale`, and stays there from
    `num_updates` on.

    Source: fairseq's tri_stage scheduler with phase_ratio [warmup, hold, rest], whose decay is exponential; in the
    wav2vec 2.0 paper (arXiv 2006.11477, section 4.3) the decay is linear.

    Args:
        num_updates: optimiser updates of the whole run.
        warmup, hold: shares of `num_updates`; the rest is the decay.
        final_lr_scale: factor at the end of the decay.
        decay: "exponential" or "linear".

    Raises:
        InputError: the sum of the shares exceeds 1, the final scale is not in (0, 1], or the decay is unknown.
    """
    if not (warmup >= 0 and hold >= 0 and warmup + hold <= 1):
        raise InputError(
            f"model.warmup={warmup} and model.hold={hold} are shares of the run; their sum must be at most 1."
        )
    if not 0 < final_lr_scale <= 1:
        raise InputError(f"model.final_lr_scale={final_lr_scale} must be above 0 and at most 1.")
    if decay not in get_args(Decay):
        raise InputError(f"model.decay={decay!r} is unknown; choose from {', '.join(get_args(Decay))}.")
    warmup_updates = int(warmup * num_updates)
    hold_updates = int(hold * num_updates)
    decay_updates = num_updates - warmup_updates - hold_updates

    def factor(update: int) -> float:
        if update < warmup_updates:
            return INITIAL_LR_SCALE + (1 - INITIAL_LR_SCALE) * update / warmup_updates
        into_decay = min(update - warmup_updates - hold_updates, decay_updates)
        if into_decay <= 0:
            return 1.0
        share = into_decay / decay_updates
        return final_lr_scale**share if decay == "exponential" else 1 - (1 - final_lr_scale) * share

    return factor


def polynomial_decay(num_updates: int, warmup: float = 0.08) -> Callable[[int], float]:
    """Return the factor on the learning rate as a function of the optimiser update 0, 1, 2 ...

    It rises linearly (warm-up), then falls linearly to 0.

    Source: fairseq's polynomial_decay scheduler with power 1, as in pre-training. The first update has the same
    factor as the second, one step of the warm-up, and not 0.

    Args:
        num_updates: optimiser updates of the whole run.
        warmup: share of `num_updates`; the rest is the decay.

    Raises:
        InputError: the share is not in [0, 1).
    """
    if not 0 <= warmup < 1:
        raise InputError(f"model.warmup={warmup} is a share of the run; it must be at least 0 and below 1.")
    warmup_updates = int(warmup * num_updates)

    def factor(update: int) -> float:
        if update <= warmup_updates:
            return max(update, 1) / max(warmup_updates, 1)
        return max(0.0, (num_updates - update) / (num_updates - warmup_updates))

    return factor


def num_updates_of(trainer: Trainer) -> int:
    """Return the number of optimiser updates of the whole run.

    Raises:
        InputError: the run has no limit of steps or epochs.
    """
    num_updates = trainer.estimated_stepping_batches
    if num_updates == float("inf"):
        raise InputError(
            "The learning rate schedule needs to know the length of the run: set trainer.max_steps or"
            " trainer.max_epochs."
        )
    return int(num_updates)
