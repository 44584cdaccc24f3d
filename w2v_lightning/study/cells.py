"""Cells: the runs that a study consists of, as run.json stores them."""

from dataclasses import dataclass
from typing import Any, Literal

Where = Literal["local", "sagemaker"]


@dataclass(frozen=True)
class Cell:
    """Run of a study.

    Args:
        name: the same for all repetitions, such as "ml.g4dn.2xlarge-x4-spot" or "local-x2-100mbit-2ms".
        hardware: instance type, or "local".
        count: number of instances; on this machine: number of hosts, above 1 only if they are emulated.
        devices_per_host: number of GPUs, or of processes on CPUs.
        is_spot: managed spot training.
        precision: value of trainer.precision, or "auto": the device decides.
        options: options of `fit`, by their dotted names.
        repetition: 1, 2, ...
        link: network between hosts: the instance type, "100 Mbit/s, 2 ms", or "" within one host.
        link_bytes_per_s: specified rate of the link; None within one host.
        link_delay_ms: one-way delay of an emulated link.
        is_emulated: the hosts are network namespaces of this machine.
        storage: "disk", "FastFile" or another input mode, or an emulated rate, "8 Mbit/s".
        storage_bytes_per_s: rate of emulated storage.
        threads: number of threads of each process that computes on CPUs.
    """

    name: str
    hardware: str
    count: int
    devices_per_host: int
    is_spot: bool
    precision: str
    options: dict[str, Any]
    repetition: int
    link: str
    link_bytes_per_s: float | None
    link_delay_ms: float | None
    is_emulated: bool
    storage: str
    storage_bytes_per_s: float | None
    threads: int | None

    @property
    def run(self) -> str:
        """Name of this repetition, and of its folder."""
        return f"{self.name}-r{self.repetition}"


@dataclass(frozen=True)
class Study:
    """Everything that `study run` carries out.

    Args:
        name: name of its folder.
        where: on this host, or as training jobs.
        config: config files of `fit`, merged.
        cells: all cells, one repetition of the whole study after the other.
        quota: number of instances at once; None: no limit.
        max_hours: hours after which a run is stopped.
        jobs: options of `submit` that the study gives.
        stands_in: the cells name instance types, and devices of this host stand in for them.
    """

    name: str
    where: Where
    config: tuple[str, ...]
    cells: tuple[Cell, ...]
    quota: int | None
    max_hours: float
    jobs: dict[str, Any]
    stands_in: bool
