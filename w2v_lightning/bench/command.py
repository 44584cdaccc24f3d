"""Command `bench NAME ...`: measure a part of the trainer on this machine."""

from collections.abc import Sequence

from w2v_lightning import command_line

ABOUT = "Measure a part of the trainer on this machine."
# Each benchmark, with the module whose main(args) runs it and what it measures.
COMMANDS = {
    "loader": ("w2v_lightning.bench.loader", "audio-seconds per second that loader workers deliver"),
    "step": ("w2v_lightning.bench.step", "optimiser steps per second, compared with stock transformers"),
    "transcribe": (
        "w2v_lightning.bench.transcribe",
        "audio transcribed per second, compared with transformers' pipeline",
    ),
    "allreduce": ("w2v_lightning.bench.allreduce", "latency and bandwidth between devices, under torchrun"),
    "scaling": ("w2v_lightning.bench.scaling", "audio-seconds per second on one and on several devices"),
    "busy": ("w2v_lightning.bench.busy", "training on a CPU that other programs use"),
}


def main(args: Sequence[str]) -> int:
    """Run the benchmark that the first argument names; return the exit status."""
    return command_line.run(COMMANDS, "python -m w2v_lightning bench", ABOUT, args)
