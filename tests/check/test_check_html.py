"""The HTML report: well formed, complete, and nothing that it shows can do anything."""

import re

import numpy as np
import pytest
from check_corpus import clean_corpus
from corpus import spell
from html_page import Page

from w2v_lightning.__main__ import main
from w2v_lightning.check import html
from w2v_lightning.data.librispeech import load_split
from w2v_lightning.reporting import bar_charts as charts

HOSTILE = "<script>alert(1)</script>"


@pytest.fixture
def builder(tmp_path):
    return clean_corpus(tmp_path)


def page_of(builder, *options) -> Page:
    path = builder.folder / "out" / "report.html"
    main(["check", builder.manifest(), "--report", str(path), *options])
    return Page(path.read_text(encoding="utf-8"))


def titles(source: str) -> dict[str, str]:
    """Bars of a chart: what is counted, and the number."""
    return dict(title.rsplit(": ", 1) for title in re.findall("<title>(.*?)</title></rect>", source))


def test_page_of_a_clean_corpus_loads_nothing(builder):
    page = page_of(builder, "--decode")
    assert not {"script", "link", "img", "iframe", "object", "embed", "base"} & set(page.tags)
    assert not any(name in ("src", "href", "srcset", "style") or name.startswith("on") for name, _ in page.attributes)
    assert page.tags.count("svg") == 4
    source = (builder.folder / "out" / "report.html").read_text()
    assert not re.search(r"https?://|@import|url\(", source)
    assert "prefers-color-scheme: dark" in source


def test_hostile_text_and_names_are_shown_and_do_nothing(builder):
    builder.add("bad", HOSTILE, waveform=spell("FACADE"), id=f'"{HOSTILE}', speaker=f"</title>{HOSTILE}")
    builder.add("odd", "A\ud800\u202eB\u0000", waveform=spell("FED"))
    page = page_of(builder)
    assert "script" not in page.tags
    assert f'"{HOSTILE}' in page.text
    assert r"A\ud800\u202eB\x00" in page.text
    assert "\u202e" not in page.text


def test_worst_twenty_of_each_finding_come_with_detail_and_text(builder):
    for number in range(25):
        text = "WHAT IS " + "0123456789?!"[: 1 + number % 12]
        builder.add(f"bad-{number:02}", text, waveform=spell("FACADE BEAD ACE")[number:])
    page = page_of(builder)
    shown = re.findall(r"bad-\d\d", page.text)
    assert len(shown) == 20
    assert shown[0] == "bad-11"  # twelve characters without a token
    assert "WHAT IS 0123456789?!" in page.text
    assert "no token for ! 0 1 2" in page.text
    assert "25 of 33 utterances" in page.text


def test_unknown_characters_are_marked_in_the_alphabet(builder):
    builder.add("bad", "CAF\u00c9 FEE\u00c9", waveform=spell("FACADE FE"))
    page = page_of(builder)
    assert "No token for \u00c9 (U+00C9) 2 times" in page.text
    assert [value for name, value in page.attributes if name == "class" and "marked" in value] == ["bar marked"]
    assert page_of(clean_corpus(builder.folder)).text.count("Every character has a token.") == 1


def test_hours_per_speaker_and_in_all(builder):
    builder.add("long", "ABCDE" * 9, speaker="<7>")  # 3.6 s
    page_of(builder)
    bars = titles((builder.folder / "out" / "report.html").read_text())
    assert bars["&lt;7&gt;"] == "0.001 h"


def test_many_speakers_become_a_histogram(builder):
    for number in range(50):
        builder.add(f"more-{number}", "FED", waveform=spell("FED")[number:], speaker=str(number))
    assert "speakers by h" in {value for name, value in page_of(builder).attributes if name == "aria-label"}


def test_real_speech(librispeech, builder):
    load_split(librispeech, "dev-clean").save(builder.folder / "train.jsonl")
    builder.manifest = lambda name="train": str(builder.folder / "train.jsonl")
    assert "would hurt training; warnings for 0" in page_of(builder).text


def test_page_is_written_whole_or_not_at_all(builder, monkeypatch):
    page_of(builder)
    before = (builder.folder / "out" / "report.html").read_text()
    monkeypatch.setattr(html, "_charts", lambda corpus: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        page_of(builder)
    assert (builder.folder / "out" / "report.html").read_text() == before
    assert len(list((builder.folder / "out").iterdir())) == 1


# ---- charts ---------------------------------------------------------------------------------------------------------


def counts(source: str) -> list[int]:
    return [int(value.split()[0].replace(",", "")) for value in titles(source).values()]


@pytest.mark.parametrize(
    "values",
    [np.linspace(1, 35, 5000), np.array([3.0]), np.array([0.0, 0.0]), np.array([1e-3, 1e6]), np.full(7, 12.5)],
    ids=["spread", "one", "zeros", "far apart", "equal"],
)
def test_every_value_is_in_one_bin_of_a_histogram(values):
    source = charts.histogram(values, "s")
    assert sum(counts(source)) == len(values)
    assert len(counts(source)) <= 2 * charts.NUM_BINS
    Page(source)


def test_bins_are_round_and_named():
    assert titles(charts.histogram(np.array([0.1, 0.6, 0.7, 19.9]), "s"))["0.5 to 1 s"] == "2 utterances"


def test_one_far_value_does_not_squeeze_the_others():
    source = charts.histogram(np.append(np.linspace(1, 20, 1000), 3600.0), "s")
    assert len(counts(source)) > 15
    assert "1 above 39.7 s drawn there; the highest is 3,600." in source


def test_bars_are_as_high_as_their_values():
    heights = [float(h) for h in re.findall(r'height="([\d.]+)"><title>', charts.bar_chart("ab", [1, 2], "times"))]
    plot = charts.HEIGHT - charts.TOP - charts.BOTTOM
    assert heights == [pytest.approx(plot / 2 + 1, abs=0.1), pytest.approx(plot + 1, abs=0.1)]


def test_names_that_would_run_into_each_other_stand_upright_and_long_ones_are_cut():
    beside, upright = (charts.bar_chart([name] * 12, [1.0] * 12, "h") for name in ("A", "a rather long name"))
    assert "rotate" not in beside
    assert upright.count("rotate(-90)") == upright.count(">a rather \u2026</text>") == 12
    assert titles(upright) == {"a rather long name": "1 h"}
