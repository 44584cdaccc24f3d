"""Numbers as a reader wants them: three digits that count, and the unit that fits."""

import math
from typing import Protocol

UNKNOWN = "not measured"
TIME_UNITS = (("hours", 3600.0), ("minutes", 60.0), ("seconds", 1.0))
PREFIXES = {-3: "n", -2: "µ", -1: "m", 0: "", 1: "k", 2: "M", 3: "G", 4: "T"}
PLAIN = ("", "audio-s/s")  # units that take no prefix
MOST_DIGITS = 4  # whatever the error


class Spread(Protocol):
    """A mean and, where it was seen more than once, half of its error bar."""

    mean: float
    half: float | None


def number(value: float) -> str:
    """12,300, 1.23, 0.00123."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    digits = 2 - math.floor(math.log10(abs(value)))
    return f"{round(value, digits):,.{max(0, digits)}f}" if abs(value) >= 1e-4 else f"{value:.2e}"


def prefixed(value: float, unit: str) -> str:
    """With an SI prefix: 15.0 TFLOP/s, 18.2 µs."""
    if value == 0 or unit in PLAIN:
        return f"{number(value)} {unit}".rstrip()
    power = min(4, max(-3, math.floor(math.log10(abs(value)) / 3)))
    return f"{number(value / 1000.0**power)} {PREFIXES[power]}{unit}"


def seconds(value_s: float) -> str:
    """From milliseconds to hours."""
    if value_s < 1:
        return f"{number(1000 * value_s)} ms"
    if value_s < 120:
        return f"{number(value_s)} s"
    return f"{number(value_s / 60)} min" if value_s < 7200 else f"{number(value_s / 3600)} h"


def time_unit(longest_s: float) -> tuple[str, float]:
    """For an axis that goes so far: its name, and seconds in one."""
    return next((name, s) for name, s in TIME_UNITS if longest_s > 2 * s or s == 1)


def usd(value: float) -> str:
    """In cents, or where it is less, with the digits that count."""
    return f"${value:,.2f}" if value >= 1 else f"${number(value)}"


def counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def percent(share: float, digits: int = 0) -> str:
    return f"{100 * share:.{digits}f} %"


def signed_percent(share: float) -> str:
    return f"{100 * share:+.1f} %".replace("-", "\N{MINUS SIGN}")


def spread(found: Spread | None, unit: str = "", scale: float = 1) -> str:
    """The mean and half the error bar, times `scale`, to the digits that the error leaves."""
    if found is None:
        return UNKNOWN
    if not found.half:
        return number(scale * found.mean) + unit
    half = scale * found.half
    first = math.floor(math.log10(half))
    digits = -first + (half < 3 * 10.0**first)  # one digit, two where the first one is 1 or 2: as physicists round
    digits = min(digits, MOST_DIGITS - 1 - math.floor(math.log10(abs(scale * found.mean) or 1)))
    values = [round(v, digits) for v in (scale * found.mean, half)]
    return " ± ".join(f"{value:,.{max(0, digits)}f}" for value in values[: 1 + bool(values[1])]) + unit


def printable(text: str) -> str:
    """`text` with whatever could steer a terminal, turn the direction of writing or not be encoded as an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def duration(seconds: float | None) -> str:
    """In hours, minutes and seconds; "-" where it is not known."""
    if seconds is None:
        return "-"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s"
