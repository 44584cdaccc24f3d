"""`python -m launch study ACTION ...`: what an action imports beyond argparse, it imports when it is run."""

from typing import Any

from launch.study import refresh
from launch.study.report import command as report
from launch.study.running import start


def add_parser(commands: Any) -> None:
    """`study`, with an action for each part of it."""
    study = commands.add_parser("study", help="measure hardware and prices, and say what to train on")
    actions = study.add_subparsers(required=True, metavar="ACTION")
    start.add_parser(actions)
    refresh.add_parser(actions)
    report.add_parser(actions)
