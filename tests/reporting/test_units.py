"""Numbers as text."""

import pytest

from w2v_lightning.reporting.units import number, prefixed, printable, seconds, signed_percent, spread, usd


class Half:
    """Mean with half of an error bar."""

    def __init__(self, mean: float, half: float | None) -> None:
        self.mean, self.half = mean, half


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (number(12345.0), "12,300"),
        (number(1.2345), "1.23"),
        (number(0.0012345), "0.00123"),
        (number(0), "0"),
        (seconds(0.0123), "12.3 ms"),
        (seconds(61), "61.0 s"),
        (seconds(600), "10.0 min"),
        (seconds(9000), "2.50 h"),
        (usd(12.345), "$12.35"),
        (usd(0.0123), "$0.0123"),
        (prefixed(1.5e13, "FLOP/s"), "15.0 TFLOP/s"),
        (prefixed(1.82e-5, "s"), "18.2 µs"),
        (prefixed(4400.0, "audio-s/s"), "4,400 audio-s/s"),
        (prefixed(0.5, ""), "0.500"),
        (signed_percent(-0.031), "\N{MINUS SIGN}3.1 %"),
        (spread(Half(516.12, 0.7)), "516.1 ± 0.7"),
        (spread(Half(3730.0, 96.8)), "3,730 ± 100"),
        (spread(Half(0.1123, 0.0123), " ms"), "0.112 ± 0.012 ms"),
        (spread(Half(0.88496, 0.00001), " %", 100), "88.50 %"),
        (spread(Half(12.0, None)), "12.0"),
        (spread(None), "not measured"),
    ],
)
def test_numbers_have_the_digits_that_count(shown: str, expected: str) -> None:
    assert shown == expected


def test_text_that_steers_becomes_an_escape() -> None:
    assert printable("\x1b[2J \u202e \ud800 \u00e9\n") == r"\x1b[2J \u202e \ud800 \u00e9\n".replace(r"\u00e9", "\u00e9")
