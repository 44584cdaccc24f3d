"""Charts with two axes: measured points with their error bars, predictions, and the curves of laws beside them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from w2v_lightning.reporting.drawing import (
    DASHES,
    LINE,
    NUM_STYLES,
    RADIUS,
    WIDTH,
    Axis,
    Drawing,
    legend,
    linked,
    mark,
    text,
    whisker,
)
from w2v_lightning.reporting.units import number

LEFT, RIGHT, HEIGHT, BOTTOM = 52, 16, 220, 40
HEADROOM = 1.06  # above the highest, times it
MIN_TICK_DISTANCE = 24


@dataclass(frozen=True)
class Point:
    """One value; `low` to `high` is its error bar, `title` what the pointer over it shows."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    title: str = ""
    href: str = ""
    is_predicted: bool = False

    @property
    def top(self) -> float:
        return self.y if self.high is None else self.high


@dataclass(frozen=True)
class Curve:
    """A law; those of one name look the same in all series but for their colour."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Series:
    """Points of one shape and colour, and their curves."""

    label: str
    points: Sequence[Point]
    curves: Sequence[Curve] = ()
    is_joined: bool = False


def xy_chart(
    series: Sequence[Series], x_label: str, y_label: str, ideal: Curve | None = None, x_values: Sequence[float] = ()
) -> Drawing:
    """Both axes begin at zero. `ideal` is drawn thin, `x_values` are the places to name on the axis."""
    names = [curve.name for one in series for curve in one.curves]
    dashes = {name: DASHES[1 + i % (len(DASHES) - 1)] for i, name in enumerate(dict.fromkeys(names))}
    head, top = legend([*_entries(series, dashes, ideal)], 4)
    x, y = _axes(series, ideal, top + LINE + 10)
    parts = [head, *_frame(x, y, x_values or x.ticks(6)), *_labels(x_label, y_label, y)]
    if ideal:
        parts.append(f'<path class="curve ideal" stroke-dasharray="{DASHES[5]}" d="{_path(ideal.points, x, y)}"/>')
    for i, one in enumerate(series):
        parts += _drawn(one, i, dashes, x, y)
    return Drawing(y.start + BOTTOM, "\n".join(parts), f"{y_label} by {x_label}")


def _axes(series: Sequence[Series], ideal: Curve | None, top: float) -> tuple[Axis, Axis]:
    curves = [curve for one in series for curve in one.curves]
    rightmost = max([point.x for one in series for point in one.points] + [x for c in curves for x, _ in c.points])
    highest = max(point.top for one in series for point in one.points)
    if ideal:  # far above, it must not flatten the rest
        highest = max(highest, min(2 * highest, max(y for _, y in ideal.points)))
    x = Axis(0, rightmost * 1.03 or 1, LEFT, WIDTH - RIGHT)
    return x, Axis(0, highest * HEADROOM or 1, top + HEIGHT, top)


def _frame(x: Axis, y: Axis, x_values: Sequence[float]) -> Iterator[str]:
    for value in y.ticks(5):
        place = f'y1="{y.at(value):.1f}" y2="{y.at(value):.1f}"'
        yield f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" {place}/>'
        yield text(LEFT - 6, y.at(value) + 4, f"{value:,g}", "tick", "end")
    last = float("inf")
    for value in sorted(x_values, reverse=True):  # the largest is the one to name
        if last - x.at(value) >= MIN_TICK_DISTANCE:
            last = x.at(value)
            yield text(last, y.start + 17, f"{value:,g}", "tick", "middle")


def _labels(x_label: str, y_label: str, y: Axis) -> list[str]:
    return [
        text(8, y.end - 10, y_label, "tick"),
        text(WIDTH - RIGHT, y.start + 34, x_label, "tick", "end"),
    ]


def _entries(series: Sequence[Series], dashes: dict[str, str], ideal: Curve | None) -> Iterator:
    """Of the legend."""
    for i, one in enumerate(series):
        yield (lambda x, y, i=i: mark(x, y, i)), one.label
    if any(point.is_predicted for one in series for point in one.points):
        yield (lambda x, y: mark(x, y, 0, is_predicted=True)), "hollow: predicted"
    for name, dash in [*dashes.items(), *([(ideal.name, DASHES[5])] if ideal else [])]:
        yield (lambda x, y, dash=dash: _key(x, y, dash)), name


def _key(x: float, y: float, dash: str) -> str:
    return f'<path class="curve key" stroke-dasharray="{dash}" d="M{x - 11:.1f} {y:.1f}h24"/>'


def _drawn(series: Series, index: int, dashes: dict[str, str], x: Axis, y: Axis) -> Iterator[str]:
    style = f"s{index % NUM_STYLES}"
    for curve in series.curves:
        yield f'<path class="curve {style}" stroke-dasharray="{dashes[curve.name]}" d="{_path(curve.points, x, y)}"/>'
    if series.is_joined:
        path = _path([(point.x, point.y) for point in series.points], x, y)
        yield f'<path class="curve {style}" stroke-dasharray="{DASHES[index % len(DASHES)]}" d="{path}"/>'
    for point in series.points:
        drawn = mark(x.at(point.x), y.at(point.y), index, point.is_predicted)
        if point.low is not None and y.at(point.low) - y.at(point.top) > RADIUS:  # else the mark hides it
            drawn = whisker([(x.at(point.x), y.at(max(0, v))) for v in (point.low, point.top)], style) + drawn
        yield linked(drawn, point.href, point.title or f"{series.label}: {number(point.y)} at {number(point.x)}")


def _path(points: Sequence[tuple[float, float]], x: Axis, y: Axis) -> str:
    """Through the points; it ends where it leaves the plot at the top."""
    places: list[tuple[float, float]] = []
    for (x0, y0), (x1, y1) in zip([points[0], *points], points, strict=False):
        if y1 > y.high:
            share = (y.high - y0) / (y1 - y0)
            places.append((x0 + share * (x1 - x0), y.high))
            break
        places.append((x1, y1))
    return "M" + "L".join(f"{x.at(a):.1f} {y.at(b):.1f}" for a, b in places)
