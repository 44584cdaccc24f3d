"""Checkpoint interval of spot jobs."""

import math
from collections.abc import Mapping
from typing import Any

from w2v_lightning.catalog.model_sizes import size_of

# Weights and Adam's two moments, in float32.
BYTES_PER_PARAMETER = 12
SAVED_BYTES_PER_S = 100e6  # to disk and then to S3; assumed: a general-purpose volume has 125 MB/s or more


def young_daly_s(save_s: float, mean_time_to_interruption_s: float) -> float:
    """Return the seconds between checkpoints that minimise the total cost of saving and of repeating lost steps.

    This is sqrt(2 x save x mean time to an interruption): Young, CACM 17(9), 1974; Daly, FGCS 22(3), 2006, to first
    order. It is at least the duration of a save, because the next save would have to wait for it.
    """
    return max(math.sqrt(2 * save_s * mean_time_to_interruption_s), save_s)


def save_s(config: Mapping[str, Any]) -> float:
    """Return the estimated seconds until a checkpoint of the model in this config is in S3.

    Args:
        config: options of `fit`.
    """
    return size_of(config.get("model", {})).parameters * BYTES_PER_PARAMETER / SAVED_BYTES_PER_S


def checkpoint_every(config: Mapping[str, Any], count: int, interruptions_per_instance_hour: float) -> str:
    """Return a value for `fit`'s checkpoint_every, in whole minutes.

    An interruption of any of the `count` instances ends the job.
    """
    mean_time_s = 3600 / (interruptions_per_instance_hour * count)
    return f"{max(1, round(young_daly_s(save_s(config), mean_time_s) / 60))}m"
