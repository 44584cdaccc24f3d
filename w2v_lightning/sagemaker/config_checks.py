"""Whether a config builds: its module and data module, without weights, network or GPU."""

from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from typing import Any

from w2v_lightning.config import build
from w2v_lightning.errors import InputError
from w2v_lightning.sagemaker.job import CHANNEL

CONTAINER_DATA = f"/opt/ml/input/data/{CHANNEL}"
# Options that may name what lies on this machine.
PLACES = ("model.pretrained", "model.vocabulary", "data.augmentation.noise_folder", "resume", "ckpt_path")


def check(config: Mapping[str, Any]) -> None:
    """Build what `fit` would.

    Args:
        config: all options of `fit`, resolved.

    Raises:
        InputError: an option has a value that cannot be, or names a place that the container does not have.
    """
    check_places(config)
    check_checkpoints(config)
    check_best(config, *build(config))


def check_places(config: Mapping[str, Any]) -> None:
    for option in PLACES:
        place = reduce(
            lambda part, key: part.get(key) if isinstance(part, Mapping) else None, option.split("."), config
        )
        if isinstance(place, str) and not place.startswith("/opt/ml/") and _is_local(place):
            hub = " or give a name on the Hugging Face hub," if option == "model.pretrained" else ""
            raise InputError(
                f"{option}: {place} lies on this machine, and the container does not have it;{hub} or upload it"
                f" below --data and name it {CONTAINER_DATA}/{Path(place).name}."
            )


def _is_local(place: str) -> bool:
    return place.startswith(("/", "~", "./", "../")) or Path(place).exists()


def check_checkpoints(config: Mapping[str, Any]) -> None:
    from w2v_lightning.checkpoints.recent import Interval, RecentCheckpoints  # slow to import

    RecentCheckpoints("checkpoints", Interval.parse(config["checkpoint_every"]), config["checkpoint_keep"])


def check_best(config: Mapping[str, Any], module: Any, data: Any) -> None:
    """What the best model is chosen by has to be logged, where there is a validation."""
    from w2v_lightning.training.monitors import check_monitor  # slow to import

    monitor, trainer = config["checkpoint"]["monitor"], config["trainer"]
    is_chosen = trainer.get("limit_val_batches") != 0 and trainer.get("enable_checkpointing") is not False
    if monitor and data.val_splits and is_chosen:
        logged = module.logged_names(data.val_splits)
        check_monitor("checkpoint.monitor", monitor, logged, others_log=bool(trainer.get("callbacks")))
