"""How often a spot job saves a checkpoint."""

import math
from typing import Any

from w2v_lightning.catalog.model_sizes import size_of

# The weights, and two averages of gradients that Adam keeps, in float32.
BYTES_PER_PARAMETER = 12
SAVED_BYTES_PER_S = 100e6  # to the disk and on to S3; not measured: a general-purpose volume has 125 MB/s or more


def young_daly_s(save_s: float, mean_time_to_interruption_s: float) -> float:
    """The time between checkpoints at which saving them and doing lost steps again cost least together, in seconds.

    sqrt(2 x save x mean time to an interruption): Young, CACM 17(9), 1974; Daly, FGCS 22(3), 2006, to first order. Not
    less than a save takes: the next one would have to wait for it.
    """
    return max(math.sqrt(2 * save_s * mean_time_to_interruption_s), save_s)


def save_s(config: dict[str, Any]) -> float:
    """Seconds until a checkpoint of the model that the options of `fit` describe is in S3; an estimate."""
    return size_of(config.get("model", {})).parameters * BYTES_PER_PARAMETER / SAVED_BYTES_PER_S


def checkpoint_every(config: dict[str, Any], count: int, interruptions_per_instance_hour: float) -> str:
    """What `fit` takes as checkpoint_every, in whole minutes. Any of `count` instances that is taken back ends all."""
    mean_time_s = 3600 / (interruptions_per_instance_hour * count)
    return f"{max(1, round(young_daly_s(save_s(config), mean_time_s) / 60))}m"
