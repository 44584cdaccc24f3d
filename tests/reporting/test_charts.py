"""Charts: everything is at the place of its value, can be told apart without colours, and nothing in it is markup."""

import re
import subprocess
import sys

import matplotlib
import numpy as np
import pytest
from html_page import Page
from svg import SVG, box, extent, mark, texts, titled, tree

from w2v_lightning.reporting import charts
from w2v_lightning.reporting.charts import Bar, Chart, Curve, Point, Series, bar_rows, columns, histogram, xy_chart

HOSTILE = '<script>alert("1")</script>'
EXAMPLES = {
    "points": xy_chart([Series(HOSTILE, [Point(1, 1, href=HOSTILE, title=HOSTILE)])], HOSTILE, HOSTILE),
    "bars": bar_rows([(HOSTILE, [Bar([(0, 1), (1, 1)], HOSTILE, 1, 2, HOSTILE, HOSTILE)])], [HOSTILE] * 2, HOSTILE),
    "histogram": histogram(np.arange(9.0), HOSTILE, HOSTILE)[0],
    "columns": columns([HOSTILE, "b"], [1, 2], HOSTILE, frozenset([HOSTILE])),
}
each_kind = pytest.mark.parametrize("chart", EXAMPLES.values(), ids=EXAMPLES.keys())


def styles(group) -> str:
    return " ".join(element.get("style") or "" for element in group.iter())


def shape(group) -> str:
    """Path of the marker that a part refers to, or of its own."""
    return next(group.iter(f"{SVG}path")).get("d")


# ---- places --------------------------------------------------------------------------------------------------------


def test_points_are_at_their_values() -> None:
    points = [Point(x, 10 * x, title=f"at {x}") for x in (1, 2, 4)]
    chart = xy_chart([Series("a", points)], "GPUs", "audio-s/s")
    (x1, y1), (x2, y2), (x4, y4) = (mark(titled(chart)[f"at {x}"]) for x in (1, 2, 4))
    assert (x4 - x2) / (x2 - x1) == pytest.approx(2, abs=0.01)
    assert (y2 - y4) / (y1 - y2) == pytest.approx(2, abs=0.01)
    zero = y1 + (y1 - y2)  # both axes begin at zero
    assert (zero - y4) / (zero - y2) == pytest.approx(2, abs=0.01)
    assert [text for text, _, y in texts(chart) if y > zero + 10] == ["0", "1", "2", "3", "4", "GPUs"]


def test_error_bars_reach_from_low_to_high() -> None:
    chart = xy_chart([Series("a", [Point(1, 50, 25, 100, title="point")])], "GPUs", "audio-s/s")
    x, y = mark(titled(chart)["point"])
    lines = [extent(path.get("d")) for path in tree(chart).iter(f"{SVG}path")]
    _, high, _, low = next(line for line in lines if line[0] == line[2] == pytest.approx(x) and line[1] < y < line[3])
    assert (low - y) / (y - high) == pytest.approx(0.5, abs=0.01)


def test_the_ideal_does_not_flatten_the_rest() -> None:
    chart = xy_chart([Series("a", [Point(4, 10, title="a")])], "GPUs", "audio-s/s", Curve("linear", [(0, 0), (4, 400)]))
    height = float(tree(chart).get("viewBox").split()[3])
    assert mark(titled(chart)["a"])[1] < 0.6 * height


def test_close_values_are_not_named_on_top_of_each_other() -> None:
    sizes = [1, 2, 4, 8, 16, 32, 64, 65]
    chart = xy_chart([Series("a", [Point(size, 1) for size in sizes])], "GPUs", "audio-s/s", x_values=sizes)
    named = sorted(x for text, x, _ in texts(chart) if text in map(str, sizes))
    assert "65" in [text for text, _, _ in texts(chart)]
    assert "64" not in [text for text, _, _ in texts(chart)]
    assert min(np.diff(named)) > charts.CHARACTER


def test_bars_are_as_long_as_their_parts() -> None:
    bars = [Bar([(0, 1.0), (1, 2.0), (2, 1.0), (3, 0.0)], "4 s", title="a"), Bar([(0, 4.0)], "4 s", title="b")]
    chart = bar_rows([("a", bars)], ("compute", "data", "network", "none"), "s")
    parts = [group for group in tree(chart).iter(f"{SVG}g") if group.findtext(f"{SVG}title") in ("a", "b")]
    first, second, third, whole = map(box, parts)
    assert second[2] - second[0] == pytest.approx(2 * (first[2] - first[0]), rel=0.01)
    assert (second[0], third[0]) == (first[2], second[2])
    assert (whole[0], whole[2]) == (first[0], third[2])
    shown = [text for text, _, _ in texts(chart)]
    assert "network" in shown
    assert "none" not in shown  # no bar has this part


def test_errors_to_both_sides_of_zero() -> None:
    rows = [
        (name, [Bar([(0, value)], name, value - 5, value + 5, name)]) for name, value in (("a", -10.0), ("b", 20.0))
    ]
    groups = titled(bar_rows(rows, ("error",), "%"))
    left, right = box(groups["a"]), box(groups["b"])
    assert left[2] == pytest.approx(right[0])
    assert right[2] - right[0] == pytest.approx(2 * (left[2] - left[0]), rel=0.01)
    assert left[0] > 0


@pytest.mark.parametrize("end", [6.0, 1e-6])
def test_labels_after_bars_stay_in_the_chart(end: float) -> None:
    label = "12.3 seconds of many"
    chart = bar_rows([("a", [Bar([(0, 5.0 * end)], label, 4.0 * end, 6.0 * end, "bar")])], ("one",), "s")
    x = next(x for text, x, _ in texts(chart) if text == label)
    assert x + charts.CHARACTER * len(label) <= charts.WIDTH
    assert x > box(titled(chart)["bar"])[2]


def test_a_row_without_bars_is_a_heading() -> None:
    chart = bar_rows([("Training", []), ("ours", [Bar([(0, 1.0)], "1")])], ("ours",), "s")
    bold = [text.text for text in tree(chart).iter(f"{SVG}text") if "font-weight" in text.get("style")]
    assert bold == ["Training"]


# ---- what tells things apart ---------------------------------------------------------------------------------------


def test_of_many_series_no_two_look_the_same() -> None:
    series = [Series(str(i), [Point(1, i + 1, title=str(i))]) for i in range(42)]
    chart = xy_chart(series, "GPUs", "audio-s/s")
    looks = {(next(g.iter(f"{SVG}use")).get("href"), styles(g)) for g in titled(chart).values()}
    assert len(looks) == 42
    assert len({look for look, _ in looks}) >= 7


def test_laws_differ_in_dashes_and_look_the_same_in_all_series() -> None:
    series = [
        Series(name, [Point(1, y)], [Curve("Amdahl", [(1, y), (2, y)]), Curve("USL", [(1, y), (2, y)])])
        for name, y in (("a", 1), ("b", 2))
    ]
    chart = xy_chart(series, "GPUs", "audio-s/s", Curve("linear", [(0, 0), (2, 2)]))
    dashes = {name: re.findall(rf"stroke-dasharray: ([^;]*)[^<]*stroke: var\(--{name}\)", chart.svg) for name in
              ("series-1", "series-2", "soft")}  # fmt: skip
    assert len(set(dashes["series-1"])) == 2
    assert dashes["series-1"] == dashes["series-2"]
    assert len(set(dashes["soft"])) == 1
    assert set(dashes["soft"]).isdisjoint(dashes["series-1"])


def test_predicted_points_are_hollow_and_the_legend_says_so() -> None:
    points = [Point(1, 1, title="measured"), Point(2, 2, title="predicted", is_predicted=True)]
    chart = xy_chart([Series("a", points)], "GPUs", "audio-s/s")
    assert "fill: var(--card)" in styles(titled(chart)["predicted"])
    assert "fill: var(--series-1)" in styles(titled(chart)["measured"])
    assert "hollow: predicted" in [text for text, _, _ in texts(chart)]
    assert "predicted" not in xy_chart([Series("a", points[:1])], "GPUs", "audio-s/s").svg


def test_parts_of_bars_differ_in_hatch() -> None:
    kinds = ("compute", "data", "network", "imbalance", "overhead", "other")
    chart = bar_rows([("a", [Bar([(i, 1.0) for i in range(6)], "6 s", title="a")])], kinds, "s")
    hatches = [path.get("d") for pattern in tree(chart).iter(f"{SVG}pattern") for path in pattern.iter(f"{SVG}path")]
    assert len(hatches) == len(set(hatches)) == 5  # the first kind is plain
    assert [text for text, _, _ in texts(chart) if text in kinds] == list(kinds)


def test_marked_columns_are_bold_too() -> None:
    chart = columns(["a", "b"], [1, 2], "times", frozenset("b"))
    styled = {text.text: text.get("style") for text in tree(chart).iter(f"{SVG}text")}
    assert "var(--bad)" in styled["b"]
    assert "font-weight" in styled["b"]
    assert "font-weight" not in styled["a"]
    assert "var(--bad)" in styles(titled(chart)["b: 2 times"])


# ---- labels --------------------------------------------------------------------------------------------------------


def test_labels_at_the_ends_of_series_do_not_overlap() -> None:
    series = [Series(f"series {i}", [Point(1, 5), Point(2, 5 + i / 100)]) for i in range(8)]
    chart = xy_chart(series, "GPUs", "audio-s/s")
    heights = sorted(y for text, _, y in texts(chart) if text.startswith("series"))
    assert len(heights) == 8
    assert min(np.diff(heights)) > 12  # the size of the font
    assert heights[0] > 0


def test_long_labels_go_to_the_legend() -> None:
    label = "local-x1-16-mixed-batch_seconds-1600"
    series = [Series(f"{label}-{i}", [Point(1, 5, title=f"point {i}")]) for i in range(3)]
    chart = xy_chart(series, "GPUs", "audio-s/s")
    places = [(x, y) for text, x, y in texts(chart) if text.startswith(label)]
    assert len(places) == 3
    assert all(y < mark(titled(chart)["point 0"])[1] for _, y in places)
    assert all(x + charts.CHARACTER * (len(label) + 2) < charts.WIDTH for x, _ in places)


def test_legends_wrap_before_they_leave_the_chart() -> None:
    kinds = ["a label of some length"] * 6
    chart = bar_rows([("a", [Bar([(i, 1.0) for i in range(6)], "6 s")])], kinds, "s")
    places = [(x, y) for text, x, y in texts(chart) if text == kinds[0]]
    assert len(places) == 6
    assert len({y for _, y in places}) > 1
    assert all(x + charts.CHARACTER * len(kinds[0]) <= charts.WIDTH for x, _ in places)


def test_labels_that_matplotlib_would_hide_or_typeset_are_shown() -> None:
    chart = bar_rows([("$a_1$", [Bar([(0, 1.0), (1, 1.0)], "$2$")])], ("_private", "x"), "s")
    assert {"$a_1$", "$2$", " _private"} <= {text for text, _, _ in texts(chart)}


def test_names_that_would_overlap_are_upright_and_long_ones_are_cut() -> None:
    level, upright = (columns([name] * 12, [1.0] * 12, "h") for name in ("A", "a rather long name"))
    assert "rotate(-90" not in level.svg
    assert upright.svg.count("rotate(-90") == [text for text, _, _ in texts(upright)].count("a rather \u2026") == 12
    assert list(titled(upright)) == ["a rather long name: 1 h"]


def test_text_in_any_script_is_drawn_without_a_warning(recwarn) -> None:
    assert "\u4e2d" in columns(["\u4e2d"], [1], "times").svg
    assert not recwarn.list


# ---- histograms ----------------------------------------------------------------------------------------------------


def counts(chart: Chart) -> list[int]:
    return [int(title.rsplit(": ", 1)[1].split()[0].replace(",", "")) for title in titled(chart)]


@pytest.mark.parametrize(
    "values",
    [np.linspace(1, 35, 5000), np.array([3.0]), np.array([0.0, 0.0]), np.array([1e-3, 1e6]), np.full(7, 12.5)],
    ids=["spread", "one", "zeros", "far apart", "equal"],
)
def test_every_value_is_in_one_bin_of_a_histogram(values: np.ndarray) -> None:
    chart, _ = histogram(values, "s")
    assert sum(counts(chart)) == len(values)
    assert len(counts(chart)) <= 2 * charts.NUM_BINS


def test_bins_are_round_and_named() -> None:
    assert "0.5 to 1 s: 2 utterances" in titled(histogram(np.array([0.1, 0.6, 0.7, 19.9]), "s")[0])


def test_one_far_value_does_not_squeeze_the_others() -> None:
    chart, note = histogram(np.append(np.linspace(1, 20, 1000), 3600.0), "s")
    assert len(counts(chart)) > 15
    assert note == "1 above 39.7 s drawn there; the highest is 3,600."
    assert histogram(np.linspace(1, 20, 1000), "s")[1] == ""


def test_columns_are_as_high_as_their_values() -> None:
    groups = titled(columns("ab", [1, 2], "times"))
    (_, top, _, bottom), (_, high_top, _, high_bottom) = box(groups["a: 1 times"]), box(groups["b: 2 times"])
    assert high_bottom - high_top == pytest.approx(2 * (bottom - top), rel=0.01)


# ---- files ---------------------------------------------------------------------------------------------------------


@each_kind
def test_names_and_values_are_no_markup(chart: Chart) -> None:
    assert "<script" not in chart.standalone
    assert HOSTILE in "".join(tree(chart).itertext())
    assert "script" not in Page(chart.svg).tags


def test_a_link_surrounds_its_part() -> None:
    group = titled(bar_rows([("a", [Bar([(0, 1.0)], "1", href="run 1.json", title="a")])], ("one",), "s"))["a"]
    (link,) = group.iter(f"{SVG}a")
    assert link.get("href") == "run 1.json"
    assert list(link.iter(f"{SVG}path"))


@each_kind
def test_a_chart_describes_itself_and_keeps_its_text(chart: Chart) -> None:
    assert tree(chart).get("aria-label")
    assert tree(chart).get("role") == "group"  # not "img", which would hide tooltips and links from a screen reader
    assert texts(chart)
    assert "DejaVu" not in chart.svg
    assert "system-ui" in chart.svg


@each_kind
def test_colours_are_variables_of_the_theme_for_light_dark_and_paper(chart: Chart) -> None:
    assert not re.findall(r"#[0-9a-f]{6}\b", chart.svg)
    used = set(re.findall(r"var\((--[\w-]+)\)", chart.svg))
    light, dark = chart.standalone.split("prefers-color-scheme: dark", 1)
    assert used
    for theme in (light, dark.split("@media print")[0]):
        assert used <= set(re.findall(r"(--[\w-]+):", theme))
    assert "@media screen and (prefers-color-scheme: dark)" in chart.standalone  # paper is always white


@each_kind
def test_a_file_of_its_own_needs_nothing_else(chart: Chart) -> None:
    ids = [element.get("id") for element in tree(chart).iter() if element.get("id")]
    assert len(ids) == len(set(ids))
    used = set(re.findall(r"url\(#([^)]+)\)", chart.svg)) | set(re.findall(r'href="#([^"]+)"', chart.svg))
    assert used <= set(ids)
    assert "http" not in chart.standalone.replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert not {"script", "image", "foreignObject"} & {element.tag.removeprefix(SVG) for element in tree(chart).iter()}


def test_the_same_chart_is_the_same_file_and_another_one_has_other_ids(monkeypatch) -> None:
    def drawn(value: float) -> str:
        return xy_chart([Series("a", [Point(1, value)])], "GPUs", "audio-s/s").standalone

    first = drawn(1)
    monkeypatch.setitem(matplotlib.rcParams, "font.size", 30)  # the user's own style
    monkeypatch.setitem(matplotlib.rcParams, "axes.facecolor", "red")
    assert drawn(1) == first
    assert set(re.findall(r' id="([^"]+)"', first)).isdisjoint(re.findall(r' id="([^"]+)"', drawn(2)))
    assert matplotlib.rcParams["font.size"] == 30


def test_text_that_steers_is_shown_as_an_escape() -> None:
    chart = xy_chart([Series("\x1b[2J", [Point(1, 1, title="\u202e")])], "\x1b", "y")
    assert "\x1b" not in chart.svg
    assert "\u202e" not in chart.svg
    assert r"\x1b[2J" in [text for text, _, _ in texts(chart)]


def test_matplotlib_is_imported_only_to_draw() -> None:
    code = "import sys; import w2v_lightning.reporting.html; sys.exit('matplotlib' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
