"""The HTML report: well formed, complete, and nothing that it shows can do anything."""

import re

import pytest
from check_corpus import clean_corpus
from corpus import spell
from html_page import Page

from w2v_lightning.__main__ import main
from w2v_lightning.check import html
from w2v_lightning.data.librispeech import load_split

HOSTILE = "<script>alert(1)</script>"


@pytest.fixture
def builder(tmp_path):
    return clean_corpus(tmp_path)


def page_of(builder, *options) -> Page:
    path = builder.folder / "out" / "report.html"
    main(["check", builder.manifest(), "--report", str(path), *options])
    return Page(path.read_text(encoding="utf-8"))


def titles(source: str) -> dict[str, str]:
    """Columns of the charts: name and value."""
    return dict(title.rsplit(": ", 1) for title in re.findall("<title>([^<]*: [^<]*)</title>", source))


def test_page_of_a_clean_corpus_loads_nothing(builder):
    page = page_of(builder, "--decode")
    assert not {"script", "link", "img", "iframe", "object", "embed", "base"} & set(page.tags)
    assert not any(name in ("src", "srcset") or name.startswith("on") for name, _ in page.attributes)
    assert all(value.startswith("#") for name, value in page.attributes if name == "href")
    assert page.tags.count("svg") == 4
    source = (builder.folder / "out" / "report.html").read_text()
    assert not re.search(r"https?://|@import|url\((?!#)", source)
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
        text = "WHAT IS " + "!#$%&*+,./:;"[: 1 + number % 12]
        builder.add(f"bad-{number:02}", text, waveform=spell("FACADE BEAD ACE")[number:])
    page = page_of(builder)
    shown = re.findall(r"bad-\d\d", page.text.rpartition("The worst 20")[2])
    assert len(shown) == 20
    assert shown[0] == "bad-11"  # twelve characters without a token
    assert "WHAT IS !#$%&*+,./:;" in page.text
    assert "no token for ! # $ %" in page.text
    assert "25 of 33 utterances" in page.text


def test_unknown_characters_are_marked_in_the_alphabet(builder):
    builder.add("bad", "CAF\u00c9 FEE\u00c9", waveform=spell("FACADE FE"))
    page = page_of(builder)
    assert "No token for \u00c9 (U+00C9) 2 times" in page.text
    column = re.search("<title>\u00c9: 2 times</title>(.*?)</g>", page.source)[1]
    assert "fill: var(--bad)" in column
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
    monkeypatch.setattr(html, "_figures", lambda corpus: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        page_of(builder)
    assert (builder.folder / "out" / "report.html").read_text() == before
    assert len(list((builder.folder / "out").iterdir())) == 1
