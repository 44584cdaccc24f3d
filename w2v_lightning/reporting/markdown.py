"""A report as Markdown, for a README; its charts are SVG files in a folder beside it."""

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from w2v_lightning.reporting.document import Block, Bullets, Document, Figure, Inline, Link, Table, parts
from w2v_lightning.reporting.units import printable
from w2v_lightning.runtime.files import atomic_text_file

SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~&])")  # characters that Markdown or HTML would interpret


def save_markdown(document: Document, path: Path) -> None:
    """Write the charts, then the text, each complete or not at all."""
    folder = path.with_suffix(".charts")
    figures = [block for section in document.sections for block in section.blocks if isinstance(block, Figure)]
    for figure in figures:
        with atomic_text_file(folder / f"{figure.name}.svg") as file:
            file.write(figure.chart.standalone)
    with atomic_text_file(path) as file:
        file.writelines(f"{line}\n" for line in _lines(document, folder.name))


def _lines(document: Document, charts: str) -> Iterator[str]:
    yield f"# {_escaped(document.title)}\n\n{_escaped(document.subtitle)}\n"
    yield from (f"- {_escaped(name)}: **{_escaped(value)}**" for name, value in document.facts.items())
    for section in document.sections:
        yield f"\n## {_escaped(section.title)}"
        for block in section.blocks:
            yield ""
            yield from _block(block, charts)


def _block(block: Block, charts: str) -> Iterator[str]:
    if isinstance(block, Table):
        yield from [f"**{_inline(block.title)}**\n"] if block.title else []
        yield _row([_escaped(title) for title in block.columns])
        yield _row(["---:" if kind == "number" else "---" for kind in block.kinds])
        yield from (_row([_inline(cell) for cell in row]) for row in block.rows)
    elif isinstance(block, Figure):
        yield f"![{_escaped(block.title)}]({quote(f'{charts}/{block.name}.svg')})"
        yield from [f"\n{_escaped(block.note)}"] if block.note else []
    elif isinstance(block, Bullets):
        yield from (f"- {_inline(item)}" for item in block.items)
    else:
        stands_out = block.kind in ("finding", "problem")
        yield f"**{_inline(block.content)}**" if stands_out else _inline(block.content)


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _inline(content: Inline) -> str:
    texts = ((_escaped(part if isinstance(part, str) else part.text), part) for part in parts(content))
    return "".join(f"[{text}]({part.href})" if isinstance(part, Link) else text for text, part in texts)


def _escaped(text: str) -> str:
    """Escape text from files: nothing in it may become markup."""
    return SPECIAL.sub(r"\\\1", printable(text))
