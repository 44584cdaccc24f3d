"""`bench allreduce`: how fast gradients travel between the processes that a launcher has started.

    torchrun --nproc_per_node 2 -m w2v_lightning bench allreduce

As nccl-tests has it: the algorithm bandwidth of a message of B bytes that takes t seconds is B / t. Each of n ranks
sends and receives 2 (n - 1) / n of it, so the bus bandwidth, B / t x 2 (n - 1) / n, is to be compared with the
hardware's, on any number of ranks.
"""

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich import box
from rich.console import Console
from rich.table import Table

from w2v_lightning.bench.settings import CONFIGS
from w2v_lightning.errors import InputError
from w2v_lightning.module import Wav2Vec2CTC
from w2v_lightning.runtime.files import atomic_text_file
from w2v_lightning.runtime.hardware import device_name, versions
from w2v_lightning.telemetry.all_reduce import LEAST_BYTES, bucket_bytes, exchange_s


@dataclass(frozen=True)
class Exchange:
    """All-reduces of so many bytes, one after the other or, as the buckets of a model, all at once."""

    what: str
    num_bytes: int
    num_messages: int
    seconds: float
    world_size: int

    @property
    def algorithm_bytes_per_s(self) -> float:
        return self.num_bytes / self.seconds

    @property
    def bus_bytes_per_s(self) -> float:
        return self.algorithm_bytes_per_s * 2 * (self.world_size - 1) / self.world_size


def add_parser(benchmarks: argparse._SubParsersAction) -> None:
    parser = benchmarks.add_parser("allreduce", help="latency and bandwidth between devices, under torchrun")
    parser.add_argument("--max-mib", type=int, default=512, help="largest message (default %(default)d)")
    parser.add_argument(
        "--models", nargs="*", choices=CONFIGS, default=list(CONFIGS), help="whose gradients to send (default: both)"
    )
    parser.add_argument("--repetitions", type=int, default=10, help="of each message (default %(default)d)")
    parser.add_argument("--backend", choices=("nccl", "gloo"), help="default: nccl where there are GPUs, else gloo")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Measure between the processes of the launcher; the first one prints and writes.

    Raises:
        InputError: there is one process alone, or an option cannot be.
    """
    _check(options)
    device = _join(options.backend)
    try:
        exchanges = measure(device, options.max_mib * 2**20, options.models, options.repetitions)
        if dist.get_rank() == 0:
            _show(exchanges, device)
            if options.json:
                _write(options.json, exchanges, device)
    finally:
        dist.destroy_process_group()


def measure(device: torch.device, most_bytes: int, models: Sequence[str], repetitions: int) -> list[Exchange]:
    """All-reduces of powers of two up to `most_bytes`, then of the gradients of `models`, of those in CONFIGS."""
    sizes = [2**i for i in range(LEAST_BYTES.bit_length() - 1, most_bytes.bit_length())]
    exchanges = [_exchange(_size(num_bytes), [num_bytes], device, repetitions) for num_bytes in sizes]
    for name in models:
        buckets = gradient_buckets(CONFIGS[name])
        exchanges.append(_exchange(f"gradients of {name}", buckets, device, repetitions))
    return exchanges


def gradient_buckets(config: dict[str, Any]) -> list[int]:
    """Bytes of each of the buckets in which DDP sends the gradients, float32, of a model as `fit` trains it."""
    with torch.device("meta"):
        module = Wav2Vec2CTC(None, config)
    return bucket_bytes(module.parameters())


def _check(options: argparse.Namespace) -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or "RANK" not in os.environ:
        raise InputError(
            "bench allreduce measures between processes, and this one is alone; start as many as there are devices:"
            " torchrun --nproc_per_node 2 -m w2v_lightning bench allreduce"
        )
    for name in ("max_mib", "repetitions"):
        if getattr(options, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} must be at least 1, found {getattr(options, name)}.")
    if options.backend == "nccl" and not torch.cuda.is_available():
        raise InputError("--backend is nccl, but torch finds no CUDA device here: use gloo.")


def _join(backend: str | None) -> torch.device:
    """Meet the other processes; what this one computes on."""
    backend = backend or ("nccl" if torch.cuda.is_available() else "gloo")
    if backend == "gloo":
        dist.init_process_group(backend)
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    dist.init_process_group(backend, device_id=device)
    return device


def _exchange(what: str, messages: list[int], device: torch.device, repetitions: int) -> Exchange:
    seconds = exchange_s(messages, device, repetitions)
    return Exchange(what, sum(messages), len(messages), seconds, dist.get_world_size())


def _show(exchanges: list[Exchange], device: torch.device) -> None:
    console = Console()
    console.print(f"{dist.get_world_size()} ranks over {dist.get_backend()}, {device_name(device)}", highlight=False)
    table = Table(box=box.SIMPLE)
    for column in ("message", "buckets", "ms", "algorithm GB/s", "bus GB/s"):
        table.add_column(column, justify="left" if column == "message" else "right")
    for found in exchanges:
        rates = (f"{rate / 1e9:.2f}" for rate in (found.algorithm_bytes_per_s, found.bus_bytes_per_s))
        buckets = str(found.num_messages) if found.num_messages > 1 else ""
        table.add_row(found.what, buckets, f"{1000 * found.seconds:.3f}", *rates)
    console.print(table)


def _write(path: Path, exchanges: list[Exchange], device: torch.device) -> None:
    rates = ("algorithm_bytes_per_s", "bus_bytes_per_s")
    report = {
        "world_size": dist.get_world_size(),
        "backend": dist.get_backend(),
        "device": device_name(device),
        "versions": versions(),
        "exchanges": [asdict(found) | {name: getattr(found, name) for name in rates} for found in exchanges],
    }
    with atomic_text_file(path) as file:
        json.dump(report, file, indent=1)


def _size(num_bytes: int) -> str:
    return f"{num_bytes // 2**20} MiB" if num_bytes >= 2**20 else f"{num_bytes // 2**10} KiB"
