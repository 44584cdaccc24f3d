"""Output folder of a run, called LOG_DIR in the documentation."""

from pathlib import Path
from weakref import WeakKeyDictionary

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

NAME = "lightning_logs"  # default name of Lightning's own loggers

_numbered: WeakKeyDictionary[Trainer, CSVLogger] = WeakKeyDictionary()  # so that the number of a run is chosen once


def output_folder(trainer: Trainer) -> Path:
    """Return the same output folder on all ranks. A collective operation: call it on all ranks.

    The first logger decides. TensorBoardLogger and CSVLogger have a folder for each run. Others, such as those of
    Weights & Biases and MLflow, only name the folder of their service's client, which is the same for all runs, a URL
    or missing: then the folder is trainer.default_root_dir/NAME/VERSION, beside the checkpoints. Without a logger, or
    with one that does not number runs, it is the folder that CSVLogger would use: the next version_N.
    """
    folder = _folder(trainer) if trainer.is_global_zero else None  # only rank 0 knows a service's version
    folder = trainer.strategy.broadcast(folder)
    assert folder is not None  # rank 0 has sent it
    return Path(folder)


def _folder(trainer: Trainer) -> str:
    logger = trainer.logger
    if isinstance(logger, (TensorBoardLogger, CSVLogger)):
        return logger.log_dir
    name, version = getattr(logger, "name", None) or NAME, getattr(logger, "version", None)
    if version not in (None, ""):
        return CSVLogger(trainer.default_root_dir, name, version).log_dir
    return _numbered.setdefault(trainer, CSVLogger(trainer.default_root_dir, name)).log_dir
