"""Progress of a run on one line: optimiser steps, loss, WER, audio-seconds per second, time left."""

import math
import sys
import time
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich import get_console
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.table import Column
from rich.text import Text
from torch import Tensor

BAR_EVERY_S = 0.25
PLAIN_LINE_EVERY_S = 10.0
MAX_BAR_WIDTH = 20  # columns
MIN_DATA_WAIT_SHARE = 0.1  # waiting for data is shown above this share of the time: more loader workers would help


class RunProgress(ProgressBar):
    """Progress bar over the whole run. Lightning's bars restart in each epoch, and so cannot tell the time left.

    It is a live rich bar on a terminal, and a plain line every 10 s in a log file. All that is printed to its console,
    and all messages to standard error, appear above the bar.

    Args:
        console: console of the bar; default: the one that rich and Lightning share, as `RunSummary` does.
    """

    def __init__(self, console: Console | None = None) -> None:
        super().__init__()
        self.console = console or get_console()
        self._enabled = True
        self._bar: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._last_shown = -math.inf

    def disable(self) -> None:
        """Print nothing. Lightning calls this on every rank but the first."""
        self._enabled = False

    def print(self, *args: Any, **kwargs: Any) -> None:
        if self._enabled:
            self.console.print(*args, **kwargs)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start = time.monotonic()
        self._start_step = trainer.global_step
        self._show("train", trainer.global_step, int(trainer.estimated_stepping_batches))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        done, total = trainer.global_step, int(trainer.estimated_stepping_batches)
        if done < total and not self._is_due():
            return  # not after every batch: reading a metric waits for the device
        metrics, seconds_left = trainer.callback_metrics, self._seconds_left(done, total)
        if self._is_live:
            self._show("train", done, total, bar_text(metrics, seconds_left))
        else:
            self.print(f"step {done}/{total}  {metrics_line(metrics, seconds_left)}", highlight=False, soft_wrap=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop()  # the summary comes below it

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin_evaluation(
            "validate", trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
        )

    def on_validation_batch_end(self, *_: Any, **__: Any) -> None:
        self._advance_evaluation("validate")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end_evaluation("validate")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin_evaluation("test", trainer.num_test_batches)

    def on_test_batch_end(self, *_: Any, **__: Any) -> None:
        self._advance_evaluation("test")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end_evaluation("test")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin_evaluation("predict", trainer.num_predict_batches)

    def on_predict_batch_end(self, *_: Any, **__: Any) -> None:
        self._advance_evaluation("predict")

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end_evaluation("predict")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop()

    # ---- the bar ------------------------------------------------------------------------------------------------

    def _show(self, name: str, completed: int, total: float, text: str = "") -> None:
        if not self._enabled or not self._is_live:
            return
        if self._bar is None:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(min(MAX_BAR_WIDTH, self.console.width // 10)),
                MofNCompleteColumn(table_column=Column(no_wrap=True)),
                _TruncatedText(),
            )
            self._bar = Progress(
                *columns, console=self.console, refresh_per_second=4, redirect_stderr=sys.stderr.isatty()
            )
            self._bar.start()
        if name not in self._tasks:
            self._tasks[name] = self._bar.add_task(name, total=total, text=text)
        self._bar.update(self._tasks[name], completed=completed, total=total, text=text)

    def _begin_evaluation(self, name: str, num_batches: list[int | float]) -> None:
        self._evaluated, self._to_evaluate = 0, sum(num_batches)
        self._show(name, 0, self._to_evaluate)

    def _advance_evaluation(self, name: str) -> None:
        self._evaluated += 1
        self._show(name, self._evaluated, self._to_evaluate)

    def _end_evaluation(self, name: str) -> None:
        if self._bar is not None and name in self._tasks:
            self._bar.remove_task(self._tasks.pop(name))

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._bar, self._tasks = None, {}

    @property
    def _is_live(self) -> bool:
        return self.console.is_terminal and not self.console.is_dumb_terminal

    def _seconds_left(self, done: int, total: int) -> float | None:
        """Estimate the time left (s) from the mean time per step so far, which includes validation and saving."""
        steps = done - self._start_step
        return (time.monotonic() - self._start) / steps * (total - done) if steps else None

    def _is_due(self) -> bool:
        now = time.monotonic()
        if now - self._last_shown < (BAR_EVERY_S if self._is_live else PLAIN_LINE_EVERY_S):
            return False
        self._last_shown = now
        return True


class _TruncatedText(ProgressColumn):
    """Column of a task's text on one line. It alone is shortened on a narrow terminal: the others do not wrap."""

    def __init__(self) -> None:
        super().__init__(Column(no_wrap=False))

    def render(self, task: Task) -> Text:
        return Text(task.fields["text"], no_wrap=True, overflow="ellipsis")


def metrics_line(metrics: Mapping[str, Tensor], seconds_left: float | None) -> str:
    """Format `loss/char 1.234  WER 45.6 %  CER 12.3 %  812 audio-s/s  0:01:23 left` without values not yet known."""
    return "  ".join([*_scores(metrics), *_speed(metrics), *_time_left(seconds_left)])


def bar_text(metrics: Mapping[str, Tensor], seconds_left: float | None) -> str:
    """Format the same with the most important first: `0:01:23 left  812 audio-s/s  loss/char 1.234 ...`."""
    return "  ".join([*_time_left(seconds_left), *_speed(metrics), *_scores(metrics)])


def _scores(metrics: Mapping[str, Tensor]) -> list[str]:
    parts = []
    if (loss := metrics.get("train_loss_per_char")) is not None:
        parts.append(f"loss/char {loss:.3f}")
    if (accuracy := metrics.get("train_accuracy")) is not None:
        parts.append(f"loss {metrics['train_loss']:.3f}  accuracy {100 * accuracy:.1f} %")
    for name in ("wer", "cer"):
        if (error_rate := metrics.get(f"val_{name}")) is not None:
            parts.append(f"{name.upper()} {100 * error_rate:.1f} %")
    return parts


def _speed(metrics: Mapping[str, Tensor]) -> list[str]:
    parts = []
    if (speed := metrics.get("audio_s_per_s")) is not None:
        parts.append(f"{speed:,.0f} audio-s/s")
    if (share := metrics.get("throughput/data_wait_share", 0)) > MIN_DATA_WAIT_SHARE:
        parts.append(f"{100 * share:.0f} % waiting for data")
    return parts


def _time_left(seconds_left: float | None) -> list[str]:
    if seconds_left is None:
        return []
    minutes, seconds = divmod(int(seconds_left), 60)
    return [f"{minutes // 60}:{minutes % 60:02}:{seconds:02} left"]
