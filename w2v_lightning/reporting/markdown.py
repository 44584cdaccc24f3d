"""A report as Markdown, for a README; its charts are SVG files in a folder beside it."""

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from w2v_lightning.reporting.document import Document, Figure, Inline, Link, Paragraph, Table, parts
from w2v_lightning.reporting.units import printable
from w2v_lightning.runtime.files import atomic_text_file

SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~&])")  # what Markdown or HTML would take for its own


def save_markdown(document: Document, path: Path) -> None:
    """The charts, then the text, each whole or not at all."""
    folder = path.with_suffix(".charts")
    figures = [block for section in document.sections for block in section.blocks if isinstance(block, Figure)]
    for figure in figures:
        with atomic_text_file(folder / f"{figure.name}.svg") as file:
            file.write(figure.drawing.standalone)
    with atomic_text_file(path) as file:
        file.writelines(f"{line}\n" for line in _lines(document, folder.name))


def _lines(document: Document, charts: str) -> Iterator[str]:
    yield f"# {_shown(document.title)}\n\n{_shown(document.subtitle)}\n"
    yield from (f"- {_shown(name)}: **{_shown(value)}**" for name, value in document.facts.items())
    for section in document.sections:
        yield f"\n## {_shown(section.title)}"
        for block in section.blocks:
            yield from _block(block, charts)


def _block(block: Paragraph | Table | Figure, charts: str) -> Iterator[str]:
    yield ""
    if isinstance(block, Table):
        yield from _table(block)
    elif isinstance(block, Figure):
        yield f"![{_shown(block.title)}]({quote(f'{charts}/{block.name}.svg')})"
        yield from ([f"\n{_shown(block.note)}"] if block.note else [])
    else:
        content = _inline(block.content)
        yield {"finding": f"**{content}**", "item": f"- {content}"}.get(block.kind, content)


def _table(table: Table) -> Iterator[str]:
    yield _row([_shown(title) for title in table.columns])
    is_text = [table.is_prose or i < table.num_text for i in range(len(table.columns))]
    yield _row(["---" if text else "---:" for text in is_text])
    yield from (_row([_inline(cell) for cell in row]) for row in table.rows)


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _inline(content: Inline) -> str:
    return "".join(
        f"[{_shown(part.text)}]({part.href})" if isinstance(part, Link) else _shown(part) for part in parts(content)
    )


def _shown(text: str) -> str:
    """Names and reasons come from files: nothing in them may become markup."""
    return SPECIAL.sub(r"\\\1", printable(text))
