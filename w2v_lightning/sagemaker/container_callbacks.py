"""Callbacks of `fit` in a SageMaker container: metrics as log lines, and the model for upload."""

import logging
import math
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from w2v_lightning.callbacks.export import ExportBest
from w2v_lightning.sagemaker.job import METRICS

log = logging.getLogger(__name__)


class MetricLines(Callback):
    """Prints the METRICS in lines such as `val_wer=0.0612 val_cer=0.0198`, on rank 0 only.

    Validation metrics are printed after each validation, training metrics every `every_s` seconds (CloudWatch keeps one
    value a minute) and at the end of training.
    """

    def __init__(self, every_s: float = 60.0) -> None:
        self.every_s = every_s
        self._last_s = -math.inf

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._print(trainer, is_validation=True)

    def on_train_batch_end(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        now_s = time.monotonic()
        is_due = (
            now_s - self._last_s >= self.every_s
        )  # not at each batch, because reading a metric waits for the device
        if is_due and self._print(trainer, is_validation=False):
            self._last_s = now_s

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._print(trainer, is_validation=False)

    def _print(self, trainer: Trainer, is_validation: bool) -> bool:
        """Print a line; return False if there is no metric yet, such as before the first step is complete."""
        names = [
            name for name in METRICS if name.startswith("val_") == is_validation and name in trainer.callback_metrics
        ]
        values = {name: float(trainer.callback_metrics[name]) for name in names}
        line = " ".join(f"{name}={value:.6g}" for name, value in values.items() if math.isfinite(value))
        if line and trainer.is_global_zero:
            sys.stdout.write(f"{line}\n")  # one write per line, because all processes write to the same log
            sys.stdout.flush()
        return bool(line)


class ModelHandover(Callback):
    """Moves the exported model to SM_MODEL_DIR, which SageMaker packs and uploads at the end of the job."""

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by Lightning's connector
        exports = [callback for callback in callbacks if isinstance(callback, ExportBest)]
        source = exports[0].folder if exports else None
        if stage == "fit" and trainer.is_global_zero and source and source.is_dir():
            target = Path(os.environ["SM_MODEL_DIR"])
            move_into(source, target)
            log.info("The model is now in %s, for SageMaker to upload.", target)


def move_into(source: Path, target: Path) -> None:
    """Move the files of a Hugging Face model folder into `target`, a mount point, which cannot be replaced as a whole.

    The files are copied to a temporary folder on that file system and then renamed, config.json last: a folder without
    it is not a model.
    """
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target, prefix=".incomplete-") as temporary:
        copied = shutil.copytree(source, Path(temporary, "model"))
        for path in sorted(copied.iterdir(), key=lambda path: path.name == "config.json"):
            os.replace(path, target / path.name)
    shutil.rmtree(source)
