"""Charts of a study's report: everything is where its number says, and is told apart without colours."""

import re
from xml.etree import ElementTree

import pytest

from w2v_lightning.reporting import drawing
from w2v_lightning.reporting.charts import Curve, Point, Series, xy_chart
from w2v_lightning.reporting.drawing import Axis, Drawing, legend, mark, text
from w2v_lightning.reporting.rows import Bar, Mark, bar_rows, mark_rows
from w2v_lightning.reporting.units import number, prefixed, seconds, signed_percent, spread, usd

HOSTILE = '<script>alert("1")</script>'
XLINK = "{http://www.w3.org/2000/svg}"


class Half:
    """A spread."""

    def __init__(self, mean: float, half: float | None) -> None:
        self.mean, self.half = mean, half


def tree(drawn: Drawing) -> ElementTree.Element:
    """Fails where it is no XML: what a browser forgives, an SVG file's viewer does not."""
    return ElementTree.fromstring(drawn.standalone)


def marks(drawn: Drawing) -> list[tuple[str, float, float]]:
    """Class, x and y of each, without those of the legend, which come first."""
    found = re.findall(r'<path class="mark ([^"]*)" transform="translate\((\S+) ([\d.-]+)\)', drawn.body)
    return [(style, float(x), float(y)) for style, x, y in found]


def bars(drawn: Drawing) -> list[tuple[str, float]]:
    """Class and width."""
    return [(style, float(width)) for style, width in re.findall(r'class="bar (\S+)".*? width="([\d.]+)"', drawn.body)]


def test_points_lie_where_their_values_are() -> None:
    drawn = xy_chart([Series("a", [Point(1, 10), Point(2, 20), Point(4, 40)])], "GPUs", "audio-s/s")
    _, *found = marks(drawn)
    (_, x1, y1), (_, x2, y2), (_, x4, y4) = found
    assert (x4 - x2) / (x2 - x1) == pytest.approx(2, abs=0.02)
    assert (y2 - y4) / (y1 - y2) == pytest.approx(2, abs=0.02)
    zero = float(re.search(r'y="([\d.]+)" text-anchor="end">0<', drawn.body)[1]) - 4  # the middle of the tick's label
    assert (zero - y4) / (zero - y2) == pytest.approx(2, abs=0.02)


def test_error_bars_reach_from_low_to_high() -> None:
    drawn = xy_chart([Series("a", [Point(1, 50, 25, 100)])], "GPUs", "audio-s/s")
    (_, _, y), *_ = marks(drawn)[1:]
    ends = re.search(r'class="whisker s0" d="M\S+ ([\d.]+)m.*?L\S+ ([\d.]+)m', drawn.body)
    low, high = float(ends[1]), float(ends[2])
    assert (low - y) / (y - high) == pytest.approx(0.5, abs=0.02)


def test_error_bars_that_the_mark_would_hide_are_left_out() -> None:
    assert "whisker" not in xy_chart([Series("a", [Point(1, 50, 49.9, 50.1)])], "GPUs", "audio-s/s").body


def test_series_differ_in_shape_and_laws_in_dash() -> None:
    series = [
        Series(name, [Point(1, y)], [Curve("Amdahl", [(1, y), (2, y)]), Curve("USL", [(1, y), (2, y)])])
        for name, y in (("a", 1), ("b", 2))
    ]
    drawn = xy_chart(series, "GPUs", "audio-s/s", Curve("linear", [(0, 0), (2, 2)]))
    shapes = re.findall(r'class="mark s\d" transform="[^"]*" d="([^"]*)"', drawn.body)
    assert len(set(shapes)) == 2
    dashes = re.findall(r'class="curve (\S+)" stroke-dasharray="([^"]+)"', drawn.body)
    assert len({dash for style, dash in dashes if style == "s0"}) == 2
    assert {dash for style, dash in dashes if style == "s0"} == {dash for style, dash in dashes if style == "s1"}
    ideal = {dash for style, dash in dashes if style == "ideal"}
    assert len(ideal) == 1
    assert ideal.isdisjoint(dash for style, dash in dashes if style in ("s0", "s1"))


def test_predicted_points_are_hollow_and_the_legend_says_so() -> None:
    drawn = xy_chart([Series("a", [Point(1, 1), Point(2, 2, is_predicted=True)])], "GPUs", "audio-s/s")
    assert [style for style, _, _ in marks(drawn)].count("s0 predicted") == 2  # one in the legend
    assert "hollow: predicted" in drawn.body
    measured = xy_chart([Series("a", [Point(1, 1)])], "GPUs", "audio-s/s")
    assert "predicted" not in measured.body


def test_a_curve_ends_where_it_leaves_the_plot() -> None:
    drawn = xy_chart([Series("a", [Point(4, 10)])], "GPUs", "audio-s/s", Curve("linear", [(0, 0), (4, 400)]))
    path = re.search(r'class="curve ideal" [^>]* d="M(\S+) (\S+)L(\S+) (\S+)"', drawn.body)
    x0, y0, x1, y1 = map(float, path.groups())
    assert y1 == pytest.approx(float(re.findall(r'y1="([\d.]+)"', drawn.body)[-1]), abs=15)  # the top
    ((_, x, y),) = marks(drawn)[1:]
    slope = (y0 - y1) / (x1 - x0)
    assert slope == pytest.approx(40 * (y0 - y) / (x - x0), rel=0.01)


def test_bars_are_as_long_as_their_parts_and_the_parts_differ_in_pattern() -> None:
    drawn = bar_rows(
        [("a", [Bar([(0, 1.0), (1, 2.0), (2, 1.0), (3, 0.0)], "4 s")])], ("compute", "data", "network", "none"), "s"
    )
    (_, first), (_, second), (_, _) = bars(drawn)[-3:]
    assert second == pytest.approx(2 * first, rel=0.01)
    starts = [float(x) for x in re.findall(r'class="bar \S+ x="([\d.]+)"', drawn.body)][-3:]
    assert starts[1:] == pytest.approx([starts[0] + first, starts[1] + second], abs=0.2)
    fills = re.findall(r'fill="(url[^"]*)"', drawn.body)
    assert len(set(fills)) == 2  # of the second and third kind, in the legend; the first is plain
    assert "network" in drawn.body
    assert "none" not in drawn.body  # nobody has it


def test_labels_behind_bars_stay_in_the_drawing() -> None:
    label = "12.3 seconds of many"
    drawn = bar_rows([("a", [Bar([(0, 5.0)], label, 4.0, 6.0)])], ("one",), "s")
    x = float(re.search(rf'x="([\d.]+)"[^>]*>{label}', drawn.body)[1])
    assert x + drawing.CHARACTER_WIDTH * len(label) <= drawing.WIDTH
    assert x > max(width for _, width in bars(drawn))


def test_marks_lie_on_a_logarithmic_axis() -> None:
    rows = [("a", [Mark(0, 1.0), Mark(0, 10.0), Mark(0, 100.0)], "+1 %")]
    _, (_, x1, _), (_, x10, _), (_, x100, _) = marks(mark_rows(rows, [("measured", False)], "s"))
    assert x100 - x10 == pytest.approx(x10 - x1, abs=0.2)
    assert "+1 %" in mark_rows(rows, [("measured", False)], "s").body


@pytest.mark.parametrize(
    "drawn",
    [
        xy_chart([Series(HOSTILE, [Point(1, 1, href=HOSTILE, title=HOSTILE)])], HOSTILE, HOSTILE),
        bar_rows([(HOSTILE, [Bar([(0, 1.0)], HOSTILE, href=HOSTILE, title=HOSTILE)])], (HOSTILE, HOSTILE), HOSTILE),
        mark_rows([(HOSTILE, [Mark(0, 1.0, title=HOSTILE, href=HOSTILE)], HOSTILE)], [(HOSTILE, False)], HOSTILE),
    ],
)
def test_what_comes_from_files_is_no_markup(drawn: Drawing) -> None:
    assert "<script" not in drawn.standalone
    assert HOSTILE in "".join(tree(drawn).itertext())


def test_a_file_of_its_own_has_all_that_it_needs() -> None:
    drawn = bar_rows([("a", [Bar([(1, 1.0)], "1 s")])], ("compute", "data"), "s")
    used = set(re.findall(r"url\(#([^)]+)\)", drawn.standalone))
    defined = {element.get("id") for element in tree(drawn).iter(f"{XLINK}pattern")}
    assert used
    assert used <= defined
    variables = set(re.findall(r"var\((--\w+)\)", drawn.standalone)) - {"--c"}
    assert variables <= set(re.findall(r"(--\w+):", drawn.standalone))
    assert "http" not in drawn.standalone.replace("http://www.w3.org/2000/svg", "")


def test_legends_wrap_before_they_leave_the_drawing() -> None:
    entries = [((lambda x, y: mark(x, y, 0)), "a label of some length")] * 4
    body, bottom = legend(entries, 0)
    assert bottom >= 2 * drawing.LINE
    ends = [float(x) + drawing.CHARACTER_WIDTH * 22 for x in re.findall(r'class="label" x="([\d.]+)"', body)]
    assert max(ends) <= drawing.WIDTH


@pytest.mark.parametrize(("low", "high"), [(0.3, 4.0), (0.01, 90.0), (1.1, 1.2)])
def test_every_logarithmic_axis_has_ticks_within_it(low: float, high: float) -> None:
    ticks = Axis(low, high, 0, 1, is_log=True).ticks(5)
    assert len(ticks) >= 2
    assert all(low <= tick <= high for tick in ticks)


def test_text_that_steers_is_shown_as_an_escape() -> None:
    assert "\x1b" not in text(0, 0, "\x1b[2J")


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


def test_of_many_series_no_two_look_the_same():
    assert len({mark(0, 0, style) for style in range(4 * drawing.NUM_STYLES)}) == 4 * drawing.NUM_STYLES
