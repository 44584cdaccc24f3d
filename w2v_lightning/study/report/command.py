"""The command `study report`: all runs of a study on one page, and the fitted model beside them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from w2v_lightning import command_line

COMMAND, POSITIONAL = "study report", ("folder",)
MODEL = "fitted.json"


@dataclass(frozen=True)
class ReportOptions:
    """Report the runs of a study: tables, charts, the fitted model, costs.

    Args:
        folder: folder of the study's runs.
        html: HTML file to write; default without --markdown: report.html in the folder.
        markdown: Markdown file to write, for a README; its charts are written to a folder beside it.
        title: title of the report; default: the folder's name.
    """

    folder: Path
    html: Path | None = None
    markdown: Path | None = None
    title: str | None = None


def parser() -> command_line.Parser:
    """Return the parser of the command."""
    return command_line.parser_of(ReportOptions, COMMAND, POSITIONAL)


def main(args: Sequence[str]) -> int:
    """Write the report and the fitted model, and print the paths of the reports."""
    options = command_line.parse(ReportOptions, COMMAND, args, POSITIONAL)

    from w2v_lightning.reporting.html import save_html
    from w2v_lightning.reporting.markdown import save_markdown
    from w2v_lightning.study.report.configurations import load
    from w2v_lightning.study.report.sections import document, fitted_or_why

    html = options.html or (None if options.markdown else options.folder / "report.html")
    fitted = fitted_or_why(load(options.folder, options.folder))
    if not isinstance(fitted, str):
        fitted.save(options.folder / MODEL)
    for path, save in ((html, save_html), (options.markdown, save_markdown)):
        if path:
            save(document(load(options.folder, path), fitted, options.title), path)
            print(path)
    return 0
