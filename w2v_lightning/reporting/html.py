"""A report as one page that needs nothing else: no script, font, image or network."""

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from w2v_lightning.reporting.document import Document, Figure, Inline, Link, Paragraph, Section, Table, parts
from w2v_lightning.reporting.drawing import STYLE, THEME, patterns, shown
from w2v_lightning.runtime.files import atomic_text_file

PAGE_STYLE = """
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 1120px; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0; } h2 { font-size: 1.15rem; margin: 2.25rem 0 .75rem; }
h3 { font-size: .95rem; margin: 0; } a { color: var(--link); } p { margin: .5rem 0; max-width: 76ch; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .9rem 1.1rem;
  margin: 0 0 1rem; }
.soft, .note { color: var(--soft); } .note { font-size: .85rem; }
.finding { border-left: 4px solid var(--good); max-width: none; font-weight: 600; }
.item { display: list-item; margin: .25rem 0 .25rem 1.2rem; max-width: none; }
.facts { display: flex; flex-wrap: wrap; gap: .75rem 2.5rem; margin: 1.25rem 0 0; }
.facts div { display: flex; flex-direction: column; } .facts b { font-size: 1.3rem; font-weight: 600; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 430px), 1fr)); gap: 1rem;
  margin-bottom: 1rem; align-items: start; }
.charts .card { margin: 0; }
.charts svg { width: 100%; max-width: 470px; height: auto; display: block; margin: .5rem 0 .25rem; }
figure { margin: 0; } figcaption { color: var(--soft); font-size: .85rem; }
.scroll { overflow-x: auto; } table { border-collapse: separate; border-spacing: 0; width: 100%; font-size: .88rem; }
th, td { text-align: left; vertical-align: top; padding: .4rem .9rem .4rem 0; border-top: 1px solid var(--line); }
th { color: var(--soft); font-weight: 500; border-top: 0; vertical-align: bottom; }
.number { text-align: right; min-width: 4.5rem; font-variant-numeric: tabular-nums; } td.number { white-space: nowrap; }
.name { overflow-wrap: break-word; min-width: 11rem; }
.prose .name { min-width: 8rem; } .prose th { width: 25%; }
nav { margin-top: 1.25rem; font-size: .9rem; }
nav a { margin-right: 1.1rem; display: inline-block; }
@media (max-width: 640px) {
  body { padding: 1.25rem .75rem 3rem; } .card { padding: .75rem; }
  .name { position: sticky; left: 0; background: var(--card); min-width: 9rem; }
  .prose .name { position: static; } .prose tr:first-child { display: none; }
  .prose tr { display: block; padding: .5rem 0; }
  .prose td { display: block; border: 0; padding: .15rem 0; } .prose tr + tr + tr { border-top: 1px solid var(--line); }
  .prose td::before { content: attr(data-label) " "; color: var(--soft); font-size: .8rem; display: block; }
}
@media print {
  body { max-width: none; padding: 0; font-size: 9.5pt; background: none; } nav { display: none; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  .card, tr, svg { break-inside: avoid; } h2 { break-after: avoid; } .scroll { overflow: visible; }
  .card:has(table) { break-inside: auto; } .charts { grid-template-columns: 1fr 1fr; }
  table { font-size: 7.5pt; } th, td { padding-right: .4rem; } .name { min-width: 9rem; }
  .number { min-width: 0; } a { color: inherit; }
}
"""
HIDDEN = 'width="0" height="0" style="position: absolute" aria-hidden="true"'


def save_html(document: Document, path: Path) -> None:
    """Write the page whole or not at all."""
    with atomic_text_file(path) as file:
        file.writelines(f"{part}\n" for part in _page(document))


def _page(document: Document) -> Iterator[str]:
    yield '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>{shown(document.title)}</title>\n<style>{THEME}{PAGE_STYLE}{STYLE}</style>\n</head>\n<body>"
    yield f"<svg {HIDDEN}>{patterns()}</svg>"
    yield f'<h1>{shown(document.title)}</h1>\n<p class="soft">{shown(document.subtitle)}</p>'
    yield '<div class="facts">'
    for name, value in document.facts.items():
        yield f'<div><b>{shown(value)}</b><span class="soft">{shown(name)}</span></div>'
    yield "</div>\n<nav>"
    yield from (f'<a href="#part-{i}">{shown(part.title)}</a>' for i, part in enumerate(document.sections))
    yield "</nav>"
    for i, section in enumerate(document.sections):
        yield f'<h2 id="part-{i}">{shown(section.title)}</h2>'
        yield from _blocks(section)
    yield "</body>\n</html>"


def _blocks(section: Section) -> Iterator[str]:
    for are_figures, blocks in groupby(section.blocks, key=lambda block: isinstance(block, Figure)):
        if are_figures:
            yield '<div class="charts">\n' + "\n".join(map(_figure, blocks)) + "\n</div>"
        else:
            yield from (_table(block) if isinstance(block, Table) else _paragraph(block) for block in blocks)


def _figure(figure: Figure) -> str:
    caption = f"\n<figcaption>{shown(figure.note)}</figcaption>" if figure.note else ""
    return f'<figure class="card">\n<h3>{shown(figure.title)}</h3>\n{figure.drawing.inline}{caption}\n</figure>'


def _paragraph(paragraph: Paragraph) -> str:
    kind = "card finding" if paragraph.kind == "finding" else paragraph.kind
    return f'<p class="{kind}">{_inline(paragraph.content)}</p>'


def _table(table: Table) -> str:
    is_text = [table.is_prose or i < table.num_text for i in range(len(table.columns))]
    kinds = ["name", *("text" if text else "number" for text in is_text[1:])]
    head = "".join(f'<th class="{kind}">{shown(title)}</th>' for kind, title in zip(kinds, table.columns, strict=True))
    rows = "\n".join(_row(table.columns, kinds, row) for row in table.rows)
    style = ' class="prose"' if table.is_prose else ""
    return f'<div class="card scroll"><table{style}>\n<tr>{head}</tr>\n{rows}\n</table></div>'


def _row(columns, kinds: list[str], row) -> str:
    cells = zip(columns, kinds, row, strict=True)
    inner = (f'<td class="{kind}" data-label="{shown(title)}">{_inline(cell)}</td>' for title, kind, cell in cells)
    return f"<tr>{''.join(inner)}</tr>"


def _inline(content: Inline) -> str:
    return "".join(
        f'<a href="{shown(part.href)}">{shown(part.text)}</a>' if isinstance(part, Link) else shown(part)
        for part in parts(content)
    )
