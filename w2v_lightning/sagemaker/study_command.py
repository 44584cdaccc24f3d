"""`python -m w2v_lightning study ACTION ...`: what an action imports beyond argparse, it imports when it is run."""

from typing import Any

from w2v_lightning.sagemaker import refresh_prices, study_run
from w2v_lightning.study.report import command as report


def add_parser(commands: Any) -> None:
    """`study`, with an action for each part of it."""
    study = commands.add_parser("study", help="measure hardware and prices, and say what to train on")
    actions = study.add_subparsers(required=True, metavar="ACTION")
    study_run.add_parser(actions)
    refresh_prices.add_parser(actions)
    report.add_parser(actions)
