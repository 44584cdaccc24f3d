"""Record of one run of a study (run.json). Reports and models read nothing else."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from w2v_lightning.catalog.model_sizes import nearest_size
from w2v_lightning.errors import InputError
from w2v_lightning.perf_model.run_schema import RunFile
from w2v_lightning.perf_model.step_time import Setup, Terms
from w2v_lightning.runtime.files import atomic_text_file
from w2v_lightning.runtime.schema import check_content, read_json

FILE = "run.json"
FORMAT = 1
# Warm-up ends at the first window that is less than this factor slower than the median: slower ones still compile or
# open files.
WARM_UP_FACTOR = 1.25
# Least share of a step's time that counts as waiting for data: less is needed to hand over batches that are ready.
LEAST_WAIT = 0.03


@dataclass(frozen=True)
class Run:
    """Record of one run, finished or not.

    Args:
        name: name of the cell and its repetition; also the name of the run's folder.
        cell: configuration in the study file, with the fields of `study.cells.Cell`.
        where: "local" or "sagemaker".
        date: start of the run, ISO, UTC.
        environment: machine and software: `cpu`, `cores`, `gib`, `instance_type` (SageMaker only) and `versions`.
        throughput: content of throughput.json (w2v_lightning/telemetry/throughput.py); empty if training never began.
        wer: [{"step", "elapsed_s", "wer"}], in order; seconds since the start of the run.
        segments: content of run_history.json without paths of the machine.
        interruptions: number of preemptions after which the run resumed.
        training_s: wall-clock time of all segments, start-up included, in seconds.
        billable_s: billable seconds of one instance as reported by the service; None for local runs, or if unknown.
        price: {"usd_per_hour", "date", "source", "region"} of one instance, or None.
        outcome: "finished", or why the run ended.
    """

    name: str
    cell: dict[str, Any]
    where: str
    date: str
    environment: dict[str, Any]
    throughput: dict[str, Any]
    wer: list[dict[str, float]]
    segments: list[dict[str, Any]]
    interruptions: int
    training_s: float
    billable_s: float | None
    price: dict[str, Any] | None
    outcome: str

    @property
    def is_measured(self) -> bool:
        """True if the run trained this package's data module for long enough to measure a step."""
        has_workload = "micro_batches_per_step" in self.throughput.get("workload", {})
        return has_workload and bool(self.throughput.get("flops_per_audio_s")) and bool(self.steady_windows)

    @cached_property
    def steady_windows(self) -> list[dict[str, float]]:
        """Windows of throughput.json after the warm-up: from the first window on that is not slower than the others."""
        windows = [window for window in self.throughput.get("windows", []) if window["steps"]]
        if len(windows) < 2:
            return []
        step_s = [window["seconds"] / window["steps"] for window in windows]
        limit = WARM_UP_FACTOR * sorted(step_s)[len(step_s) // 2]
        first = next(i for i, seconds in enumerate(step_s) if seconds <= limit)
        return windows[max(first, 1) :]  # the first window always contains some warm-up

    @cached_property
    def step_s(self) -> float:
        """Mean time of a global step after the warm-up, in seconds. Requires `is_measured`."""
        return self.steady("seconds") / self.steady("steps")

    @property
    def measured(self) -> Terms:
        """Measured parts of a step after the warm-up; their sum is `step_s`. Requires `is_measured`.

        `data_s` is the loading time (compute + wait) if the devices waited for data. Otherwise it is 0, and a wait
        below LEAST_WAIT counts as overhead. Without workers, `serial_loading_s` is the wait. `overhead_s` is the work
        of the host between two micro-batches. A single run cannot tell which part of the work within them would not
        shrink with more devices.
        """
        total_s = self.steady("total_s")
        device_s, wait_s = (self.step_s * self.steady(name) / total_s for name in ("device_s", "data_wait_s"))
        if wait_s < LEAST_WAIT * self.step_s:
            wait_s = 0.0
        exposed_s, waiting_s = self._exposed_s()
        compute_s = max(device_s - exposed_s - waiting_s, 0.0)
        has_workers = self.throughput["workload"]["loader_workers"] > 0
        return Terms(
            compute_s=compute_s,
            data_s=compute_s + wait_s if wait_s and has_workers else 0.0,
            serial_loading_s=0.0 if has_workers else wait_s,
            exposed_s=exposed_s,
            imbalance_s=waiting_s,
            overhead_s=max(self.step_s - compute_s - wait_s - exposed_s - waiting_s, 0.0),
        )

    def _exposed_s(self) -> tuple[float, float]:
        """Seconds per step of exposed communication, and of waiting for slower ranks."""
        communication = self.throughput.get("communication")
        if not communication:
            return 0.0, 0.0
        exposed_s, waiting_s = (communication[f"{name}_ms_median"] / 1000 for name in ("exposed", "waiting"))
        return max(exposed_s - waiting_s, 0.0), waiting_s

    @property
    def audio_s_per_s(self) -> float:
        """Throughput after the warm-up: real audio of all devices over wall-clock time."""
        return self._audio_s_per_step / self.step_s

    @property
    def mfu(self) -> float | None:
        """Model FLOPs utilisation after the warm-up (throughput.json's `mfu_formula`); None without a measured peak.

        It is the FLOP of the real audio over those that the devices could have done at their measured peak.
        """
        peak = self.throughput.get("matrix_flops_per_s")
        if not peak:
            return peak
        flops_per_s = self.audio_s_per_s * self.throughput["flops_per_audio_s"]
        return flops_per_s / (peak * self.throughput["world_size"])

    @property
    def gpu_utilisation(self) -> float | None:
        """Share of time in which a kernel ran: after the warm-up if the windows record it, else of the whole run."""
        if self.gpu_use_has_warm_up:
            return self.throughput["gpu_utilisation"]
        readings = self._gpu("num_utilisation")
        return self._gpu("utilisation") / readings if readings else None

    @property
    def energy_wh_per_audio_hour(self) -> float | None:
        """Energy of all GPUs per hour of audio: after the warm-up if the windows record it, else of the whole run."""
        if self.gpu_use_has_warm_up:
            return self.throughput.get("energy_wh_per_audio_hour")
        known_s = self._gpu("power_s")
        return self._gpu("energy_j") / known_s * self.throughput["world_size"] / self.audio_s_per_s if known_s else None

    @property
    def gpu_use_has_warm_up(self) -> bool:
        """True if GPU use is known for the whole run only, because an older version recorded it that way."""
        is_known = self.throughput.get("gpu_utilisation") is not None
        return is_known and "gpu_num_utilisation" not in self.steady_windows[0]

    def _gpu(self, name: str) -> float:
        """Sum of an NVML figure over the windows after the warm-up; 0 on CPUs."""
        return sum(window.get(f"gpu_{name}", 0.0) for window in self.steady_windows)

    @property
    def _audio_s_per_step(self) -> float:
        """Mean real audio of a step after the warm-up, in seconds.

        A window takes the first rank's audio for that of every rank, but others have less if a step has few utterances.
        It is scaled by the totals of the whole run, which are sums over all ranks.
        """
        windows = self.throughput["windows"]
        by_first_rank_s = sum(window["audio_s"] for window in windows) / sum(window["steps"] for window in windows)
        share = self.throughput["audio_hours"] * 3600 / self.throughput["steps"] / by_first_rank_s
        return share * self.steady("audio_s") / self.steady("steps")

    def steady(self, name: str) -> float:
        """Return the sum of a figure over the windows after the warm-up."""
        return sum(window[name] for window in self.steady_windows)

    @property
    def setup(self) -> Setup:
        """Everything that determines the step time. Requires `is_measured`."""
        throughput, host = self.throughput, self.throughput["host"]
        workload = throughput["workload"]
        return Setup(
            device=_device(throughput, host),
            device_share=_device_share(throughput, host, self.cell),
            precision=throughput["precision"],
            flops_per_audio_s=throughput["flops_per_audio_s"],
            hosts=host["hosts"],
            devices_per_host=host["devices_per_host"],
            loader_workers=workload["loader_workers"],
            link=self.cell["link"],
            link_bytes_per_s=self.cell["link_bytes_per_s"],
            storage=self.cell["storage"],
            audio_s=self._audio_s_per_step,
            computed_s=self.steady("computed_s") / self.steady("steps"),
            micro_batches=workload["micro_batches_per_step"],
            gradient_bytes=workload["gradient_bytes"],
            gradient_buckets=workload["gradient_buckets"],
            hosts_per_machine=host["hosts"] if self.cell["is_emulated"] else 1,
            link_delay_s=None if self.cell["link_delay_ms"] is None else self.cell["link_delay_ms"] / 1000,
            storage_bytes_per_s=self.cell["storage_bytes_per_s"],
            logged_every=min(window["steps"] for window in self.steady_windows),
            layers=nearest_size(workload["parameters"]).num_hidden_layers,
        )


def write(run: Run, folder: Path) -> None:
    """Write `folder`/run.json atomically."""
    with atomic_text_file(folder / FILE) as file:
        json.dump({"format": FORMAT} | asdict(run), file, indent=1)


def read(path: Path) -> Run:
    """Read a run.json.

    Args:
        path: the file, or the folder that contains it.

    Raises:
        InputError: the file is missing, truncated or of another format, or lacks fields (the message names them).
    """
    path = path / FILE if path.is_dir() else path
    remedy = "run this cell again with `python -m w2v_lightning study run`, or remove its folder."
    try:
        content = read_json(path, remedy)
    except FileNotFoundError:
        raise InputError(f"{path} not found; `python -m w2v_lightning study run` writes it.") from None
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
        raise InputError(f"{path} is not a {FILE} of format {FORMAT}; {remedy}")
    names = [field.name for field in fields(Run)]
    if missing := [name for name in names if name not in content]:
        raise InputError(f"{path} lacks {', '.join(missing)}; {remedy}")
    check_content(content, RunFile, path, remedy)
    run = Run(**{name: content[name] for name in names})
    try:
        _ = run.is_measured and (run.setup, run.measured, run.audio_s_per_s)
    except (KeyError, ValueError, ArithmeticError) as error:
        defect = f"lacks {error}" if isinstance(error, KeyError) else f"has an invalid value ({error})"
        raise InputError(f"{path} {defect}; {remedy}") from None
    return run


def read_all(folder: Path) -> list[Run]:
    """Read every run.json below a study's folder, sorted by name.

    Raises:
        InputError: there is no run.json, or one cannot be read.
    """
    return sorted(map(read, find(folder)), key=lambda run: run.name)


def find(folder: Path) -> list[Path]:
    """Return the paths of every run.json below a study's folder.

    Raises:
        InputError: there is no run.json.
    """
    paths = sorted(folder.rglob(FILE))
    if not paths:
        raise InputError(f"{folder} has no {FILE}; `python -m w2v_lightning study run STUDY.yaml` writes them.")
    return paths


def _device(throughput: dict[str, Any], host: dict[str, Any]) -> str:
    if host["threads"] is None:
        return throughput["device"]
    return f"{throughput['device']}, {host['threads']} thread{'s' if host['threads'] > 1 else ''}"


def _device_share(throughput: dict[str, Any], host: dict[str, Any], cell: dict[str, Any]) -> float:
    """Share of its device that each process has; the processes of all emulated hosts share one machine's cores."""
    if host["threads"] is None:
        return 1.0
    processes = throughput["world_size"] if cell["is_emulated"] else host["devices_per_host"]
    return min(1.0, host["cores"] / (host["threads"] * processes))


def sources(runs: Sequence[Run], folders: Sequence[Path]) -> str:
    """Return a description of the runs, such as "2 measured runs of runs/study"."""
    measured = sum(run.is_measured for run in runs)
    return f"{measured} measured run{'s' if measured != 1 else ''} of {', '.join(map(_relative, folders))}"


def _relative(path: Path) -> str:
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
