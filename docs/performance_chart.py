"""Draws the bars of docs/performance.md from what `bench step --json` and `bench transcribe --json` wrote.

    python docs/performance_chart.py base.json large.json transcribe.json --output docs/performance.svg

A panel for each file: audio-seconds per second of each side, median and range. Needs the extra `plots`.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes

OURS, OTHERS = "#2a6f97", "#b8b8b8"
BAR_INCHES, PANEL_INCHES, WIDTH_INCHES = 0.34, 0.7, 8.0


@dataclass(frozen=True)
class Bar:
    """One side's audio-s/s."""

    name: str
    median: float
    least: float
    most: float

    @property
    def is_ours(self) -> bool:
        return self.name.startswith(("ours", "w2v_lightning"))


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reports", type=Path, nargs="+", metavar="REPORT.json")
    parser.add_argument("--output", type=Path, default=Path("docs/performance.svg"), help="an SVG or PNG file")
    options = parser.parse_args(args)
    draw([json.loads(path.read_text(encoding="utf-8")) for path in options.reports], options.output)


def draw(reports: list[dict], output: Path) -> None:
    heights = [PANEL_INCHES + BAR_INCHES * len(bars(report)) for report in reports]
    figure, panels = pyplot.subplots(
        len(reports), figsize=(WIDTH_INCHES, sum(heights)), height_ratios=heights, squeeze=False, layout="constrained"
    )
    for panel, report in zip(panels[:, 0], reports, strict=True):
        draw_panel(panel, title(report), bars(report))
    panels[-1, 0].set_xlabel("audio-seconds per second (median; the line is the range)")
    figure.savefig(output)
    pyplot.close(figure)


def draw_panel(panel: Axes, name: str, sides: list[Bar]) -> None:
    medians = [bar.median for bar in sides]
    ranges = [[bar.median - bar.least for bar in sides], [bar.most - bar.median for bar in sides]]
    colours = [OURS if bar.is_ours else OTHERS for bar in sides]
    drawn = panel.barh([bar.name for bar in sides], medians, xerr=ranges, color=colours, ecolor="#404040")
    panel.bar_label(drawn, [f"{median:,.0f}" for median in medians], padding=6)
    panel.set_title(name, loc="left", fontsize="medium")
    panel.set_xlim(0, 1.15 * max(bar.most for bar in sides))
    panel.invert_yaxis()
    panel.spines[["top", "right"]].set_visible(False)


def bars(report: dict) -> list[Bar]:
    """Of `bench step`, the sides that all took turns with each other; of `bench transcribe`, all."""
    if "sides" in report:
        sides = [side for side in report["sides"] if side["group"] == "main"]
        speeds = {f"{side['side']}, {side['device_seconds']:g} s": side["audio_s_per_s"] for side in sides}
    else:
        speeds = report["audio_s_per_s"]
    return [Bar(name, speed["median"], speed["min"], speed["max"]) for name, speed in speeds.items()]


def title(report: dict) -> str:
    what = "Training" if "sides" in report else "Transcription"
    return f"{what}: {report['settings']['model']}, {report['settings']['precision']}, {report['device']}"


if __name__ == "__main__":
    main()
