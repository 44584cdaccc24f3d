"""Checkpoint with as little as `fit` accepts to resume from."""

import torch

COUNTS = {"ready": 8, "started": 8, "processed": 8, "completed": 8}
PROGRESS = {"total": COUNTS, "current": COUNTS}


def smallest_checkpoint(step):
    fit_loop = {
        "epoch_progress": PROGRESS,
        "epoch_loop.batch_progress": PROGRESS,
        "epoch_loop.val_loop.batch_progress": PROGRESS,
        "epoch_loop.automatic_optimization.optim_progress": {"optimizer": {"step": PROGRESS, "zero_grad": PROGRESS}},
        "epoch_loop.scheduler_progress": PROGRESS,
    }
    return {
        "pytorch-lightning_version": "2.6.4",
        "epoch": 0,
        "global_step": step,
        "state_dict": {},
        "optimizer_states": [
            {
                "state": {0: dict.fromkeys(("step", "exp_avg", "exp_avg_sq"), torch.zeros(()))},
                "param_groups": [{"params": [0]}],
            }
        ],
        "lr_schedulers": [],
        "loops": {"fit_loop": fit_loop},
    }
