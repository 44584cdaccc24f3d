"""The command `study report`: all runs of a study as one page, and the fitted model beside them."""

import argparse
from pathlib import Path
from typing import Any

MODEL = "fitted.json"


def add_parser(actions: Any) -> None:
    """`report`."""
    parser = actions.add_parser("report", help="what a study's runs say: tables, charts, a model, what it costs")
    parser.add_argument("folder", type=Path, metavar="DIR", help="of the study's runs")
    parser.add_argument("--html", type=Path, metavar="FILE", help="a page; default without --markdown: DIR/report.html")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="for a README; its charts lie beside it")
    parser.add_argument("--title", metavar="TEXT", help="default: the folder's name")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
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
