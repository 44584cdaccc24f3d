"""Documents as HTML and Markdown."""

import re
from pathlib import Path

import pytest
from html_page import Page

from w2v_lightning.reporting.charts import Bar, bar_rows
from w2v_lightning.reporting.document import Bullets, Document, Figure, Level, Link, Paragraph, Section, Table
from w2v_lightning.reporting.html import save_html
from w2v_lightning.reporting.markdown import save_markdown

HOSTILE = "<script>alert('1')</script> | `x` {{ 7 * 7 }} [y](z) \x1b[2J"


def document(text: str = "text", href: str = "a b/run.json") -> Document:
    """Every kind of block, with `text` wherever text can be."""
    chart = bar_rows([(text, [Bar([(0, 1.0)], text, href=href, title=text)])], (text,), text)
    blocks = [
        Paragraph(text),
        Paragraph([text, Link(text, href), Level(text, "bad")], "note"),
        Paragraph(text, "finding"),
        Paragraph(text, "problem"),
        Bullets([text, [text, Link(text, href)]]),
        Figure("first", text, chart, text),
        Figure("second", text, chart),
        Table([text, text], [[text, Link(text, href)], [Level(text, "warning"), "1"]]),
        Table([text, text], [[text, text]], is_prose=True, title=Level(text, "good")),
    ]
    return Document(text, text, {text: text}, [Section(text, blocks)])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "out" / "report"


def html(path: Path, *args: str) -> str:
    save_html(document(*args), path.with_suffix(".html"))
    return path.with_suffix(".html").read_text(encoding="utf-8")


def markdown(path: Path, *args: str) -> str:
    save_markdown(document(*args), path.with_suffix(".md"))
    return path.with_suffix(".md").read_text(encoding="utf-8")


def test_a_page_has_every_block_and_is_well_formed(path: Path) -> None:
    page = Page(html(path))
    counts = {tag: page.tags.count(tag) for tag in ("h1", "h2", "h3", "p", "ul", "li", "svg", "table", "th", "tr")}
    assert counts == {"h1": 1, "h2": 1, "h3": 2, "p": 5, "ul": 1, "li": 2, "svg": 2, "table": 2, "th": 4, "tr": 5}
    classes = [value for name, value in page.attributes if name == "class"]
    assert {"finding card", "problem card", "bad", "warning", "good", "prose", "number"} <= set(classes)


def test_nothing_in_a_page_is_markup_or_a_template(path: Path) -> None:
    source = html(path, HOSTILE, 'x" onclick="alert(1)')
    page = Page(source)
    assert "script" not in page.tags
    assert not any(name.startswith("on") for name, _ in page.attributes)
    assert HOSTILE.replace("\x1b", r"\x1b") in page.text
    assert "\x1b" not in source
    links = {value for name, value in page.attributes if name == "href"}
    assert {link for link in links if not link.startswith("#")} == {'x" onclick="alert(1)'}
    assert "#part-1" in links


def test_a_page_needs_nothing_else(path: Path) -> None:
    source = html(path)
    page = Page(source)
    assert not {"script", "link", "img", "iframe", "object", "embed", "base"} & set(page.tags)
    assert not any(name in ("src", "srcset") or name.startswith("on") for name, _ in page.attributes)
    assert not re.search(r"https?:|@import|url\((?!#)", source)


def test_a_page_is_light_dark_and_printed(path: Path) -> None:
    source = html(path)
    assert "color-scheme: light dark" in source
    used = set(re.findall(r"var\((--[\w-]+)\)", source))
    light, dark = source.split("@media screen and (prefers-color-scheme: dark)", 1)
    assert used <= set(re.findall(r"(--[\w-]+):", light)) & set(re.findall(r"(--[\w-]+):", dark.split("@media")[0]))
    assert "@media print { :root { --ink: #000;" in source


def test_the_same_document_is_the_same_page(path: Path) -> None:
    assert html(path) == html(path.with_name("other"))


def test_a_page_is_written_whole_or_not_at_all(path: Path, monkeypatch) -> None:
    before = html(path)
    monkeypatch.setattr("w2v_lightning.reporting.html.printable", lambda text: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        html(path, "other")
    assert path.with_suffix(".html").read_text() == before
    assert len(list(path.parent.iterdir())) == 1


def test_markdown_has_every_block_and_its_charts_beside_it(path: Path) -> None:
    lines = markdown(path).splitlines()
    assert {"# text", "## text", "- text: **text**", "**text**", "- text", "- text[text](a b/run.json)"} <= set(lines)
    assert "text[text](a b/run.json)text" in lines
    assert {"| --- | ---: |", "| --- | --- |", "| text | [text](a b/run.json) |"} <= set(lines)
    charts = [line for line in lines if line.startswith("![")]
    assert charts == ["![text](report.charts/first.svg)", "![text](report.charts/second.svg)"]
    for name in ("first", "second"):
        assert (path.parent / "report.charts" / f"{name}.svg").read_text(encoding="utf-8").startswith("<svg")


def test_nothing_in_markdown_is_markup(path: Path) -> None:
    source = markdown(path, HOSTILE, "run.json")
    assert "\x1b" not in source
    escaped = r"\<script\>alert('1')\</script\> \| \`x\` \{\{ 7 \* 7 \}\} \[y\](z) \\x1b\[2J"
    assert source.count(escaped) == source.count("script") // 2 > 10
