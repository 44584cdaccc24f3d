"""Chart of docs/performance.md, from the results that `bench step --json` and `bench transcribe --json` wrote.

    python docs/performance_chart.py base.json large.json transcribe.json --output docs/performance.svg

For each file the audio-seconds per second of each side: the bar is the median, the line the range.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from w2v_lightning.command_line import parse
from w2v_lightning.errors import InputError
from w2v_lightning.reporting.charts import Bar, bar_rows

KINDS = ("w2v_lightning", "transformers")
UNIT = "audio-seconds per second (median; the line is the range)"


@dataclass(frozen=True)
class ChartOptions:
    """Draw benchmark results as an SVG file.

    Args:
        reports: JSON files of `bench step` or `bench transcribe`.
        output: SVG file to write.
    """

    reports: list[Path]
    output: Path = Path("docs/performance.svg")


def main(args: Sequence[str]) -> None:
    options = parse(ChartOptions, "chart", args, positional=["reports"])
    rows: list[tuple[str, list[Bar]]] = []
    for path in options.reports:
        report = json.loads(path.read_text(encoding="utf-8"))
        rows += [(title(report), []), *((name, [bar]) for name, bar in bars(report).items())]
    options.output.write_text(bar_rows(rows, KINDS, UNIT).standalone, encoding="utf-8")


def bars(report: dict[str, Any]) -> dict[str, Bar]:
    """Return a bar for each side: of `bench step` the sides measured in turns, of `bench transcribe` all."""
    if "sides" in report:
        sides = [side for side in report["sides"] if side["group"] == "main"]
        speeds = {f"{side['side']}, {side['device_seconds']:g} s": side["audio_s_per_s"] for side in sides}
    else:
        speeds = report["audio_s_per_s"]
    return {
        name: Bar([(kind_of(name), speed["median"])], f"{speed['median']:,.0f}", speed["min"], speed["max"])
        for name, speed in speeds.items()
    }


def kind_of(name: str) -> int:
    """Return the position in KINDS of a side's implementation."""
    return 0 if name.startswith(("ours", "w2v_lightning")) else 1


def title(report: dict[str, Any]) -> str:
    """Return the task, model, precision and device of a report."""
    task = "Training" if "sides" in report else "Transcription"
    return f"{task}: {report['settings']['model']}, {report['settings']['precision']}, {report['device']}"


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except InputError as error:
        sys.exit(f"error: {error}")
