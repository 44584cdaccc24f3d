"""`python -m launch COMMAND ...`: training jobs on SageMaker."""

import argparse
import sys

from launch import jobs, submit
from launch.service_errors import explained
from launch.study import command as study
from launch.study.planning import recommend
from w2v_lightning.errors import InputError


def main(args: list[str] | None = None) -> int:
    """Run a command; returns the exit status. Wrong input, and what AWS refuses, end in one line on standard error."""
    options = parse(args)
    try:
        with explained():
            status = options.run(options)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return status or 0


def parse(args: list[str] | None) -> argparse.Namespace:
    """The options of a command, whose `run` carries it out; argparse ends the program where they are wrong."""
    parser = argparse.ArgumentParser(prog="python -m launch", description="Training jobs on SageMaker.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    submit.add_parser(commands)
    jobs.add_parser(commands)
    study.add_parser(commands)
    recommend.add_parser(commands)
    options, others = parser.parse_known_args(args)
    if "overrides" in options:
        options.overrides = others
    elif others:
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    return options


if __name__ == "__main__":
    sys.exit(main())
