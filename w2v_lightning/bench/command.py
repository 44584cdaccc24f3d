"""`bench WHAT ...`: measure a part of the trainer on this machine."""

import argparse
from collections.abc import Sequence

from w2v_lightning.bench import allreduce, loader, scaling, step, transcribe


def main(args: Sequence[str]) -> None:
    """Run the benchmark that the first argument names."""
    parser = argparse.ArgumentParser(prog="python -m w2v_lightning bench", description=__doc__)
    benchmarks = parser.add_subparsers(dest="benchmark", required=True, metavar="WHAT")
    loader.add_parser(benchmarks)
    step.add_parser(benchmarks)
    transcribe.add_parser(benchmarks)
    allreduce.add_parser(benchmarks)
    scaling.add_parser(benchmarks)
    options = parser.parse_args(args)
    options.run(options)
