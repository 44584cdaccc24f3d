"""Charts of one row for each configuration: its name above, bars or marks below, so that long names fit anywhere."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from w2v_lightning.reporting.drawing import (
    CHARACTER_WIDTH,
    LINE,
    WIDTH,
    Axis,
    Drawing,
    bar,
    cut,
    legend,
    linked,
    mark,
    text,
    whisker,
)

LEFT, RIGHT, BOTTOM = 8, 8, 40
BAR, GAP, ROW_GAP = 15, 3, 10


@dataclass(frozen=True)
class Bar:
    """Parts in a row, (kind, length), with an error bar at their end and a label behind it."""

    parts: Sequence[tuple[int, float]]
    label: str
    low: float | None = None
    high: float | None = None
    href: str = ""
    title: str = ""

    @property
    def end(self) -> float:
        return max(sum(length for _, length in self.parts), self.high or 0)


@dataclass(frozen=True)
class Mark:
    """A place on a row's line; of a prediction hollow, with the interval it claims."""

    kind: int
    value: float
    low: float | None = None
    high: float | None = None
    is_predicted: bool = False
    href: str = ""
    title: str = ""


def bar_rows(rows: Sequence[tuple[str, Sequence[Bar]]], kinds: Sequence[str], unit: str) -> Drawing:
    """Bars below each name, from zero. `kinds` names what their parts are; a single one needs no legend."""
    bars = [one for _, its_bars in rows for one in its_bars]
    used = {kind for one in bars for kind, length in one.parts if length > 0}
    entries = [(_swatch(i), kind) for i, kind in enumerate(kinds) if i in used] if len(kinds) > 1 else []
    head, y = legend(entries, 4)
    behind = max(len(one.label) for one in bars) * CHARACTER_WIDTH + 10
    x = Axis(0, max(one.end for one in bars) or 1, LEFT, WIDTH - RIGHT - behind)
    body, bottom = [], y
    for name, its_bars in rows:
        body.append(text(LEFT, bottom + ROW_GAP + 12, cut(name, WIDTH - LEFT - RIGHT)))
        bottom += ROW_GAP + LINE
        for one in its_bars:
            body.append(_drawn_bar(one, x, bottom))
            bottom += BAR + GAP
    return Drawing(bottom + BOTTOM, "\n".join([head, *_scale(x, y + 4, bottom, unit), *body]), unit)


def mark_rows(rows: Sequence[tuple[str, Sequence[Mark], str]], kinds: Sequence[tuple[str, bool]], unit: str) -> Drawing:
    """A line below each name with marks on it, a note at the end of the name; on a logarithmic axis.

    Args:
        rows: name, marks, note.
        kinds: what the marks are, and whether these are predicted.
    """
    head, y = legend([(_symbol(i, is_predicted), kind) for i, (kind, is_predicted) in enumerate(kinds)], 4)
    ends = [value for _, marks, _ in rows for m in marks for value in (m.value, m.low, m.high) if value]
    x = Axis(min(ends) / 1.15, max(ends) * 1.15, LEFT, WIDTH - RIGHT, is_log=True)
    body, bottom = [], y
    for name, marks, note in rows:
        baseline = bottom + ROW_GAP + 12
        shown = cut(name, WIDTH - LEFT - RIGHT - CHARACTER_WIDTH * (len(note) + 2))
        body += [text(LEFT, baseline, shown), text(WIDTH - RIGHT, baseline, note, "label strong", "end")]
        bottom += ROW_GAP + LINE + BAR
        body += [_drawn_mark(m, x, bottom - BAR / 2) for m in marks]
    return Drawing(bottom + BOTTOM, "\n".join([head, *_scale(x, y + 4, bottom, unit), *body]), unit)


def _swatch(kind: int):
    return lambda x, y: bar(x - 11, y - 6, 24, 12, kind)


def _symbol(kind: int, is_predicted: bool):
    return lambda x, y: mark(x, y, kind, is_predicted)


def _scale(x: Axis, top: float, bottom: float, unit: str) -> Iterator[str]:
    for value in x.ticks(5):
        place = x.at(value)
        yield f'<line class="grid" x1="{place:.1f}" x2="{place:.1f}" y1="{top:.1f}" y2="{bottom + 4:.1f}"/>'
        anchor = "middle" if place - LEFT > 10 else "start"
        yield text(place, bottom + 18, f"{value:,g}", "tick", anchor)
    yield text(WIDTH - RIGHT, bottom + 35, unit, "tick", "end")


def _drawn_bar(one: Bar, x: Axis, y: float) -> str:
    drawn, start = "", 0.0
    for kind, length in one.parts:
        drawn += bar(x.at(start), y, x.at(start + length) - x.at(start), BAR, kind) if length > 0 else ""
        start += length
    if one.low is not None and one.high is not None and x.at(one.high) - x.at(one.low) > 3:
        drawn += whisker([(x.at(value), y + BAR / 2) for value in (one.low, one.high)], "over")
    drawn += text(x.at(one.end) + 7, y + BAR - 3, one.label)
    return linked(drawn, one.href, one.title)


def _drawn_mark(one: Mark, x: Axis, y: float) -> str:
    drawn = mark(x.at(one.value), y, one.kind, one.is_predicted)
    if one.low and one.high:
        drawn = whisker([(x.at(value), y) for value in (one.low, one.high)], f"s{one.kind}") + drawn
    return linked(drawn, one.href, one.title)
