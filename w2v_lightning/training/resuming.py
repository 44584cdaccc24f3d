"""Parts of a checkpoint that belong to the run that wrote it, and not to the one that resumes from it."""

import logging
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.utilities import rank_zero_only
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

log = logging.getLogger(__name__)

OWN_OPTIONS = ("betas", "eps", "weight_decay")  # of AdamW; the learning rate follows from the schedule


def keep_options(optimizer: Optimizer) -> None:
    """Let an optimiser keep its own options when its state is loaded, which brings those of the run that saved it."""
    own = [
        {"initial_lr": group["lr"]} | {name: group[name] for name in OWN_OPTIONS} for group in optimizer.param_groups
    ]

    def restore(optimizer: Optimizer) -> None:
        for group, options in zip(optimizer.param_groups, own, strict=True):
            group.update(options)

    optimizer.register_load_state_dict_post_hook(restore)


def keep_schedule(trainer: Trainer) -> None:
    """Set the learning rate to that of this run's schedule, and report it if the checkpoint's was another one."""
    for config in trainer.lr_scheduler_configs:
        scheduler = config.scheduler
        if not isinstance(scheduler, LambdaLR):
            continue
        groups = scheduler.optimizer.param_groups
        scheduler.base_lrs = [group["initial_lr"] for group in groups]
        factors = [schedule(scheduler.last_epoch) for schedule in scheduler.lr_lambdas]
        rates = [base * factor for base, factor in zip(scheduler.base_lrs, factors, strict=True)]
        if rates[0] != groups[0]["lr"]:
            rank_zero_only(log.warning)(
                "The learning rate at step %d is %.3g instead of %.3g in the checkpoint: the options of the schedule or"
                " the end of training have changed since.",
                *(trainer.global_step, rates[0], groups[0]["lr"]),
            )
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate


def use_live_weights(trainer: Trainer, checkpoint: dict[str, Any]) -> None:
    """Resume from the weights that were trained, if the checkpoint has their average and the run keeps none any more.

    The state of the optimiser is that of the trained weights. A checkpoint with an average, as MovingAverage writes it,
    holds the average as `state_dict`, which is what is scored and exported.
    """
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by Lightning's callback connector
    if "current_model_state" in checkpoint and not any(isinstance(each, WeightAveraging) for each in callbacks):
        checkpoint["state_dict"] = checkpoint["current_model_state"]
        rank_zero_only(log.warning)(
            "The checkpoint holds a moving average of the weights, but trainer.callbacks has no MovingAverage any more:"
            " resuming from the weights themselves, and the average ends here."
        )
