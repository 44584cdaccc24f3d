"""Checks of a config: its module and data module are built without weights, network or GPU."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from w2v_lightning.config import build
from w2v_lightning.errors import InputError
from w2v_lightning.sagemaker.job import CHANNEL

CONTAINER_DATA = f"/opt/ml/input/data/{CHANNEL}"
# Options that may be a path on this machine.
PATHS = ("model.pretrained", "model.vocabulary", "data.augmentation.noise_folder", "resume", "ckpt_path")


def check(config: Mapping[str, Any]) -> None:
    """Check the paths in a config, build what `fit` would build, and check its checkpoints.

    Args:
        config: all options of `fit`, resolved.

    Raises:
        InputError: an option has an invalid value, or is a path that the container does not have.
    """
    check_paths(config)
    check_checkpoints(config)
    check_best(config, *build(config))


def check_paths(config: Mapping[str, Any]) -> None:
    """Check that no option is a path on this machine, which the container would not have."""
    for option in PATHS:
        path = _value(config, option)
        if isinstance(path, str) and not path.startswith("/opt/ml/") and _is_local(path):
            hub = "give a name on the Hugging Face Hub, or " if option == "model.pretrained" else ""
            raise InputError(
                f"{option} is {path}, a path on this machine, which the container does not have; {hub}upload it below"
                f" --data and give {CONTAINER_DATA}/{Path(path).name}."
            )


def _value(config: Any, option: str) -> Any:
    """Return the value of a dotted option; None if the config does not have it."""
    for key in option.split("."):
        config = config.get(key) if isinstance(config, Mapping) else None
    return config


def _is_local(path: str) -> bool:
    return path.startswith(("/", "~", "./", "../")) or Path(path).exists()


def check_checkpoints(config: Mapping[str, Any]) -> None:
    """Check the options of the latest checkpoints."""
    from w2v_lightning.checkpoints.recent import Interval, RecentCheckpoints  # slow to import

    RecentCheckpoints("checkpoints", Interval.parse(config["checkpoint_every"]), config["checkpoint_keep"])


def check_best(config: Mapping[str, Any], module: Any, data: Any) -> None:
    """Check that the metric that chooses the best model is logged, if there is a validation."""
    from w2v_lightning.training.monitors import check_monitor  # slow to import

    monitor, trainer = config["checkpoint"]["monitor"], config["trainer"]
    is_chosen = trainer.get("limit_val_batches") != 0 and trainer.get("enable_checkpointing") is not False
    if monitor and data.val_splits and is_chosen:
        logged = module.logged_names(data.val_splits)
        check_monitor("checkpoint.monitor", monitor, logged, others_log=bool(trainer.get("callbacks")))
