"""Bar charts as inline SVG, made by hand: a report must open offline, years later, without a script or a font."""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

WIDTH, HEIGHT = 640, 220
LEFT, RIGHT, TOP, BOTTOM = 52, 8, 10, 28  # margins of the plot
CHARACTER_WIDTH = 7  # of a label, about
MAX_LABEL = 10  # characters; the whole name shows where the pointer is over the bar
NUM_BINS = 40
MAX_TAIL = 2.0  # times the 99th percentile; one utterance of an hour must not squeeze all others into one bin


@dataclass(frozen=True)
class Bar:
    """One bar, in units of the axes."""

    start: float
    end: float
    value: float
    title: str  # what the pointer over it shows
    marked: bool = False


def histogram(values: np.ndarray, unit: str, counted: str = "utterances") -> str:
    """How many `values` (not empty, in `unit`) lie in each of some 40 bins of a round width."""
    limit = MAX_TAIL * float(np.quantile(values, 0.99))
    num_beyond = int((values > limit).sum())
    kept = np.minimum(values, limit)
    width = round_step((kept.max() - kept.min()) / NUM_BINS)
    first, last = math.floor(kept.min() / width), math.floor(kept.max() / width)
    counts = np.bincount(np.floor(kept / width).astype(int) - first, minlength=last - first + 1)
    bars = [
        Bar(i * width, (i + 1) * width, count, f"{i * width:g} to {(i + 1) * width:g} {unit}: {count:,} {counted}")
        for i, count in enumerate(counts.tolist(), first)
    ]
    note = (
        f"{num_beyond:,} above {limit:.3g} {unit} drawn there; the highest is {values.max():,.6g}."
        if num_beyond
        else ""
    )
    labels = [(tick, f"{tick:g}") for tick in ticks(first * width, (last + 1) * width, 8)]
    return _svg(bars, labels, f"{counted} by {unit}") + (_note(note) if num_beyond else "")


def bar_chart(names: Sequence[str], values: Sequence[float], unit: str, marked: frozenset[str] = frozenset()) -> str:
    """One bar for each name (not empty), those in `marked` in the colour of an error."""
    bars = [
        Bar(i + 0.1, i + 0.9, value, f"{name}: {value:,.6g} {unit}", name in marked)
        for i, (name, value) in enumerate(zip(names, values, strict=True))
    ]
    return _svg(bars, [(i + 0.5, name) for i, name in enumerate(names)], unit)


def _svg(bars: Sequence[Bar], places: Sequence[tuple[float, str]], title: str) -> str:
    low, high = math.floor(bars[0].start), bars[-1].end
    top = max(bar.value for bar in bars) or 1.0
    plot_width, plot_height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def x(position: float) -> float:
        return LEFT + plot_width * (position - low) / (high - low)

    def y(value: float) -> float:
        return TOP + plot_height * (1 - value / top)

    grid = [
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
        f'<text class="tick" text-anchor="end" x="{LEFT - 6}" y="{y(tick) + 4:.1f}">{tick:,g}</text>'
        for tick in ticks(0, top, 4)
    ]
    rectangles = [
        f'<rect class="{"bar marked" if bar.marked else "bar"}" x="{x(bar.start) + 0.5:.1f}" y="{y(bar.value) - 1:.1f}"'
        f' width="{max(1.0, x(bar.end) - x(bar.start) - 1):.1f}" height="{TOP + plot_height - y(bar.value) + 1:.1f}">'
        f"<title>{html.escape(bar.title)}</title></rect>"
        for bar in bars
        if bar.value > 0
    ]
    is_crowded = max(len(label) for _, label in places) * CHARACTER_WIDTH > plot_width / len(places)
    labels = [_tick_label(x(position), label, is_crowded) for position, label in places]
    height = HEIGHT + (MAX_LABEL * CHARACTER_WIDTH - BOTTOM // 2 if is_crowded else 0)
    opening = f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{html.escape(title)}">'
    return "\n".join([opening, *grid, *rectangles, *labels, "</svg>"])


def _tick_label(x: float, label: str, is_upright: bool) -> str:
    """Text below the axis; upright where the labels would run into each other."""
    label = label if len(label) <= MAX_LABEL else label[: MAX_LABEL - 1] + "\u2026"
    y = HEIGHT - BOTTOM + 18
    place = f'text-anchor="middle" x="{x:.1f}" y="{y}"'
    if is_upright:
        place = f'text-anchor="end" transform="translate({x + 4:.1f} {y - 10}) rotate(-90)"'
    return f'<text class="tick" {place}>{html.escape(label)}</text>'


def _note(text: str) -> str:
    return f'<p class="note">{html.escape(text)}</p>'


def ticks(low: float, high: float, number: int) -> list[float]:
    """Round values within [low, high], about `number` of them."""
    step = round_step((high - low) / number)
    return [round(i * step, 10) for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def round_step(step: float) -> float:
    """The next of 1, 2, 5, 10 ... (times a power of ten) from `step` on."""
    if step <= 0:
        return 1.0
    magnitude = 10.0 ** math.floor(math.log10(step))
    return next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude >= step * (1 - 1e-9))
