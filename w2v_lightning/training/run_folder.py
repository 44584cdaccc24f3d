"""Which folder a run's outputs go to: LOG_DIR, wherever this package speaks of it."""

from pathlib import Path
from weakref import WeakKeyDictionary

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

NAME = "lightning_logs"  # what Lightning's own loggers call a run that has no name

_numbered: WeakKeyDictionary[Trainer, CSVLogger] = WeakKeyDictionary()  # a run's number is chosen once


def output_folder(trainer: Trainer) -> Path:
    """All ranks have to ask, and are told the same.

    Of several loggers the first counts. TensorBoard's and CSV's have a folder of their own for each run. Others, such
    as those of Weights & Biases and MLflow, only say where their service's client keeps its files, which is the same
    for all runs, a URL or nowhere: then it is trainer.default_root_dir/NAME/VERSION, beside the checkpoints. Where
    there is no logger, or one that numbers no runs, it is what CSVLogger would take: the next version_N.
    """
    folder = _folder(trainer) if trainer.is_global_zero else None  # others know no version of a service's run
    return Path(trainer.strategy.broadcast(folder))


def _folder(trainer: Trainer) -> str:
    logger = trainer.logger
    if isinstance(logger, (TensorBoardLogger, CSVLogger)):
        return logger.log_dir
    name, version = getattr(logger, "name", None) or NAME, getattr(logger, "version", None)
    if version not in (None, ""):
        return CSVLogger(trainer.default_root_dir, name, version).log_dir
    return _numbered.setdefault(trainer, CSVLogger(trainer.default_root_dir, name)).log_dir
