"""Benchmark `bench busy`: speed of training on a CPU that other programs use, with sleeping and with spinning threads.

A run of `fit` takes turns: on the machine as it is, and beside busy loops; with threads that sleep while they wait, as
`w2v_lightning` sets them (runtime/cores.py), and that spin, as they do without that setting.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from jsonargparse.typing import NonNegativeInt, PositiveInt
from rich import box
from rich.console import Console
from rich.table import Table

from w2v_lightning.command_line import Parser, parse, parser_of
from w2v_lightning.errors import InputError
from w2v_lightning.runtime.cores import SPINNING, usable_cores
from w2v_lightning.runtime.files import atomic_text_file

# GNU OpenMP, which torch's wheels for Linux bring, spins that often if no variable says otherwise.
THREADS = {"sleep": {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}, "spin": {"GOMP_SPINCOUNT": "300000"}}
# Ends with its parent, however that ends: nothing may stay behind on a machine that others use.
LOOP = "import os, sys\nwhile os.getppid() == int(sys.argv[1]): pass"


@dataclass(frozen=True)
class BusyOptions:
    """Measure how fast `fit` trains on a CPU, on the machine as it is and beside busy loops.

    Args:
        config: configuration of `fit`, such as configs/demo.yaml.
        steps: number of optimiser steps of each run.
        loops: number of busy loops; default: as many as usable cores.
        repetitions: number of runs for each row of the table.
        json: file to write all measurements to.
    """

    config: Path
    steps: PositiveInt = 40
    loops: NonNegativeInt | None = None
    repetitions: PositiveInt = 3
    json: Path | None = None


@dataclass(frozen=True)
class Run:
    """Figures of one run of `fit`."""

    threads: str  # name in THREADS
    loops: int
    audio_s_per_s: float
    load_before: float  # the system's load average of the last minute; includes that of earlier runs


def parser() -> Parser:
    """Return the parser of this command."""
    return parser_of(BusyOptions, "bench busy", positional=["config"])


def main(args: Sequence[str]) -> int:
    """Measure, print a table of medians, and write the JSON file; return the exit status."""
    options = parse(BusyOptions, "bench busy", args, positional=["config"])
    loops = usable_cores() if options.loops is None else options.loops
    runs = [
        measure(threads, number, options)
        for _ in range(options.repetitions)
        for number in dict.fromkeys((0, loops))
        for threads in THREADS
    ]
    Console().print(_table(runs))
    if options.json:
        settings = {"benchmark": "busy", "config": str(options.config), "steps": options.steps, "cores": usable_cores()}
        with atomic_text_file(options.json) as file:
            json.dump({"settings": settings, "runs": [asdict(run) for run in runs]}, file, indent=1)
    return 0


def measure(threads: str, loops: int, options: BusyOptions) -> Run:
    """Train beside a number of busy loops, with threads that wait in a way of THREADS.

    Raises:
        InputError: `fit` failed; the message has its last line.
    """
    inherited = {name: value for name, value in os.environ.items() if name not in SPINNING}
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder, busy_loops(loops):
        command = [sys.executable, "-m", "w2v_lightning", "fit", "--config", str(options.config)]
        command += ["--trainer.default_root_dir", folder, "--trainer.accelerator", "cpu", "--trainer.devices", "1"]
        command += ["--trainer.max_epochs", "-1", "--trainer.max_steps", str(options.steps)]
        command += ["--trainer.limit_val_batches", "0", "--trainer.num_sanity_val_steps", "0"]
        environment = inherited | THREADS[threads]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise InputError(f"fit --config {options.config} failed ({done.returncode}): {last}")
        (report,) = Path(folder).rglob("throughput.json")
        run = Run(threads, loops, json.loads(report.read_text(encoding="utf-8"))["audio_s_per_s"], load)
    print(f"threads {threads}, {loops} busy loops: {run.audio_s_per_s:.1f} audio-s/s (load {load:.1f})", flush=True)
    return run


@contextmanager
def busy_loops(number: int) -> Iterator[None]:
    """Keep `number` cores busy, as other programs would, until the end of this block."""
    loops = [subprocess.Popen([sys.executable, "-c", LOOP, str(os.getpid())]) for _ in range(number)]  # noqa: S603
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def _table(runs: Sequence[Run]) -> Table:
    """Return the table of medians, with their ratio to those of the same threads without busy loops."""
    table = Table("threads", "busy loops", "audio-s/s", "range", "of idle speed", "load before", box=box.SIMPLE)

    def speeds(threads: str, loops: int) -> list[float]:
        return [run.audio_s_per_s for run in runs if (run.threads, run.loops) == (threads, loops)]

    for threads, loops in dict.fromkeys((run.threads, run.loops) for run in runs):
        values = speeds(threads, loops)
        table.add_row(
            threads,
            str(loops),
            f"{statistics.median(values):.1f}",
            f"{min(values):.1f}-{max(values):.1f}",
            f"{statistics.median(values) / statistics.median(speeds(threads, 0)):.0%}",
            f"{statistics.median(run.load_before for run in runs if (run.threads, run.loops) == (threads, loops)):.1f}",
        )
    return table
