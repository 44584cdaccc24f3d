"""Command `study ACTION ...`: measure hardware and prices, and report on them."""

from collections.abc import Sequence

from w2v_lightning import command_line

ABOUT = "Measure hardware in a matrix of runs, and report on them."
# Each action, with the module whose main(args) runs it and what it does.
COMMANDS = {
    "run": ("w2v_lightning.sagemaker.study_run", "run every cell of a study that has not been run"),
    "prices": ("w2v_lightning.sagemaker.refresh_prices", "list prices and their age, or fetch new ones from AWS"),
    "report": ("w2v_lightning.study.report.command", "write tables, charts and a fitted model of a study's runs"),
}


def main(args: Sequence[str]) -> int:
    """Run the action that the first argument names; return the exit status."""
    return command_line.run(COMMANDS, "python -m w2v_lightning study", ABOUT, args)
