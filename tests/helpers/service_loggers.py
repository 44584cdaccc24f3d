"""Loggers that behave as Lightning's for Weights & Biases and MLflow do, without the services."""

import secrets

from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only


class ServiceLogger(Logger):
    """Of a run that the service names once it is begun, and only on the first rank."""

    run = None

    @property
    @rank_zero_experiment
    def experiment(self):
        self.run = self.run or secrets.token_hex(4)
        return self

    @property
    def version(self):
        return self.run

    @rank_zero_only
    def log_hyperparams(self, *_, **__): ...

    @rank_zero_only
    def log_metrics(self, metrics, step=None): ...


class WandbLike(ServiceLogger):
    name = "speech"  # the project
    save_dir = "."  # the default: where the client keeps its own files


class MlflowLike(ServiceLogger):
    """With a tracking server: nothing is kept here."""

    save_dir = None

    @property
    def name(self):
        return self.experiment and "7"  # the id of the experiment, for which the service is asked


class NotInstalled(ServiceLogger):
    """Lightning's, where the service's package is missing."""

    name = "x"

    def __init__(self) -> None:
        raise ModuleNotFoundError("Requirement 'x>=1' not met. HINT: Try running `pip install -U x`")
