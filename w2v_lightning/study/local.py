"""Cells on this host, one after the other: a process for each GPU, or processes on CPUs, by torchrun as on SageMaker.

Hosts, their link and slow storage are emulated if a cell asks for them (emulation/).
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from w2v_lightning.config import resolve
from w2v_lightning.errors import InputError
from w2v_lightning.perf_model.runs import Run
from w2v_lightning.runtime.cores import usable_cores
from w2v_lightning.study import collect, processes
from w2v_lightning.study.cells import Cell, Study
from w2v_lightning.study.queue import LostError
from w2v_lightning.study.spec import fit_arguments

PORT = 29500  # on the first emulated host, whose network is separate
GRACE_S = 60.0  # seconds for the other hosts of a run to end after one has failed
SAVE_S = 30.0  # seconds to save a checkpoint when the command is ended
PREEMPTED = 75  # exit status of `fit`


@dataclass
class Started:
    """Run in progress."""

    processes: list[subprocess.Popen]  # one for each host
    emulated: ExitStack
    began: datetime
    began_s: float  # monotonic
    failed_s: float | None = None  # monotonic: when the first host was seen to have failed


class Local:
    """Runner (queue.py) of this host. At the end of its context, no process is left."""

    poll_s = 0.5

    def __init__(self, study: Study) -> None:
        self._study = study
        self._started: dict[Path, Started] = {}
        self._configs: dict[str, dict[str, Any]] = {}  # resolved, by options

    def __enter__(self) -> "Local":
        return self

    def __exit__(self, *_: object) -> None:
        for folder in list(self._started):
            processes.end(folder, self._started[folder].processes, SAVE_S)
            self._close(folder)

    def obstacle(self, cell: Cell) -> str | None:
        """Return why this host is too small for a cell; None if it is not.

        Raises:
            InputError: an option of `fit` is wrong, or the cell cannot be emulated.
        """
        gpus, wanted = self._gpus(cell), cell.count * cell.devices_per_host
        if gpus and cell.is_emulated:
            raise InputError(
                f"{cell.name}: only processes on CPUs can run on emulated hosts, because GPUs of one machine do not"
                " use the network between them; add options: {trainer.accelerator: cpu}."
            )
        if gpus and wanted > len(gpus):
            return f"it needs {wanted} GPUs, this host has {len(gpus)}"
        cores = usable_cores()
        if not gpus and self._study.stands_in and wanted > cores:
            return f"it needs {wanted} devices, this host has no GPU and {cores} cores"
        return None

    def verdict(self, cells: Sequence[Cell]) -> str:
        emulated = sum(cell.is_emulated or cell.storage_bytes_per_s is not None for cell in cells)
        rights = f" {emulated} need the right to create network namespaces or to slow storage down." if emulated else ""
        return f"The options of all {len(cells)} are valid.{rights}"

    # ---- interface of Runner ------------------------------------------------------------------------------------

    def plan(self, cell: Cell) -> dict[str, Any]:
        return {"began": datetime.now(UTC).isoformat()}

    def start(self, cell: Cell, folder: Path, handle: dict[str, Any]) -> dict[str, Any]:
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as emulated:
            hosts = _hosts(cell, emulated)
            options = self._options(cell, folder, hosts, emulated)
            commands = [_command(cell, self._study.config, options, number, hosts) for number in range(cell.count)]
            variables = self._variables(cell) | (hosts.environment if hosts else {})
            began = datetime.fromisoformat(handle["began"]), time.monotonic()
            started = processes.start(commands, folder, variables)
            self._started[folder] = Started(started, emulated.pop_all(), *began)
        return handle

    def poll(self, cell: Cell, folder: Path, handle: dict[str, Any]) -> Run | None:
        started = self._started.get(folder)
        if started is None:
            return self._left_behind(cell, folder, datetime.fromisoformat(handle["began"]))
        outcome = self._outcome(folder, started)
        if outcome is None:
            return None
        processes.kill(folder, started.processes)
        seconds = time.monotonic() - started.began_s
        self._close(folder)
        if any(process.returncode == PREEMPTED for process in started.processes):
            raise LostError("it was preempted")
        return collect.local_run(cell, folder / collect.ROOT, started.began, seconds, self._environment(cell), outcome)

    def given_up(self, cell: Cell, folder: Path, outcome: str) -> Run:
        return collect.local_run(cell, folder / collect.ROOT, datetime.now(UTC), 0.0, self._environment(cell), outcome)

    def _left_behind(self, cell: Cell, folder: Path, began: datetime) -> Run:
        """Return a run that was started by a command that was killed; it may have finished without it."""
        processes.kill(folder)
        ended = collect.finished_at(folder / collect.ROOT)
        if ended is None or ended < began:
            raise LostError("the command that had started it has ended")
        seconds = (ended - began).total_seconds()
        return collect.local_run(cell, folder / collect.ROOT, began, seconds, self._environment(cell), collect.FINISHED)

    def _outcome(self, folder: Path, started: Started) -> str | None:
        """Return the outcome, or None while the run continues. If a host fails, the others have GRACE_S to end."""
        now, codes = time.monotonic(), [process.poll() for process in started.processes]
        if not any(codes) and None not in codes:
            return collect.FINISHED
        if any(codes):
            started.failed_s = started.failed_s or now
        if started.failed_s and (None not in codes or now - started.failed_s > GRACE_S):
            status = next(code for code in codes if code)
            return f"exit status {status}: {processes.last_words(folder)}"
        if now - started.began_s > self._study.max_hours * 3600:
            return f"stopped after {self._study.max_hours:g} h (max_hours)"
        return None

    def _close(self, folder: Path) -> None:
        self._started.pop(folder).emulated.close()

    # ---- commands ----------------------------------------------------------------------------------------

    def _options(self, cell: Cell, folder: Path, hosts: Any, emulated: ExitStack) -> dict[str, Any]:
        """Return the options of `fit`: those of the cell, and those of this place."""
        options = cell.options | {
            "trainer.default_root_dir": str(folder / collect.ROOT),
            "checkpoint.dirpath": str(folder / collect.ROOT / collect.HISTORY),
            "trainer.enable_progress_bar": False,
            "trainer.accelerator": "gpu" if self._gpus(cell) else "cpu",
        }
        if cell.storage_bytes_per_s:
            from w2v_lightning.study.emulation import Storage

            root = Path(self._config(cell)["data"]["root"])
            storage = Storage(root, cell.storage_bytes_per_s * 8 / 1e6, hosts)
            options["data.root"] = emulated.enter_context(storage).url
        return options

    def _variables(self, cell: Cell) -> dict[str, str]:
        """Return environment variables: the GPUs of the cell, or the number of threads of each process."""
        if gpus := self._gpus(cell):
            return {"CUDA_VISIBLE_DEVICES": ",".join(gpus[: cell.devices_per_host])}
        return {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": str(cell.threads)}

    def _environment(self, cell: Cell) -> dict[str, Any]:
        """Return the description of this machine for run.json."""
        from w2v_lightning.runtime.hardware import device_name  # imports torch

        return {
            "cpu": device_name("cpu"),
            "cores": usable_cores(),
            "gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
            "instance_type": None,
            **self._variables(cell),
        }

    def _gpus(self, cell: Cell) -> list[str]:
        """Return the GPUs that the cell may use, as in CUDA_VISIBLE_DEVICES; none if it computes on CPUs."""
        if self._config(cell)["trainer"]["accelerator"] == "cpu":
            return []
        import torch

        number = torch.cuda.device_count()
        named = os.environ.get("CUDA_VISIBLE_DEVICES")
        return named.split(",")[:number] if named else [str(index) for index in range(number)]

    def _config(self, cell: Cell) -> dict[str, Any]:
        """Return all options of `fit` for the cell, with defaults."""
        key = json.dumps(cell.options, sort_keys=True)
        if key not in self._configs:
            self._configs[key] = resolve(self._study.config, fit_arguments(cell.options))
        return self._configs[key]


def _hosts(cell: Cell, emulated: ExitStack) -> Any:
    """Return the emulated hosts of a cell; None: it runs on this host itself."""
    if not cell.is_emulated:
        return None
    from w2v_lightning.study.emulation import Hosts

    assert cell.link_bytes_per_s is not None  # spec.py gives every emulated cell a link
    assert cell.link_delay_ms is not None

    return emulated.enter_context(Hosts(cell.count, cell.link_bytes_per_s * 8 / 1e6, cell.link_delay_ms))


def _command(cell: Cell, config: tuple[str, ...], options: dict[str, Any], number: int, hosts: Any) -> list[str]:
    """Return the command line of one host."""
    files = [f"--config={file}" for file in config]
    fit = ["-m", "w2v_lightning", "fit", *files, *fit_arguments(options)]
    if cell.count * cell.devices_per_host == 1:
        return [sys.executable, *fit]
    torchrun = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={cell.devices_per_host}"]
    if hosts is None:
        return [*torchrun, "--standalone", *fit]
    place = [f"--nnodes={cell.count}", f"--node_rank={number}", f"--local_addr={hosts.address(number)}"]
    return [
        *hosts.prefix(number),
        *torchrun,
        *place,
        f"--master_addr={hosts.address(0)}",
        f"--master_port={PORT}",
        *fit,
    ]
