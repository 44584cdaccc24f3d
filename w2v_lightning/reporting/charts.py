"""Charts as SVG, drawn by matplotlib: points and curves, bars in rows, histograms and columns.

matplotlib draws in placeholder colours, which become CSS variables (templates/theme.css): one chart is light, dark or
printed. Nothing depends on colour alone: series also differ in marker, parts of bars in hatch. The colours are those of
Okabe and Ito ("Color universal design", 2008), which people with any form of colour blindness can tell apart.
"""

import io
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np

from w2v_lightning.reporting.units import number, printable

if TYPE_CHECKING:  # matplotlib takes a second to import, and most commands draw nothing
    from matplotlib.artist import Artist

TEMPLATES = Path(__file__).with_name("templates")
WIDTH, PLOT, LINE = 500, 230, 17  # pixels: a chart's width, the height of a plot with two axes, a line of text
CHARACTER = 7.2  # pixels; width of a character in the font that matplotlib measures, one of the widest
DIRECT = 24  # characters; longer labels of series leave no room for the plot and go to the legend
BAR, ROW = 15, 28  # pixels; height of a bar, and of the name above bars with its distance
NUM_BINS = 40
MAX_TAIL = 2.0  # multiple of the 99th percentile; one recording of an hour must not squeeze all others into one bin
MAX_NAME = 10  # characters of a name below a column

INK, SOFT, CARD, BAD = "#000001", "#000002", "#000004", "#000005"
SERIES = tuple(f"#00001{i}" for i in range(1, 7))
VARIABLES = dict(zip((INK, SOFT, "#000003", CARD, BAD), ("ink", "soft", "line", "card", "bad"), strict=True))
VARIABLES |= {colour: f"series-{i}" for i, colour in enumerate(SERIES, 1)}
MARKERS = ("o", "s", "^", "D", "v", "P", "X")  # one more than colours: 42 series differ in colour or marker
HATCHES = ("", "////", "\\\\\\\\", "---", "xxx", "|||")
DASHES = ((0, (5, 2)), (0, (5, 2, 1, 2)), (0, (2, 2)), (0, (8, 2, 1, 2, 1, 2)))
PLAIN: dict[str, Any] = {"facecolor": CARD, "edgecolor": "none", "pad": 0}  # hides lines behind text
IDEAL: dict[str, Any] = {"color": SOFT, "ls": (0, (1, 2)), "lw": 1.4}

SVG = "http://www.w3.org/2000/svg"
XLINK = "{http://www.w3.org/1999/xlink}href"


@dataclass(frozen=True)
class Chart:
    """Drawing; `svg` is an `<svg>` element for a page that has the variables of the theme."""

    svg: str

    @property
    def standalone(self) -> str:
        """Content of an SVG file, with the variables of the theme."""
        theme = (TEMPLATES / "theme.css").read_text(encoding="utf-8")
        return self.svg.replace(">", f' xmlns="{SVG}"><style>{theme}</style>', 1)


@dataclass(frozen=True)
class Point:
    """Value with its error bar from `low` to `high`; `title` is its tooltip, `href` its link."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    title: str = ""
    href: str = ""
    is_predicted: bool = False


@dataclass(frozen=True)
class Curve:
    """Line through points; curves of one name have the same dashes in all series."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Series:
    """Points of one marker and colour, and the curves fitted to them."""

    label: str
    points: Sequence[Point]
    curves: Sequence[Curve] = ()
    is_joined: bool = False


@dataclass(frozen=True)
class Bar:
    """Bar of stacked parts (kind, length) with a label after it, and an error bar from `low` to `high`."""

    parts: Sequence[tuple[int, float]]
    label: str
    low: float | None = None
    high: float | None = None
    title: str = ""
    href: str = ""

    @property
    def ends(self) -> list[float]:
        """Values that must be within the axis."""
        return [0.0, sum(length for _, length in self.parts), self.low or 0.0, self.high or 0.0]


def xy_chart(
    series: Sequence[Series], x_label: str, y_label: str, ideal: Curve | None = None, x_values: Sequence[float] = ()
) -> Chart:
    """Draw points with error bars, and the curves of their series; both axes begin at zero.

    Args:
        series: at least one, each with at least one point.
        x_label: name of the x axis.
        y_label: name of the y axis.
        ideal: line to compare with, dotted and thin.
        x_values: places to name on the x axis; default: round numbers.
    """
    points = [point for each in series for point in each.points]
    curves = [curve for each in series for curve in each.curves]
    dashes = {name: DASHES[i % len(DASHES)] for i, name in enumerate(dict.fromkeys(curve.name for curve in curves))}
    right = 1.03 * max([point.x for point in points] + [x for curve in curves for x, _ in curve.points]) or 1
    top = max(point.y if point.high is None else point.high for point in points)
    if ideal:  # an ideal far above must not flatten the rest
        top = max(top, min(2 * top, max(y for _, y in ideal.points)))
    top = 1.06 * top or 1
    with _canvas() as canvas:
        axes = canvas.axes
        axes.set(xlim=(0, right), ylim=(0, top), xlabel=x_label, title=y_label)
        if x_values:
            axes.set_xticks(_apart(x_values, right / 20))
        is_direct = max(len(each.label) for each in series) <= DIRECT and len(series) * LINE <= PLOT
        for i, each in enumerate(series):
            _draw_series(canvas, each, _look(i), dashes)
            if not is_direct:
                canvas.entry(each.label, ls="", **_look(i))
        if is_direct:
            _label_ends(canvas, series, top)
        if any(point.is_predicted for point in points):
            canvas.entry("hollow: predicted", color=INK, marker="o", mfc=CARD, ls="")
        for name, dash in dashes.items():
            canvas.entry(name, color=INK, ls=dash)
        if ideal:
            axes.plot(*zip(*ideal.points, strict=True), **IDEAL)
            canvas.entry(ideal.name, **IDEAL)
        return canvas.chart(PLOT + 50, f"{y_label} by {x_label}: {', '.join(each.label for each in series)}")


def bar_rows(rows: Sequence[tuple[str, Sequence[Bar]]], kinds: Sequence[str], unit: str) -> Chart:
    """Draw horizontal bars below the name of each row; a row without bars is a heading.

    Args:
        rows: name and bars of each; at least one has a bar.
        kinds: names of the kinds of the bars' parts, for the legend; a single kind has none.
        unit: name of the axis.
    """
    bars = [bar for _, bars_of_row in rows for bar in bars_of_row]
    used = {kind for bar in bars for kind, length in bar.parts if length}
    ends = [end for bar in bars for end in bar.ends]
    left, reach = min(ends), max(ends) - min(ends) or 1
    behind = max(len(bar.label) for bar in bars) * CHARACTER + 10  # pixels
    right = max(ends) + reach * behind / max(WIDTH - 16 - behind, 40)
    height = sum(ROW + len(bars_of_row) * (BAR + 3) for _, bars_of_row in rows)
    with _canvas() as canvas:
        axes = canvas.axes
        axes.set(xlim=(left - 0.02 * reach * (left < 0), right), ylim=(height, 0), xlabel=unit, yticks=[])
        axes.grid(axis="x", visible=True)
        if left < 0:
            axes.axvline(0, color=SOFT, lw=1)
        for kind, name in enumerate(kinds):
            if kind in used and len(kinds) > 1:
                canvas.entries.append((axes.fill_between([], [], **_fill(kind)), name))
        y = 0
        for name, bars_of_row in rows:
            style: dict[str, Any] = {"weight": "normal" if bars_of_row else "bold", "in_layout": False, "bbox": PLAIN}
            text = _cut(name, int((WIDTH - 16) / CHARACTER))
            axes.text(0, y + ROW - 6, text, transform=axes.get_yaxis_transform(), **style)
            y += ROW
            for bar in bars_of_row:
                _draw_bar(canvas, bar, y + BAR / 2)
                y += BAR + 3
        return canvas.chart(height + 46, f"{unit}: {', '.join(name for name, _ in rows)}")


def histogram(values: np.ndarray, unit: str, counted: str = "utterances") -> tuple[Chart, str]:
    """Draw how many `values` (not empty, in `unit`) are in each of some 40 bins of a round width.

    Returns:
        The chart, and a note on values so far above the others that the last bin has them ("" without such values).
    """
    limit = MAX_TAIL * float(np.quantile(values, 0.99))
    kept = np.minimum(values, limit)
    low, high = float(kept.min()), float(kept.max())
    with _canvas() as canvas:
        from matplotlib.ticker import MaxNLocator

        edges = MaxNLocator(NUM_BINS, steps=[1, 2, 5, 10]).tick_values(low, high if high > low else low + 1)
        # The outer bins are open: the locator may place its outer edges within rounding error of the extremes.
        counts, _ = np.histogram(kept, [-np.inf, *edges[1:-1], np.inf])
        canvas.axes.set(xlabel=unit, title=counted)
        for left, right, count in zip(edges, edges[1:], counts.tolist(), strict=False):
            if count:
                title = f"{left:g} to {right:g} {unit}: {count:,} {counted}"
                canvas.column((left + right) / 2, count, title, right - left)
        chart = canvas.chart(PLOT, f"{counted} by {unit}")
    beyond = f"{(values > limit).sum():,} above {limit:.3g} {unit} drawn there; the highest is {values.max():,.6g}."
    return chart, beyond if values.max() > limit else ""


def columns(names: Sequence[str], values: Sequence[float], unit: str, marked: frozenset[str] = frozenset()) -> Chart:
    """Draw one column for each name (not empty); names in `marked` have the colour of an error and are bold."""
    is_crowded = max(map(len, names)) * CHARACTER > 400 / len(names)
    with _canvas() as canvas:
        labels = [_cut(name, MAX_NAME) for name in names]
        canvas.axes.set(title=unit)
        canvas.axes.set_xticks(range(len(names)), labels, rotation=90 if is_crowded else 0)
        for i, (name, value) in enumerate(zip(names, values, strict=True)):
            is_marked = name in marked
            canvas.column(i, value, f"{name}: {value:,.6g} {unit}", 0.85, BAD if is_marked else SERIES[0])
            if is_marked:
                canvas.axes.get_xticklabels()[i].set(color=BAD, weight="bold")
        return canvas.chart(PLOT + (MAX_NAME * 6 if is_crowded else 0), f"{unit}: {', '.join(names)}")


class _Canvas:
    """Figure with one plot, a legend, and parts with tooltips and links."""

    def __init__(self) -> None:
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator

        self.figure = Figure(dpi=72, layout="constrained")
        self.axes = self.figure.add_subplot()
        for axis in (self.axes.xaxis, self.axes.yaxis):
            axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
            axis.set_major_formatter(lambda value, _: f"{value:,g}")
        self.entries: list[tuple[Artist, str]] = []  # of the legend
        self._notes: dict[str, tuple[str, str]] = {}

    def entry(self, label: str, **style: Any) -> None:
        """Add a line or a marker to the legend."""
        self.entries.append((self.axes.plot([], [], **style)[0], label))

    def note(self, artist: "Artist", title: str, href: str = "") -> None:
        """Give a part a tooltip and a link."""
        name = f"note-{len(self._notes)}"
        artist.set_gid(name)
        self._notes[name] = printable(title), href

    def column(self, x: float, height: float, title: str, width: float, colour: str = SERIES[0]) -> None:
        """Draw a column with a tooltip; its edge shows even a small value."""
        self.note(self.axes.bar(x, height, 0.94 * width, color=colour, edgecolor=colour)[0], title)

    def chart(self, height: float, label: str) -> Chart:
        """Return what was drawn, `height` pixels high without the legend; `label` describes it in words."""
        from matplotlib import rc_context
        from matplotlib.text import Text

        if self.entries:
            handles, labels = zip(*self.entries, strict=True)
            labels = tuple(re.sub("^_", " _", label) for label in labels)  # matplotlib hides labels with "_"
            num_columns = max(1, min(len(labels), int(WIDTH / (CHARACTER * max(map(len, labels)) + 42))))
            self.figure.legend(handles, labels, loc="outside upper left", ncols=num_columns)
            height += LINE * math.ceil(len(labels) / num_columns)
        for text in self.figure.findobj(Text):
            text.set_text(printable(text.get_text()))
        self.figure.set_size_inches(WIDTH / 72, height / 72)
        drawn = io.StringIO()
        # Ids are hashes of the salt and of what they name: the same chart has the same ids, another one has others.
        with rc_context({"svg.hashsalt": f"{label}{self._notes}"}):
            self.figure.savefig(drawn, format="svg", metadata={"Date": None})
        return Chart(_cleaned(drawn.getvalue(), printable(label), self._notes))


@contextmanager
def _canvas() -> Iterator[_Canvas]:
    """Draw in the style of all charts, whatever the user's own matplotlibrc says."""
    from matplotlib import style

    with style.context(["default", TEMPLATES / "charts.mplstyle"]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a missing glyph is in one of the reader's fonts
        yield _Canvas()


def _cleaned(drawn: str, label: str, notes: dict[str, tuple[str, str]]) -> str:
    """Reduce matplotlib's file to an element with tooltips, links, variables for colours and the reader's font."""
    root = ElementTree.fromstring(drawn)  # noqa: S314 - matplotlib wrote it
    for parent in [root, *root.iter(f"{{{SVG}}}defs")]:
        for child in [child for child in parent if child.tag.endswith(("metadata", "style"))]:
            parent.remove(child)
    for group in root.iter(f"{{{SVG}}}g"):
        title, href = notes.get(group.attrib.pop("id", ""), ("", ""))
        if href:
            link = ElementTree.Element("a", href=href)
            link.extend(group)
            group[:] = [link]
        if title:
            tooltip = ElementTree.Element("title")
            tooltip.text = title
            group.insert(0, tooltip)
    for element in root.iter():
        element.tag, element.tail = element.tag.removeprefix(f"{{{SVG}}}"), None
        if XLINK in element.attrib:
            element.set("href", element.attrib.pop(XLINK))
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "group", "aria-label": label}
    svg = re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, sans-serif", ElementTree.tostring(root, encoding="unicode"))
    return re.sub(r"(?<=: |=\")#0000\d\d\b", lambda match: f"var(--{VARIABLES[match[0]]})", svg)


def _draw_series(canvas: _Canvas, series: Series, look: dict[str, Any], dashes: dict[str, Any]) -> None:
    axes, colour = canvas.axes, look["color"]
    for curve in series.curves:
        axes.plot(*zip(*curve.points, strict=True), color=colour, ls=dashes[curve.name])
    if series.is_joined:
        axes.plot([point.x for point in series.points], [point.y for point in series.points], color=colour, lw=1.2)
    for point in series.points:
        if point.low is not None and point.high is not None:
            ends = [max(0, point.low), point.high]
            axes.plot([point.x] * 2, ends, color=colour, lw=1.4, marker="_", ms=9, mew=1.4, clip_on=False)
        hollow = {"mfc": CARD, "ms": 10} if point.is_predicted else {}  # a measured mark fits into it
        (mark,) = axes.plot(point.x, point.y, **look | hollow, ls="", clip_on=False, zorder=3)
        title = point.title or f"{series.label}: {number(point.y)} at {number(point.x)}"
        canvas.note(mark, title, point.href)


def _label_ends(canvas: _Canvas, series: Sequence[Series], top: float) -> None:
    """Write the label of each series to the right of its last point, and move labels apart that would overlap."""
    order = sorted(range(len(series)), key=lambda i: series[i].points[-1].y)
    steps = top * LINE / PLOT * np.arange(len(series))
    y = np.maximum.accumulate(np.array([series[i].points[-1].y for i in order]) - steps) + steps
    y = np.minimum(y, top - steps[::-1])  # back into the plot
    where: dict[str, Any] = {"transform": canvas.axes.get_yaxis_transform(), "clip_on": False}
    for i, place in zip(order, y.tolist(), strict=True):
        canvas.axes.plot(1.06, place, **_look(i), **where)
        canvas.axes.text(1.1, place, series[i].label, va="center_baseline", **where)


def _look(index: int) -> dict[str, Any]:
    """Colour and marker of a series."""
    return {"color": SERIES[index % len(SERIES)], "marker": MARKERS[index % len(MARKERS)]}


def _fill(kind: int) -> dict[str, Any]:
    """Colour and hatch of a part of a bar."""
    hatch, colour = HATCHES[kind % len(HATCHES)], SERIES[kind % len(SERIES)]
    return {"facecolor": colour, "edgecolor": CARD, "hatch": hatch, "linewidth": 0.5}


def _draw_bar(canvas: _Canvas, bar: Bar, y: float) -> None:
    start = 0.0
    for kind, length in bar.parts:
        if length:
            canvas.note(canvas.axes.barh(y, length, BAR, start, **_fill(kind))[0], bar.title or bar.label, bar.href)
        start += length
    if bar.low is not None and bar.high is not None:
        canvas.axes.plot([bar.low, bar.high], [y, y], color=INK, lw=1.4, marker="|", ms=9, mew=1.4)
    offset: dict[str, Any] = {"xytext": (6, 0), "textcoords": "offset points", "in_layout": False}
    canvas.axes.annotate(bar.label, (max(bar.ends), y), va="center_baseline", **offset)


def _apart(values: Sequence[float], distance: float) -> list[float]:
    """Return the values that can be named on an axis; of two close ones the larger."""
    kept: list[float] = []
    for value in sorted(values, reverse=True):
        if not kept or kept[-1] - value >= distance:
            kept.append(value)
    return kept


def _cut(text: str, most: int) -> str:
    text = printable(text)
    return text if len(text) <= most else f"{text[: most - 1]}\N{HORIZONTAL ELLIPSIS}"
