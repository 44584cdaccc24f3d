"""Expected duration of a job, for its summary before submission (job_summary.py)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from w2v_lightning.catalog.defaults import defaults
from w2v_lightning.catalog.instances import instance, precision_of
from w2v_lightning.catalog.measurements import study_folder
from w2v_lightning.errors import InputError
from w2v_lightning.perf_model import runs
from w2v_lightning.perf_model.kept import kept_fit
from w2v_lightning.perf_model.runs import Run
from w2v_lightning.planner import planner, workload
from w2v_lightning.planner.assumptions import assumptions
from w2v_lightning.planner.candidates import Candidate, Task
from w2v_lightning.reporting.units import duration
from w2v_lightning.sagemaker.job import Job


@dataclass(frozen=True)
class ExpectedDuration:
    """Mean and 90th percentile of a job's duration.

    Args:
        mean_h: mean in hours, with start-up and interruptions, without waiting for capacity.
        p90_h: 90th percentile in hours.
        basis: runs from which the durations are predicted, in words.
    """

    mean_h: float
    p90_h: float
    basis: str

    def __str__(self) -> str:
        return f"{duration(3600 * self.mean_h)} (90 %: {duration(3600 * self.p90_h)}), {self.basis}"


def expected_duration(job: Job) -> ExpectedDuration:
    """Predict a job's duration from the measured runs that `plan` uses.

    Raises:
        InputError: there are no runs, the config does not give the number of steps, or no run has such instances.
    """
    folder, task_steps = study_folder(), _steps(job.config["trainer"])
    measured = runs.read_all(folder)
    precision = precision_of(job.config, instance(job.instance_type))
    candidate = Candidate(job.instance_type, job.count, job.is_spot, precision)
    assumed, rng = assumptions(measured, defaults()), np.random.default_rng(0)
    prediction, drawn = planner.draw(candidate, _task(job, task_steps, measured), kept_fit(measured), assumed, rng)
    hours = drawn.billed_s_N / 3600
    basis = f"{prediction.basis} from {runs.sources(measured, [folder])}"
    return ExpectedDuration(planner.mean(hours), planner.bound(hours), basis)


def _steps(trainer: Mapping[str, Any]) -> int:
    steps, epochs = (trainer.get(name) or -1 for name in ("max_steps", "max_epochs"))
    if steps < 1 or epochs > 0:
        raise InputError("trainer.max_epochs limits the training, and only the data tell the length of an epoch")
    return steps


def _task(job: Job, steps: int, measured: Sequence[Run]) -> Task:
    data = job.config["data"]
    epoch = workload.assumed_epoch(steps * data["batch_seconds"] / 3600, data["batch_seconds"], measured)
    return Task(
        config=job.config,
        model=workload.model_of(job.config, epoch.utterance_s),
        epoch=epoch,
        steps=steps,
        device_seconds=partial(workload.device_seconds, config=job.config, runs=measured),
        input_mode=job.input_mode,
    )
