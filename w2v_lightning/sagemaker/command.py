"""`python -m w2v_lightning COMMAND ...`: training jobs on SageMaker."""

import argparse
import sys

from w2v_lightning.errors import InputError
from w2v_lightning.sagemaker import jobs, plan_command, submit
from w2v_lightning.sagemaker import study_command as study
from w2v_lightning.sagemaker.aws_errors import explained


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
    parser = argparse.ArgumentParser(prog="python -m w2v_lightning", description="Training jobs on SageMaker.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    submit.add_parser(commands)
    jobs.add_parser(commands)
    study.add_parser(commands)
    plan_command.add_parser(commands)
    options, others = parser.parse_known_args(args)
    if "overrides" in options:
        options.overrides = others
    elif others:
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    return options


if __name__ == "__main__":
    sys.exit(main())
