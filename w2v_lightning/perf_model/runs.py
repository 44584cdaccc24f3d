"""run.json: all that one run of a study leaves. Reports and models read nothing else."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from w2v_lightning.catalog.model_sizes import like
from w2v_lightning.errors import InputError
from w2v_lightning.perf_model.step_time import Setup, Terms
from w2v_lightning.runtime.files import atomic_text_file

FILE = "run.json"
FORMAT = 1
WARM_UP_FACTOR = 1.25  # windows at the start that are so much slower than the median still compile, or open files
LEAST_WAIT = 0.03  # of a step's time; less is what it takes to hand over batches that lie ready, for all micro-batches


@dataclass(frozen=True)
class Run:
    """One run, finished or not.

    Args:
        name: of the cell and its repetition, as the run's folder.
        cell: what the study asked for, as matrix.Cell has it.
        where: "local" or "sagemaker".
        date: when it began, ISO, UTC.
        environment: of the machine: `cpu`, `cores`, `gib`, `instance_type` (SageMaker's), and `versions`.
        throughput: throughput.json as it is (w2v_lightning/callbacks/throughput.py); empty where training never began.
        wer: [{"step", "elapsed_s", "wer"}], in order; seconds since the run began.
        segments: run_history.json, but for paths of the machine.
        interruptions: how often it was preempted and went on.
        training_s: wall-clock time of all segments, start-up included.
        billable_s: of one instance, as the service says; None: local, or not known.
        price: {"usd_per_hour", "date", "source", "region"} of one instance; None where there is none.
        outcome: "finished", or what ended it, in words.
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
        """It has trained our data for long enough that its steps say something."""
        is_ours = "micro_batches_per_step" in self.throughput.get("workload", {})
        return is_ours and bool(self.throughput.get("flops_per_audio_s")) and bool(self.steady_windows)

    @cached_property
    def steady_windows(self) -> list[dict[str, float]]:
        """Windows of throughput.json behind the warm-up: those from the first one on that is as fast as others are."""
        windows = [window for window in self.throughput.get("windows", []) if window["steps"]]
        if len(windows) < 2:
            return []
        step_s = [window["seconds"] / window["steps"] for window in windows]
        limit = WARM_UP_FACTOR * sorted(step_s)[len(step_s) // 2]
        first = next(i for i, seconds in enumerate(step_s) if seconds <= limit)
        return windows[max(first, 1) :]  # the first one always has some of it

    @cached_property
    def step_s(self) -> float:
        """Of a global step behind the warm-up, the mean; `is_measured` has to be true."""
        return self.steady("seconds") / self.steady("steps")

    @property
    def measured(self) -> Terms:
        """The step's parts as they were measured behind the warm-up, in all `step_s`; `is_measured` has to be true.

        `data_s` is the time that loading takes where it was waited for: compute + wait; else 0, and what little was
        waited counts as overhead. Without workers, `loading_behind_s` is the wait. `overhead_s` is what the host did
        between two micro-batches; a run alone does not say how much of what was done within them does not shrink with
        more devices.
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
            loading_behind_s=0.0 if has_workers else wait_s,
            exposed_s=exposed_s,
            imbalance_s=waiting_s,
            overhead_s=max(self.step_s - compute_s - wait_s - exposed_s - waiting_s, 0.0),
        )

    def _exposed_s(self) -> tuple[float, float]:
        """Of a step: what the network takes, and the waiting for slower ranks."""
        found = self.throughput.get("communication")
        if not found:
            return 0.0, 0.0
        exposed_s, waiting_s = found["exposed_ms_median"] / 1000, found["waiting_ms_median"] / 1000
        return max(exposed_s - waiting_s, 0.0), waiting_s

    @property
    def audio_s_per_s(self) -> float:
        """Real audio of all devices over wall-clock time behind the warm-up."""
        return self._audio_s_per_step / self.step_s

    @property
    def mfu(self) -> float | None:
        """FLOPs of the real audio over those that the devices could have done (throughput.json's `mfu_formula`), behind
        the warm-up; None where their peak was not measured."""
        found = self.throughput
        peak = found.get("matrix_flops_per_s")
        return peak and self.audio_s_per_s * found["flops_per_audio_s"] / (peak * found["world_size"])

    @property
    def gpu_utilisation(self) -> float | None:
        """Share of the time in which a kernel ran, behind the warm-up where the windows have it, else over the run."""
        if self.gpu_use_has_warm_up:
            return self.throughput["gpu_utilisation"]
        readings = self._gpu("num_utilisation")
        return self._gpu("utilisation") / readings if readings else None

    @property
    def energy_wh_per_audio_hour(self) -> float | None:
        """Of all GPUs, behind the warm-up where the windows have it, else over the run."""
        if self.gpu_use_has_warm_up:
            return self.throughput.get("energy_wh_per_audio_hour")
        known_s = self._gpu("power_s")
        return self._gpu("energy_j") / known_s * self.throughput["world_size"] / self.audio_s_per_s if known_s else None

    @property
    def gpu_use_has_warm_up(self) -> bool:
        """It is of a version that recorded NVML's readings over the whole run only."""
        is_known = self.throughput.get("gpu_utilisation") is not None
        return is_known and "gpu_num_utilisation" not in self.steady_windows[0]

    def _gpu(self, name: str) -> float:
        """Sum of what NVML said behind the warm-up; of a CPU nothing."""
        return sum(window.get(f"gpu_{name}", 0.0) for window in self.steady_windows)

    @property
    def _audio_s_per_step(self) -> float:
        """A window has the first rank's audio for that of all others, which have less where a step has few utterances;
        the whole run has the sum over all ranks."""
        found, windows = self.throughput, self.throughput["windows"]
        by_first_rank_s = sum(window["audio_s"] for window in windows) / sum(window["steps"] for window in windows)
        share = found["audio_hours"] * 3600 / found["steps"] / by_first_rank_s
        return share * self.steady("audio_s") / self.steady("steps")

    def steady(self, name: str) -> float:
        """Sum of a figure over the windows behind the warm-up."""
        return sum(window[name] for window in self.steady_windows)

    @property
    def setup(self) -> Setup:
        """What its step time follows from; `is_measured` has to be true."""
        found, host = self.throughput, self.throughput["host"]
        workload = found["workload"]
        return Setup(
            device=_device(found, host),
            device_share=_device_share(found, host, self.cell),
            precision=found["precision"],
            flops_per_audio_s=found["flops_per_audio_s"],
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
            layers=like(workload["parameters"]).num_hidden_layers,
        )


def write(run: Run, folder: Path) -> None:
    """FOLDER/run.json, whole or not at all."""
    with atomic_text_file(folder / FILE) as file:
        json.dump({"format": FORMAT} | asdict(run), file, indent=1)


def read(path: Path) -> Run:
    """A run.json, by its path or its folder.

    Raises:
        InputError: it is not there, half-written, or of another format; names what is missing.
    """
    path = path / FILE if path.is_dir() else path
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file; `python -m w2v_lightning study run` writes it.") from None
    except (ValueError, OSError) as error:
        raise InputError(f"{path} cannot be read ({error}): run this cell again, or remove its folder.") from None
    if not isinstance(found, dict) or found.pop("format", None) != FORMAT:
        raise InputError(f"{path} is no run.json of format {FORMAT}: run this cell again, or remove its folder.")
    names = [field.name for field in fields(Run)]
    if missing := [name for name in names if name not in found]:
        raise InputError(f"{path} lacks {', '.join(missing)}: run this cell again, or remove its folder.")
    run = Run(**{name: found[name] for name in names})
    try:
        _ = run.cell["name"], run.is_measured and (run.setup, run.measured, run.audio_s_per_s)
    except (KeyError, TypeError, AttributeError, ValueError, ZeroDivisionError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else f"has something that cannot be ({error})"
        raise InputError(f"{path} {what}: run this cell again, or remove its folder.") from None
    return run


def read_all(folder: Path) -> list[Run]:
    """Every run.json below a study's folder, by name.

    Raises:
        InputError: there is none, or one cannot be read.
    """
    return sorted(map(read, find(folder)), key=lambda run: run.name)


def find(folder: Path) -> list[Path]:
    """Where every run.json below a study's folder is.

    Raises:
        InputError: there is none.
    """
    found = sorted(folder.rglob(FILE))
    if not found:
        raise InputError(f"{folder} has no {FILE}: `python -m w2v_lightning study run STUDY.yaml` makes them.")
    return found


def _device(found: dict[str, Any], host: dict[str, Any]) -> str:
    if host["threads"] is None:
        return found["device"]
    return f"{found['device']}, {host['threads']} thread{'s' if host['threads'] > 1 else ''}"


def _device_share(found: dict[str, Any], host: dict[str, Any], cell: dict[str, Any]) -> float:
    """Processes of emulated hosts have the cores of one machine among them."""
    if host["threads"] is None:
        return 1.0
    processes = found["world_size"] if cell["is_emulated"] else host["devices_per_host"]
    return min(1.0, host["cores"] / (host["threads"] * processes))


def sources(runs: Sequence[Run], folders: Sequence[Path]) -> str:
    """What is known, in words."""
    measured = sum(run.is_measured for run in runs)
    return f"{measured} measured run{'s' if measured != 1 else ''} of {', '.join(map(_relative, folders))}"


def _relative(path: Path) -> str:
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
