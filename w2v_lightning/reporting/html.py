"""A report as one HTML page that needs nothing else: no script, font, image or network."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from w2v_lightning.reporting.document import Document, parts
from w2v_lightning.reporting.units import printable
from w2v_lightning.runtime.files import atomic_text_file


def save_html(document: Document, path: Path) -> None:
    """Write the page complete or not at all."""
    page = _environment().get_template("page.html.j2").render(document=document)
    with atomic_text_file(path) as file:
        file.write(page)


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("w2v_lightning.reporting"),
        autoescape=True,  # names, texts and reasons come from files: nothing in them may become markup
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"parts": parts, "kind_of": lambda block: type(block).__name__}
    return environment


def _shown(value: Any) -> Any:
    return printable(value) if isinstance(value, str) and not hasattr(value, "__html__") else value
