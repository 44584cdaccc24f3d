"""Parts of a report, whether it becomes HTML or Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from w2v_lightning.reporting.charts import Chart


@dataclass(frozen=True)
class Link:
    """Text that leads to a file, relative to the report, or to a URL."""

    text: str
    href: str


@dataclass(frozen=True)
class Level:
    """Text in the colour of how bad it is."""

    text: str
    level: Literal["good", "warning", "bad"]


Part = str | Link | Level
Inline = Part | Sequence[Part]


@dataclass(frozen=True)
class Paragraph:
    """Text; a note is smaller, a finding stands out, a problem stands out in red."""

    content: Inline
    kind: Literal["text", "note", "finding", "problem"] = "text"


@dataclass(frozen=True)
class Bullets:
    """List of sentences."""

    items: Sequence[Inline]


@dataclass(frozen=True)
class Table:
    """Rows under column titles.

    Args:
        columns: titles.
        rows: one entry for each column.
        num_text: number of columns of text, which come first; numbers follow, aligned to the right.
        is_prose: the cells are sentences: on a narrow screen each row becomes a block.
        title: title of the table; with one it can be folded away.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Inline]]
    num_text: int = 1
    is_prose: bool = False
    title: Inline = ""

    @property
    def kinds(self) -> list[str]:
        """Kind of each column: "name" for the first, "text" or "number"."""
        others = range(1, len(self.columns))
        return ["name", *("text" if self.is_prose or i < self.num_text else "number" for i in others)]


@dataclass(frozen=True)
class Figure:
    """Chart with a title; `name` is the name of its file where it has one."""

    name: str
    title: str
    chart: Chart
    note: str = ""


Block = Paragraph | Bullets | Table | Figure


@dataclass(frozen=True)
class Section:
    """Blocks under a heading; figures that follow each other stand side by side where there is room."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Document:
    """Report; `facts` are numbers that stand out at its head, by their names."""

    title: str
    subtitle: str
    facts: dict[str, str] = field(default_factory=dict)
    sections: Sequence[Section] = ()


def parts(content: Inline) -> list[Part]:
    """Return the parts of a line, whether it has one or several."""
    return [content] if isinstance(content, str | Link | Level) else list(content)
