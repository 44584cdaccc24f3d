"""How long a job that is about to be submitted will take: for its plan (job_summary.py)."""

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
from w2v_lightning.perf_model.runs import Run
from w2v_lightning.planner import planner, workload
from w2v_lightning.planner.assumptions import assumptions
from w2v_lightning.planner.candidates import Candidate, Task
from w2v_lightning.reporting.units import duration
from w2v_lightning.sagemaker.job import Job


@dataclass(frozen=True)
class Expectation:
    """Hours of training, start-up and interruptions included and waiting for capacity not; and what they rest on."""

    mean_h: float
    p90_h: float
    basis: str

    def __str__(self) -> str:
        return f"{duration(3600 * self.mean_h)} (90 %: {duration(3600 * self.p90_h)}), {self.basis}"


def expected(job: Job) -> Expectation:
    """From the runs that `plan` goes by.

    Raises:
        InputError: there are none, the config does not say how many steps it trains, or nothing is known of the
            instances.
    """
    from w2v_lightning.perf_model.fitting import fit  # scipy

    folder, task_steps = study_folder(), _steps(job.config["trainer"])
    found = runs.read_all(folder)
    precision = precision_of(job.config, instance(job.instance_type))
    candidate = Candidate(job.instance_type, job.count, job.is_spot, precision)
    assumed, rng = assumptions(found, defaults()), np.random.default_rng(0)
    prediction, drawn = planner.draw(candidate, _task(job, task_steps, found), fit(found), assumed, rng)
    hours = drawn.billed_s_N / 3600
    basis = f"{prediction.basis} from {runs.sources(found, [folder])}"
    return Expectation(planner.mean(hours), planner.bound(hours), basis)


def _steps(trainer: Mapping[str, Any]) -> int:
    steps, epochs = (trainer.get(name) or -1 for name in ("max_steps", "max_epochs"))
    if steps < 1 or epochs > 0:
        raise InputError("trainer.max_epochs ends it, and how long an epoch is, only the data know")
    return steps


def _task(job: Job, steps: int, found: Sequence[Run]) -> Task:
    data = job.config["data"]
    epoch = workload.assumed_epoch(steps * data["batch_seconds"] / 3600, data["batch_seconds"], found)
    return Task(
        config=job.config,
        model=workload.model_of(job.config, epoch.utterance_s),
        epoch=epoch,
        steps=steps,
        device_seconds=partial(workload.device_seconds, config=job.config, runs=found),
        input_mode=job.input_mode,
    )
