"""Benchmark `bench allreduce`: latency and bandwidth between the processes that a launcher has started.

    torchrun --nproc_per_node 2 -m w2v_lightning bench allreduce

Bandwidths are those of nccl-tests: the algorithm bandwidth of a message of B bytes that takes t seconds is B / t. Each
of n ranks sends and receives 2 (n - 1) / n of the message, so the bus bandwidth, B / t x 2 (n - 1) / n, can be compared
with the hardware's for any number of ranks.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from jsonargparse.typing import PositiveInt
from rich import box
from rich.console import Console
from rich.table import Table

from w2v_lightning.bench.settings import CONFIGS
from w2v_lightning.command_line import Parser, parse, parser_of
from w2v_lightning.errors import InputError
from w2v_lightning.module import Wav2Vec2CTC
from w2v_lightning.runtime.files import atomic_text_file
from w2v_lightning.runtime.hardware import device_name, versions
from w2v_lightning.telemetry.all_reduce import LATENCY_BYTES, bucket_bytes, exchange_s

Backend = Literal["nccl", "gloo"]


@dataclass(frozen=True)
class AllreduceOptions:
    """Measure latency and bandwidth of all-reduces between devices, under torchrun.

    Start one process for each device: torchrun --nproc_per_node 2 -m w2v_lightning bench allreduce

    Args:
        max_mib: size of the largest message, in MiB.
        models: models (base, large) whose gradients are sent, too; without a value: none.
        repetitions: number of repetitions of each message.
        backend: backend of torch.distributed; default: nccl if there are GPUs, otherwise gloo.
        json: file to write all figures to.
    """

    max_mib: PositiveInt = 512
    # A stored list replaces the default; other lists are appended to it.
    models: list[str] = field(default_factory=lambda: list(CONFIGS), metadata={"nargs": "*", "action": "store"})
    repetitions: PositiveInt = 10
    backend: Backend | None = None
    json: Path | None = None

    def __post_init__(self) -> None:
        for name in self.models:
            if name not in CONFIGS:
                raise InputError(f"--models: {name!r} is unknown; choose from {', '.join(CONFIGS)}.")


@dataclass(frozen=True)
class Exchange:
    """Duration of an all-reduce of one message, or of all buckets of a model together."""

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


def parser() -> Parser:
    """Return the parser of this command."""
    return parser_of(AllreduceOptions, "bench allreduce")


def main(args: Sequence[str]) -> int:
    """Measure between the processes of the launcher; the first one prints and writes. Return the exit status.

    Raises:
        InputError: there is only one process, or an option is invalid.
    """
    options = parse(AllreduceOptions, "bench allreduce", args)
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
    return 0


def measure(device: torch.device, most_bytes: int, models: Sequence[str], repetitions: int) -> list[Exchange]:
    """Measure messages of powers of two bytes, then the gradients of models.

    Args:
        device: device of the messages.
        most_bytes: size of the largest message (bytes).
        models: names in CONFIGS.
        repetitions: number of repetitions of each message.
    """
    sizes = [2**i for i in range(LATENCY_BYTES.bit_length() - 1, most_bytes.bit_length())]
    exchanges = [_exchange(_size(num_bytes), [num_bytes], device, repetitions) for num_bytes in sizes]
    for name in models:
        buckets = gradient_buckets(CONFIGS[name])
        exchanges.append(_exchange(f"gradients of {name}", buckets, device, repetitions))
    return exchanges


def gradient_buckets(config: dict[str, Any]) -> list[int]:
    """Return the size (bytes) of each bucket in which DDP sends the float32 gradients of a model that `fit` trains."""
    with torch.device("meta"):
        module = Wav2Vec2CTC(None, config)
    return bucket_bytes(module.parameters())


def _check(options: AllreduceOptions) -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or "RANK" not in os.environ:
        raise InputError(
            "bench allreduce needs at least two processes, but this one is alone; start one for each device:"
            " torchrun --nproc_per_node 2 -m w2v_lightning bench allreduce"
        )
    if options.backend == "nccl" and not torch.cuda.is_available():
        raise InputError("--backend is nccl, but torch finds no CUDA device here: use gloo.")


def _join(backend: Backend | None) -> torch.device:
    """Join the process group; return the device of this process."""
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
    for exchange in exchanges:
        rates = (f"{rate / 1e9:.2f}" for rate in (exchange.algorithm_bytes_per_s, exchange.bus_bytes_per_s))
        buckets = str(exchange.num_messages) if exchange.num_messages > 1 else ""
        table.add_row(exchange.what, buckets, f"{1000 * exchange.seconds:.3f}", *rates)
    console.print(table)


def _write(path: Path, exchanges: list[Exchange], device: torch.device) -> None:
    rates = ("algorithm_bytes_per_s", "bus_bytes_per_s")
    report = {
        "world_size": dist.get_world_size(),
        "backend": dist.get_backend(),
        "device": device_name(device),
        "versions": versions(),
        "exchanges": [asdict(exchange) | {name: getattr(exchange, name) for name in rates} for exchange in exchanges],
    }
    with atomic_text_file(path) as file:
        json.dump(report, file, indent=1)


def _size(num_bytes: int) -> str:
    return f"{num_bytes // 2**20} MiB" if num_bytes >= 2**20 else f"{num_bytes // 2**10} KiB"
