"""A report's parts, whatever they become: HTML or Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from w2v_lightning.reporting.drawing import Drawing


@dataclass(frozen=True)
class Link:
    """Text that leads to a file, relative to the report, or to a URL."""

    text: str
    href: str


Inline = str | Link | Sequence[str | Link]


@dataclass(frozen=True)
class Paragraph:
    """Text; a note is smaller, a finding stands out, items are a list."""

    content: Inline
    kind: str = ""  # or "note", "finding", "item"


@dataclass(frozen=True)
class Table:
    """Rows under titles.

    Args:
        columns: titles.
        rows: one entry for each column.
        num_text: the first so many columns are text; numbers stand behind them.
        is_prose: sentences: on a narrow screen each row becomes a block.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Inline]]
    num_text: int = 1
    is_prose: bool = False


@dataclass(frozen=True)
class Figure:
    """A chart; `name` is for its file where it has one."""

    name: str
    title: str
    drawing: Drawing
    note: str = ""


@dataclass(frozen=True)
class Section:
    """Under a heading; figures that follow each other stand side by side where there is room."""

    title: str
    blocks: Sequence[Paragraph | Table | Figure]


@dataclass(frozen=True)
class Document:
    """All of a report; `facts` are numbers that stand out at its head, by what they are."""

    title: str
    subtitle: str
    facts: dict[str, str] = field(default_factory=dict)
    sections: Sequence[Section] = ()


def parts(content: Inline) -> list[str | Link]:
    """Of a line, whether it has one or several."""
    return [content] if isinstance(content, str | Link) else list(content)
