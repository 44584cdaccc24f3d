"""What `fit` does in a SageMaker container beyond what it does everywhere."""

import logging
import math
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from w2v_lightning.callbacks.export import ExportBest
from w2v_lightning.sagemaker.job import METRICS

log = logging.getLogger(__name__)


class MetricLines(Callback):
    """Prints lines such as `val_wer=0.0612 val_cer=0.0198`, from the first process only; METRICS has the names.

    Those of a validation after each one; those of training once a minute, as often as CloudWatch keeps them, and at
    the end.
    """

    def __init__(self, every_s: float = 60.0) -> None:
        self.every_s = every_s
        self._last_s = -math.inf

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._print(trainer, is_validation=True)

    def on_train_batch_end(self, trainer: Trainer, *_, **__) -> None:
        now_s = time.monotonic()
        is_due = now_s - self._last_s >= self.every_s  # not each time: reading a metric waits for the device
        if is_due and self._print(trainer, is_validation=False):
            self._last_s = now_s

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._print(trainer, is_validation=False)

    def _print(self, trainer: Trainer, is_validation: bool) -> bool:
        """False where there is nothing to print, such as before the first step is complete."""
        names = [
            name for name in METRICS if name.startswith("val_") == is_validation and name in trainer.callback_metrics
        ]
        values = {name: float(trainer.callback_metrics[name]) for name in names}
        line = " ".join(f"{name}={value:.6g}" for name, value in values.items() if math.isfinite(value))
        if line and trainer.is_global_zero:
            sys.stdout.write(f"{line}\n")  # in one piece: all processes write to the same log
            sys.stdout.flush()
        return bool(line)


class ModelHandover(Callback):
    """Moves the model, once it is exported, to SM_MODEL_DIR, which SageMaker packs and uploads as the job ends."""

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        exports = [callback for callback in trainer.callbacks if isinstance(callback, ExportBest)]
        source = exports[0].folder if exports else None
        if stage == "fit" and trainer.is_global_zero and source and source.is_dir():
            target = Path(os.environ["SM_MODEL_DIR"])
            move_into(source, target)
            log.info("The model is now in %s, for SageMaker to upload.", target)


def move_into(source: Path, target: Path) -> None:
    """Move a Hugging Face folder's files into `target`, a mount, which cannot itself be replaced.

    Copied to that file system first, they get their names at the end, config.json last: without it there is no model.
    """
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target, prefix=".incomplete-") as temporary:
        copied = shutil.copytree(source, Path(temporary, "model"))
        for path in sorted(copied.iterdir(), key=lambda path: path.name == "config.json"):
            os.replace(path, target / path.name)
    shutil.rmtree(source)
