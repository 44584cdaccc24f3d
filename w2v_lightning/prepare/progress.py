"""Progress display: utterances, bytes per second and time left, as a bar on a terminal, as lines elsewhere."""

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

LINE_EVERY_S = 5.0
BAR_EVERY_S = 0.1


class Progress:
    """Context manager that shows the progress; call `advance` once per utterance.

    Args:
        total_bytes: size of all audio, if it is known.
        total_utterances: number of all utterances, if it is known; either is enough to tell the time left.
    """

    def __init__(self, total_bytes: int | None, total_utterances: int | None) -> None:
        self._total_bytes = total_bytes
        self._total_utterances = total_utterances
        self._utterances = 0
        self._bytes = 0
        self._bar: Bar | None = None
        self._task: TaskID
        self._every_s = BAR_EVERY_S if sys.stderr.isatty() else LINE_EVERY_S
        self._start = self._last_shown = time.monotonic()

    def __enter__(self) -> "Progress":
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                BarColumn(20), TextColumn("{task.description}"), console=Console(stderr=True), transient=True
            )
            self._task = self._bar.add_task(self.line(0.0), total=1.0 if self._fraction() is not None else None)
            self._bar.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self._bar:
            self._bar.stop()

    def advance(self, num_bytes: int) -> None:
        """Count one more utterance, whose audio has `num_bytes` in its source."""
        self._utterances += 1
        self._bytes += num_bytes
        now = time.monotonic()
        if now - self._last_shown >= self._every_s:
            self._last_shown = now
            self._show(self.line(now - self._start))

    def line(self, elapsed_s: float) -> str:
        """Return the text to show, such as `1,234 utterances  56.7 MB/s  0:01:23 left`."""
        parts = [f"{self._utterances:,} utterances"]
        if self._bytes and elapsed_s:
            parts.append(f"{self._bytes / 1e6 / elapsed_s:,.1f} MB/s")
        if fraction := self._fraction():
            minutes, seconds = divmod(round(elapsed_s * (1 - fraction) / fraction), 60)
            parts.append(f"{minutes // 60}:{minutes % 60:02}:{seconds:02} left")
        return "  ".join(parts)

    def _fraction(self) -> float | None:
        done, total = self._utterances, self._total_utterances
        if self._total_bytes is not None:
            done, total = self._bytes, self._total_bytes
        return min(done / total, 1.0) if total else None

    def _show(self, line: str) -> None:
        if self._bar:
            self._bar.update(self._task, completed=self._fraction(), description=line)
        else:
            print(line, file=sys.stderr, flush=True)
