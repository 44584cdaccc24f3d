"""`bench scaling`: what the second, the eighth device is worth.

The same training steps, of noise in memory, inside `Trainer.fit` with the usual callbacks, on one device and on
several. Each number of devices takes its turn in each repetition, in processes of its own (torchrun), so that a host
that slows down slows down all of them. One global step is `--batch-seconds` on any number of devices (strong scaling),
or with `--weak` so much on each.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from w2v_lightning.bench import in_fit
from w2v_lightning.bench.settings import PRECISIONS, weights_and_config
from w2v_lightning.bench.side import Memory, Passes
from w2v_lightning.bench.stepper import Machine
from w2v_lightning.bench.workload import Workload, like_librispeech, workloads
from w2v_lightning.data.batch import InputSpec
from w2v_lightning.errors import InputError
from w2v_lightning.module import Wav2Vec2CTC
from w2v_lightning.runtime.files import atomic_text_file
from w2v_lightning.runtime.hardware import device_name, versions
from w2v_lightning.runtime.precision import choose_precision
from w2v_lightning.strategies.ddp import PlannedDDPStrategy
from w2v_lightning.strategies.group import leave_group
from w2v_lightning.telemetry.profile import Profile


@dataclass(frozen=True)
class Turn:
    """One run on so many devices."""

    devices: int
    audio_s_per_s: float  # median over its passes
    communication: dict[str, Any] | None  # as throughput.json has it

    def __str__(self) -> str:
        found = self.communication
        waits = ", {exposed_ms_median:.2f} ms exposed, {waiting_ms_median:.2f} waiting".format(**found) if found else ""
        return f"{self.devices} devices: {self.audio_s_per_s:,.0f} audio-s/s{waits}"


def add_parser(benchmarks: argparse._SubParsersAction) -> None:
    parser = benchmarks.add_parser("scaling", help="audio-seconds per second on one and on several devices")
    add = parser.add_argument
    add("--devices", type=int, nargs="+", default=[1, 2], help="numbers to compare (default: 1 2)")
    add("--model", default="base", help="base, large, a model folder, or a config as JSON (default %(default)s)")
    add("--precision", choices=PRECISIONS, default=choose_precision("auto")[0], help="(default %(default)s)")
    add("--batch-seconds", type=float, default=1600.0, help="audio per step (default %(default)g)")
    add("--device-seconds", type=float, default=1000.0, help="audio per micro-batch (default %(default)g)")
    add("--steps", type=int, default=8, help="different steps in a pass (default %(default)d)")
    add("--passes", type=int, default=8, help="over these steps, timed in a turn (default %(default)d)")
    add("--repetitions", type=int, default=2, help="turns of each number of devices (default %(default)d)")
    add("--weak", action="store_true", help="--batch-seconds on each device")
    add("--ddp", action="store_true", help="DDP on a single device, too: what it costs before there is a network")
    add("--sigterm", choices=("ours", "lightning"), default="ours", help="how ranks agree on it (default %(default)s)")
    add("--profile", type=Path, metavar="FOLDER", help="one more turn of each, profiled: where a step's time goes")
    add("--json", type=Path, metavar="FILE", help="write all figures there")
    add("--share-in", type=Path, help=argparse.SUPPRESS)  # a rank of a turn writes what it has measured there
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Take all turns, print the table, write the JSON file.

    Raises:
        InputError: there are not so many devices, an option cannot be, or a turn has failed.
    """
    if options.share_in:
        return _measure_share(options)
    _check(options)
    turns = []
    for _ in range(options.repetitions):
        for devices in options.devices:
            turns.append(_turn(options, devices))
            print(turns[-1], flush=True)
    _show(turns)
    if options.json:
        _write(options, turns)
    for devices in options.devices if options.profile else ():
        _turn(options, devices, profile_in=options.profile / f"{devices}-devices")
    return None


def _check(options: argparse.Namespace) -> None:
    for name in ("repetitions", "steps", "passes", "batch_seconds", "device_seconds"):
        if not getattr(options, name) > 0:
            raise InputError(f"--{name.replace('_', '-')} must be above 0, found {getattr(options, name):g}.")
    most = torch.cuda.device_count() if torch.cuda.is_available() else os.cpu_count()
    for devices in options.devices:
        if not 1 <= devices <= most:
            raise InputError(f"--devices has {devices}, but this host has {most}.")


def _turn(options: argparse.Namespace, devices: int, profile_in: Path | None = None) -> Turn:
    """In processes of its own, which each write their share."""
    with tempfile.TemporaryDirectory() as folder:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(devices)]
        command = [sys.executable, *launcher, "-m", "w2v_lightning", "bench", "scaling", "--share-in", folder]
        for name in ("model", "precision", "batch_seconds", "device_seconds", "steps", "passes", "sigterm"):
            command += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
        command += [f"--{name}" for name in ("weak", "ddp") if getattr(options, name)]
        command += ["--profile", str(profile_in)] if profile_in else []
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 (ourselves)
        if done.returncode:
            raise InputError(f"On {devices} devices training failed:\n{done.stderr.strip()}")
        if profile_in:
            print(f"{devices} devices:\n{done.stdout}", flush=True)
        shares = [json.loads(path.read_text()) for path in sorted(Path(folder).glob("*.json"))]
    return Turn(devices, sum(share["audio_s"] for share in shares) / shares[0]["pass_s"], shares[0]["communication"])


def _measure_share(options: argparse.Namespace) -> None:
    """One rank of a turn."""
    rank, local_rank, world_size = (int(os.environ[name]) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))
    device = torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.manual_seed(0)
    module = Wav2Vec2CTC(*weights_and_config(options.model))
    workload = _workload(options, module.input_spec, rank, world_size)
    passes = Passes("ours", "", workload, Memory(Machine(device, options.precision)))
    strategy = PlannedDDPStrategy() if world_size > 1 or options.ddp else "auto"
    settings = {"devices": world_size, "strategy": strategy, "is_sigterm_lightnings": options.sigterm == "lightning"}
    settings["callbacks"] = [Profile(Console(width=100), options.profile)] if options.profile else []
    throughput = in_fit.fit(module, passes, options.passes, **settings)
    share = {"audio_s": workload.audio_s, "pass_s": statistics.median(passes.seconds)}
    share["communication"] = throughput.communication
    (options.share_in / f"{rank:04}.json").write_text(json.dumps(share))
    leave_group()


def _workload(options: argparse.Namespace, spec: InputSpec, rank: int, world_size: int) -> Workload:
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
    for column in ("devices", "audio-s/s", "times the first", "per device", "exposed ms", "of which waiting"):
        table.add_column(column, justify="right")
    for row in summary(turns):
        found = row["communication"] or {}
        milliseconds = (f"{found[name]:.2f}" if found else "" for name in ("exposed_ms_median", "waiting_ms_median"))
        rates = f"{row['audio_s_per_s']:,.0f}", f"{row['speed_up']:.3f}", f"{100 * row['efficiency']:.1f} %"
        table.add_row(str(row["devices"]), *rates, *milliseconds)
    console = Console()
    console.width = max(console.width, 100)
    console.print(table)


def summary(turns: list[Turn]) -> list[dict[str, Any]]:
    """Medians over the turns of each number of devices, beside the first number; communication is the last turn's."""
    rows = []
    for devices in dict.fromkeys(turn.devices for turn in turns):
        of = [turn for turn in turns if turn.devices == devices]
        row = {"devices": devices, "audio_s_per_s": statistics.median(turn.audio_s_per_s for turn in of)}
        row["speed_up"] = row["audio_s_per_s"] / (rows[0] if rows else row)["audio_s_per_s"]
        row["efficiency"] = row["speed_up"] * turns[0].devices / devices
        rows.append(row | {"communication": of[-1].communication})
    return rows


def _write(options: argparse.Namespace, turns: list[Turn]) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    asked = {name: value for name, value in vars(options).items() if name not in ("run", "json", "share_in", "profile")}
    report = {"options": asked, "device": device_name(device), "versions": versions(), "rows": summary(turns)}
    with atomic_text_file(options.json) as file:
        json.dump(report | {"turns": [asdict(turn) for turn in turns]}, file, indent=1)
