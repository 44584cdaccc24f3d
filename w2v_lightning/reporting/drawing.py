"""What the charts of a report share: axes, marks, legends, numbers. They are SVG made by hand and need nothing else.

Nothing is told by colour alone: series also differ in shape and dash, parts of a bar in pattern. The colours are those
of Okabe and Ito ("Color universal design", 2008), which people with any form of colour blindness tell apart.
"""

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from w2v_lightning.reporting.bar_charts import ticks
from w2v_lightning.reporting.units import printable

WIDTH = 410  # as wide as a telephone and as half a desk's screen, so that text keeps about its size
CHARACTER_WIDTH = 6.9  # of a label, about
LINE = 18  # height of one line of text
NUM_STYLES = 6
DASHES = ("", "7 4", "2 4", "10 3 2 3", "4 4", "1 3")
RADIUS = 5.0

# Paths around (0, 0), filled where measured, hollow where predicted. One more than there are colours: beyond these, a
# series has another one's colour, and never its shape as well.
SHAPES = (
    "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0 -10 0z",
    "M-4.5 -4.5h9v9h-9z",
    "M0 -6L5.5 4.5h-11z",
    "M0 -6.5L5.5 0L0 6.5L-5.5 0z",
    "M0 6L5.5 -4.5h-11z",
    "M-6 -2h4v-4h4v4h4v4h-4v4h-4v-4h-4z",
    "M-6 -3.5L-3.5 -6L0 -2.5L3.5 -6L6 -3.5L2.5 0L6 3.5L3.5 6L0 2.5L-3.5 6L-6 3.5L-2.5 0z",
)

# Laid over a bar's colour, in the colour of what is behind it; the first kind stays plain.
PATTERNS = (
    "",
    '<path class="cut" d="M-2 2L2 -2M0 8L8 0M6 10L10 6"/>',
    '<circle class="cut dot" cx="2.2" cy="2.2" r="1.4"/><circle class="cut dot" cx="6.2" cy="6.2" r="1.4"/>',
    '<path class="cut" d="M0 2H8M0 6H8"/>',
    '<path class="cut" d="M0 0L8 8M8 0L0 8"/>',
    '<path class="cut" d="M2 0V8M6 0V8"/>',
)

STYLE = """
.tick, .label { font: 13px system-ui, sans-serif; fill: var(--ink); } .tick { font-size: 12px; fill: var(--soft); }
.strong { font-weight: 600; } .grid { stroke: var(--line); }
.s0 { --c: var(--c0); } .s1 { --c: var(--c1); } .s2 { --c: var(--c2); }
.s3 { --c: var(--c3); } .s4 { --c: var(--c4); } .s5 { --c: var(--c5); }
.curve { fill: none; stroke: var(--c); stroke-width: 1.8; } .curve.key { stroke: var(--ink); }
.curve.ideal { stroke: var(--soft); stroke-width: 1.4; }
.mark { fill: var(--c); stroke: var(--c); stroke-width: 1.8; } .mark.predicted { fill: var(--card); }
.whisker { fill: none; stroke: var(--c); stroke-width: 1.6; } .over { stroke: var(--ink); }
.bar { fill: var(--c); stroke: var(--card); } .cut { fill: none; stroke: var(--card); stroke-width: 1.6; }
.cut.dot { fill: var(--card); stroke: none; } svg a:hover { opacity: .7; } svg a:focus-visible { outline: 2px solid; }
"""
LIGHT = """--ink: #1c2430; --soft: #566171; --line: #dde2e8; --page: #f6f7f9; --card: #fff; --link: #1a5fb4;
  --good: #1f7a4d; --bad: #b3261e;
  --c0: #0072b2; --c1: #d55e00; --c2: #009e73; --c3: #b3548f; --c4: #b97f00; --c5: #3f93c7;"""
DARK = """--ink: #e6e9ee; --soft: #a3aebc; --line: #303846; --page: #12161d; --card: #1a2029; --link: #8ab8f0;
  --good: #6fd0a0; --bad: #ff8a80;
  --c0: #56a8e0; --c1: #f08a4b; --c2: #33c296; --c3: #e39ac4; --c4: #e6b13c; --c5: #9adcf7;"""
# What is printed is on white paper.
THEME = f"""
:root {{ color-scheme: light dark; {LIGHT} }}
@media screen and (prefers-color-scheme: dark) {{ :root {{ {DARK} }} }}
"""


@dataclass(frozen=True)
class Drawing:
    """A chart, WIDTH wide; `label` is for those who cannot see it."""

    height: float
    body: str
    label: str

    @property
    def inline(self) -> str:
        """For a page that has THEME, STYLE and `patterns()` once."""
        return f"{self._opening()}>\n{self.body}\n</svg>"

    @property
    def standalone(self) -> str:
        """A file of its own."""
        style = f"<style>{THEME}{STYLE}</style>"
        page = f'<rect width="{WIDTH}" height="{self.height:g}" rx="8" style="fill: var(--card)"/>'
        return (
            f'{self._opening()} xmlns="http://www.w3.org/2000/svg">\n{style}{patterns()}\n{page}\n{self.body}\n</svg>'
        )

    def _opening(self) -> str:
        return f'<svg viewBox="0 0 {WIDTH} {self.height:g}" role="group" aria-label="{shown(self.label)}"'


@dataclass(frozen=True)
class Axis:
    """From values to places in the drawing."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def at(self, value: float) -> float:
        low, high, value = (math.log(v) if self.is_log else v for v in (self.low, self.high, value))
        return self.start + (self.end - self.start) * (value - low) / (high - low)

    def ticks(self, number: int) -> list[float]:
        """Round values within it, about so many."""
        if not self.is_log or self.high < 10 * self.low:
            return ticks(self.low, self.high, number)
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        steps = (1,) if len(decades) > number else (1, 3)
        return [v for v in (step * 10.0**d for d in decades for step in steps) if self.low <= v <= self.high]


def shown(text: str) -> str:
    """Names and reasons come from files: nothing in them may become markup."""
    return html.escape(printable(text))


def text(x: float, y: float, content: str, style: str = "label", anchor: str = "start") -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{shown(content)}</text>'


def cut(content: str, width: float) -> str:
    """As much of it as there is room for."""
    most = max(1, int(width / CHARACTER_WIDTH))
    return content if len(content) <= most else content[: most - 1] + "\u2026"


def linked(content: str, href: str, title: str = "") -> str:
    """`content` with what the pointer over it shows, leading to `href` where there is one."""
    inner = f"<g>{content}<title>{shown(title)}</title></g>" if title else content
    return f'<a href="{shown(href)}">{inner}</a>' if href else inner


def mark(x: float, y: float, style: int, is_predicted: bool = False) -> str:
    classes = f"mark s{style % NUM_STYLES}{' predicted' if is_predicted else ''}"
    place = f"translate({x:.1f} {y:.1f}){' scale(1.4)' if is_predicted else ''}"  # a measured mark fits into it
    return f'<path class="{classes}" transform="{place}" d="{SHAPES[style % len(SHAPES)]}"/>'


def whisker(ends: Sequence[tuple[float, float]], style: str) -> str:
    """A line between two places, with a short bar across each end."""
    (x1, y1), (x2, y2) = ends
    across = "v8m0 -4" if y1 == y2 else "h8m-4 0"
    back = "m0 -4" if y1 == y2 else "m-4 0"
    return f'<path class="whisker {style}" d="M{x1:.1f} {y1:.1f}{back}{across}L{x2:.1f} {y2:.1f}{back}{across}"/>'


def bar(x: float, y: float, width: float, height: float, kind: int) -> str:
    """A part of a bar, in the colour and pattern of its kind."""
    place = f'x="{x:.1f}" y="{y:.1f}" width="{max(width, 0.5):.1f}" height="{height:g}"'
    plain = f'<rect class="bar s{kind % NUM_STYLES}" {place}/>'
    pattern = kind % len(PATTERNS)
    return plain + (f'<rect fill="url(#pattern-{pattern})" {place}/>' if pattern else "")


def patterns() -> str:
    """What `bar` lays over its colours; once in a document."""
    size = 'width="8" height="8" patternUnits="userSpaceOnUse"'
    each = "".join(f'<pattern id="pattern-{i}" {size}>{p}</pattern>' for i, p in enumerate(PATTERNS) if p)
    return f"<defs>{each}</defs>"


def legend(entries: Sequence[tuple[Callable[[float, float], str], str]], top: float) -> tuple[str, float]:
    """Symbols, each drawn around a place, with their labels, in as many lines as they need; and where it ends."""
    parts, x, y = [], 8.0, top + LINE / 2
    for draw, label in entries:
        label = cut(label, WIDTH - 50)
        width = 32 + CHARACTER_WIDTH * len(label) + 10
        if x > 8 and x + width > WIDTH:
            x, y = 8.0, y + LINE
        parts.append(draw(x + 11, y) + text(x + 28, y + 4.5, label))
        x += width
    return "\n".join(parts), y + LINE / 2 if entries else top
