"""Benchmark `bench scaling`: speed of the same training steps on one device and on several.

The steps, of noise in memory, run inside `Trainer.fit` with the usual callbacks. Each number of devices takes a turn in
each repetition, in its own processes (torchrun), so that a change in the speed of the host affects all of them. One
global step has `--batch_seconds` of audio on any number of devices (strong scaling), or on each device with `--weak`.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import SUPPRESS
from jsonargparse.typing import PositiveFloat, PositiveInt
from rich import box
from rich.console import Console
from rich.table import Table

from w2v_lightning.bench import in_fit
from w2v_lightning.bench.settings import default_precision, weights_and_config
from w2v_lightning.bench.side import Memory, Passes
from w2v_lightning.bench.stepper import Machine, Precision
from w2v_lightning.bench.workload import Workload, like_librispeech, workloads
from w2v_lightning.command_line import Parser, parse, parser_of
from w2v_lightning.data.batch import InputSpec
from w2v_lightning.errors import InputError
from w2v_lightning.module import Wav2Vec2CTC
from w2v_lightning.runtime.files import atomic_text_file
from w2v_lightning.runtime.hardware import device_name, versions
from w2v_lightning.strategies.ddp import PlannedDDPStrategy
from w2v_lightning.strategies.group import leave_group
from w2v_lightning.telemetry.profile import Profile

WAITS = ("exposed_ms_median", "waiting_ms_median")  # columns of the table, keys of throughput.json


@dataclass(frozen=True)
class Turn:
    """Run on a number of devices."""

    devices: int
    audio_s_per_s: float  # median over its passes
    communication: dict[str, Any] | None  # same keys as in throughput.json

    def __str__(self) -> str:
        waits = ", {exposed_ms_median:.2f} ms exposed, {waiting_ms_median:.2f} waiting"
        waits = waits.format(**self.communication) if self.communication else ""
        return f"{self.devices} devices: {self.audio_s_per_s:,.0f} audio-s/s{waits}"


@dataclass(frozen=True)
class ScalingOptions:
    """Measure audio-seconds per second on one and on several devices.

    Args:
        devices: numbers of devices to compare.
        model: name (base or large, random weights), model folder, or JSON file of a config.
        precision: precision of the computation; default: the best for this machine.
        batch_seconds: audio per step, in seconds.
        device_seconds: audio per micro-batch, in seconds.
        steps: number of different steps in a pass.
        passes: number of timed passes in a turn.
        repetitions: number of turns of each number of devices.
        weak: weak scaling, that is, batch_seconds on each device.
        ddp: DDP on a single device, too, to measure its cost without a network.
        sigterm: agreement of the ranks on a SIGTERM, by our callback or by Lightning.
        profile: folder for traces of one more turn of each number of devices, which show where a step's time goes.
        json: file to write all figures to.
        share_in: folder in which a rank of a turn writes its measurements.
    """

    # A stored list replaces the default; other lists are appended to it.
    devices: list[int] = field(default_factory=lambda: [1, 2], metadata={"action": "store"})
    model: str = "base"
    precision: Precision = field(default_factory=default_precision)
    batch_seconds: PositiveFloat = 1600.0
    device_seconds: PositiveFloat = 1000.0
    steps: PositiveInt = 8
    passes: PositiveInt = 8
    repetitions: PositiveInt = 2
    weak: bool = False
    ddp: bool = False
    sigterm: Literal["ours", "lightning"] = "ours"
    profile: Path | None = None
    json: Path | None = None
    share_in: Path | None = field(default=None, metadata={"help": SUPPRESS})  # only given by this command itself


def parser() -> Parser:
    """Return the parser of this command."""
    return parser_of(ScalingOptions, "bench scaling")


def main(args: Sequence[str]) -> int:
    """Measure all turns, print the table, and write the JSON file; return the exit status.

    Raises:
        InputError: this host has too few devices, an option is invalid, or a turn failed.
    """
    options = parse(ScalingOptions, "bench scaling", args)
    if options.share_in:
        _measure_share(options, options.share_in)
        return 0
    _check_devices(options.devices)
    turns = []
    for _ in range(options.repetitions):
        for devices in options.devices:
            turns.append(_turn(options, devices))
            print(turns[-1], flush=True)
    _show(turns)
    if options.json:
        _write(options.json, options, turns)
    if options.profile:
        for devices in options.devices:
            _turn(options, devices, profile_in=options.profile / f"{devices}-devices")
    return 0


def _check_devices(numbers: Sequence[int]) -> None:
    most = torch.cuda.device_count() if torch.cuda.is_available() else os.cpu_count() or 1
    for devices in numbers:
        if not 1 <= devices <= most:
            raise InputError(f"--devices has {devices}, but this host has {most}.")


def _turn(options: ScalingOptions, devices: int, profile_in: Path | None = None) -> Turn:
    """Train in new processes, and collect the measurements that each of them writes."""
    with tempfile.TemporaryDirectory() as folder:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(devices)]
        command = [sys.executable, *launcher, "-m", "w2v_lightning", "bench", "scaling", "--share_in", folder]
        for name in ("model", "precision", "batch_seconds", "device_seconds", "steps", "passes", "sigterm"):
            command += [f"--{name}", str(getattr(options, name))]
        command += [f"--{name}" for name in ("weak", "ddp") if getattr(options, name)]
        command += ["--profile", str(profile_in)] if profile_in else []
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 (this program)
        if done.returncode:
            raise InputError(f"Training on {devices} devices failed:\n{done.stderr.strip()}")
        if profile_in:
            print(f"{devices} devices:\n{done.stdout}", flush=True)
        shares = [json.loads(path.read_text()) for path in sorted(Path(folder).glob("*.json"))]
    return Turn(devices, sum(share["audio_s"] for share in shares) / shares[0]["pass_s"], shares[0]["communication"])


def _measure_share(options: ScalingOptions, folder: Path) -> None:
    """Train as one rank of a turn, and write its measurements to `folder`."""
    rank, local_rank, world_size = (int(os.environ[name]) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))
    device = torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.manual_seed(0)
    module = Wav2Vec2CTC(*weights_and_config(options.model))
    workload = _workload(options, module.input_spec, rank, world_size)
    passes = Passes("ours", "", workload, Memory(Machine(device, options.precision)))
    strategy = PlannedDDPStrategy() if world_size > 1 or options.ddp else "auto"
    throughput = in_fit.fit(
        module,
        passes,
        options.passes,
        devices=world_size,
        strategy=strategy,
        uses_lightnings_sigterm=options.sigterm == "lightning",
        callbacks=[Profile(Console(width=100), options.profile)] if options.profile else [],
    )
    share = {
        "audio_s": workload.audio_s,
        "pass_s": statistics.median(passes.seconds),
        "communication": throughput.communication,
    }
    (folder / f"{rank:04}.json").write_text(json.dumps(share))
    leave_group()


def _workload(options: ScalingOptions, spec: InputSpec, rank: int, world_size: int) -> Workload:
    return workloads(
        like_librispeech(spec),
        spec,
        batch_seconds=options.batch_seconds * (world_size if options.weak else 1),
        device_seconds=[options.device_seconds],
        num_steps=options.steps,
        pin=torch.cuda.is_available(),
        rank=rank,
        world_size=world_size,
    )[options.device_seconds]


def _show(turns: list[Turn]) -> None:
    table = Table(box=box.SIMPLE)
    for column in ("devices", "audio-s/s", "times the first", "per device", "exposed ms", "thereof waiting"):
        table.add_column(column, justify="right")
    for row in summary(turns):
        communication = row["communication"] or {}
        waits = (f"{communication[name]:.2f}" if communication else "" for name in WAITS)
        rates = f"{row['audio_s_per_s']:,.0f}", f"{row['speed_up']:.3f}", f"{100 * row['efficiency']:.1f} %"
        table.add_row(str(row["devices"]), *rates, *waits)
    console = Console()
    console.width = max(console.width, 100)
    console.print(table)


def summary(turns: list[Turn]) -> list[dict[str, Any]]:
    """Return for each number of devices the medians over its turns, and its last turn's communication.

    Speed-up and efficiency are relative to the first number of devices.
    """
    rows: list[dict[str, Any]] = []
    for devices in dict.fromkeys(turn.devices for turn in turns):
        repetitions = [turn for turn in turns if turn.devices == devices]
        audio_s_per_s = statistics.median(turn.audio_s_per_s for turn in repetitions)
        speed_up = audio_s_per_s / (rows[0]["audio_s_per_s"] if rows else audio_s_per_s)
        rows.append(
            {
                "devices": devices,
                "audio_s_per_s": audio_s_per_s,
                "speed_up": speed_up,
                "efficiency": speed_up * turns[0].devices / devices,
                "communication": repetitions[-1].communication,
            }
        )
    return rows


def _write(path: Path, options: ScalingOptions, turns: list[Turn]) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    given = {name: value for name, value in vars(options).items() if name not in ("json", "share_in", "profile")}
    given = {"benchmark": "scaling"} | given
    report = {"options": given, "device": device_name(device), "versions": versions(), "rows": summary(turns)}
    with atomic_text_file(path) as file:
        json.dump(report | {"turns": [asdict(turn) for turn in turns]}, file, indent=1)
