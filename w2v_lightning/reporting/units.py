"""Numbers as text: three significant digits, and a unit of fitting size."""

import math
from typing import Protocol

UNKNOWN = "not measured"
TIME_UNITS = (("hours", 3600.0), ("minutes", 60.0), ("seconds", 1.0))
PREFIXES = {-3: "n", -2: "µ", -1: "m", 0: "", 1: "k", 2: "M", 3: "G", 4: "T"}
PLAIN = ("", "audio-s/s")  # units without a prefix
MOST_DIGITS = 4  # whatever the error


class Spread(Protocol):
    """Mean, and half of its error bar if it was measured more than once."""

    @property
    def mean(self) -> float: ...

    @property
    def half(self) -> float | None: ...


def number(value: float) -> str:
    """Format with three significant digits: 12,300, 1.23, 0.00123."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    digits = 2 - math.floor(math.log10(abs(value)))
    return f"{round(value, digits):,.{max(0, digits)}f}" if abs(value) >= 1e-4 else f"{value:.2e}"


def prefixed(value: float, unit: str) -> str:
    """Format with an SI prefix: 15.0 TFLOP/s, 18.2 µs."""
    if value == 0 or unit in PLAIN:
        return f"{number(value)} {unit}".rstrip()
    power = min(4, max(-3, math.floor(math.log10(abs(value)) / 3)))
    return f"{number(value / 1000.0**power)} {PREFIXES[power]}{unit}"


def seconds(value_s: float) -> str:
    """Format a time in the unit that fits, from milliseconds to hours."""
    if value_s < 1:
        return f"{number(1000 * value_s)} ms"
    if value_s < 120:
        return f"{number(value_s)} s"
    return f"{number(value_s / 60)} min" if value_s < 7200 else f"{number(value_s / 3600)} h"


def time_unit(longest_s: float) -> tuple[str, float]:
    """Return the unit for an axis up to `longest_s`: its name, and its length in seconds."""
    return next((name, s) for name, s in TIME_UNITS if longest_s > 2 * s or s == 1)


def usd(value: float) -> str:
    """Format dollars with cents, or amounts below a dollar with three significant digits."""
    return f"${value:,.2f}" if value >= 1 else f"${number(value)}"


def counted(count: int, noun: str) -> str:
    """Format a count with its noun, in the plural if needed."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def percent(share: float, digits: int = 0) -> str:
    """Format a share as per cent."""
    return f"{100 * share:.{digits}f} %"


def signed_percent(share: float) -> str:
    """Format a change as per cent with its sign."""
    return f"{100 * share:+.1f} %".replace("-", "\N{MINUS SIGN}")


def spread(value: Spread | None, unit: str = "", scale: float = 1) -> str:
    """Format the mean and half of the error bar, times `scale`, with the digits that the error allows."""
    if value is None:
        return UNKNOWN
    if not value.half:
        return number(scale * value.mean) + unit
    half = scale * value.half
    first = math.floor(math.log10(half))
    digits = -first + (half < 3 * 10.0**first)  # one digit, two if the first is 1 or 2: as physicists round
    digits = min(digits, MOST_DIGITS - 1 - math.floor(math.log10(abs(scale * value.mean) or 1)))
    values = [round(v, digits) for v in (scale * value.mean, half)]
    return " ± ".join(f"{value:,.{max(0, digits)}f}" for value in values[: 1 + bool(values[1])]) + unit


def printable(text: str) -> str:
    """Escape characters that could steer a terminal, change the direction of writing, or not be encoded."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def duration(seconds: float | None) -> str:
    """Format a time in hours, minutes and seconds; "-" if it is unknown."""
    if seconds is None:
        return "-"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s"
