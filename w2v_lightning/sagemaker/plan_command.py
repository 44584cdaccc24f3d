"""Command `plan`: recommend instances for a config, and print the command that submits it."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from jsonargparse.typing import PositiveFloat, PositiveInt
from rich.console import Console

from w2v_lightning.catalog.defaults import defaults
from w2v_lightning.catalog.images import image_uri
from w2v_lightning.catalog.instances import instance
from w2v_lightning.catalog.measurements import study_folder
from w2v_lightning.catalog.model_sizes import size_warning
from w2v_lightning.command_line import Parser, parse_known, parser_of
from w2v_lightning.config import resolve
from w2v_lightning.errors import InputError
from w2v_lightning.perf_model import runs as run_files
from w2v_lightning.perf_model.fitted import Fitted
from w2v_lightning.perf_model.runs import Run
from w2v_lightning.planner import workload
from w2v_lightning.planner.assumptions import assumptions
from w2v_lightning.planner.candidates import Candidate, Task, candidates
from w2v_lightning.planner.memory import shards_weights
from w2v_lightning.planner.plan_text import Plan
from w2v_lightning.planner.planner import estimates, recommend
from w2v_lightning.planner.workload import Epoch
from w2v_lightning.sagemaker import aws_session, checks, config_checks
from w2v_lightning.sagemaker.aws_errors import explain_aws_errors

HOURS_PER = {"m": 1 / 60, "h": 1.0, "d": 24.0}
PIPE_WIDTH = 160  # columns if the output is not a terminal


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """Recommend instances, their number, and on-demand or spot, by time and cost.

    Other options are those of `python -m w2v_lightning fit`, such as --data.batch_seconds 800.

    Args:
        config: config file of `fit`; may be repeated, later files win.
        hours: duration of the training audio in hours; required unless manifest is given.
        manifest: manifest of the training data, by whose durations steps are planned.
        epochs: number of epochs; default: the limits in the config.
        deadline: largest time until the model is trained, such as 90m, 6h or 2d.
        budget: largest cost of the run in USD.
        region: AWS region; default: AWS_REGION or that of the AWS profile.
        spot: use of spot instances.
        study: folder of measured runs; may be repeated; default: W2V_LIGHTNING_STUDY, or the measurements
            that come with this package.
        instance_type: instance type to consider; may be repeated; default: all.
        most_instances: largest number of instances; the default is that of the original study.
    """

    config: list[str]
    hours: PositiveFloat | None = None
    manifest: str | None = None
    epochs: PositiveInt | None = None
    deadline: str | None = None
    budget: PositiveFloat | None = None
    region: str | None = None
    spot: Literal["allow", "only", "never"] = "allow"
    study: list[Path] = field(default_factory=list)
    instance_type: list[str] = field(default_factory=list)
    most_instances: PositiveInt = 16

    def __post_init__(self) -> None:
        if (self.hours is None) == (self.manifest is None):
            raise InputError("plan: give either --hours, the hours of training audio, or --manifest, a file.")
        _ = self.deadline_h  # raises if it is invalid

    @property
    def deadline_h(self) -> float | None:
        """Deadline in hours."""
        return None if self.deadline is None else hours_of("--deadline", self.deadline)


def hours_of(option: str, text: str) -> float:
    """Return the hours of a time such as "6h".

    Raises:
        InputError: the value of `option` is not a time.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([mhd])", text)
    if not match or not float(match[1]):
        raise InputError(f"{option} is {text!r}: give a number and its unit, such as 90m, 6h or 2d.")
    return float(match[1]) * HOURS_PER[match[2]]


@explain_aws_errors()
def main(args: Sequence[str]) -> int:
    """Print the plan; return the exit status, which is 1 if no candidate meets deadline and budget."""
    from w2v_lightning.perf_model.fitting import fit  # imports scipy
    from w2v_lightning.planner.plan_text import print_plan

    options, overrides = parse_options(args)
    folders = options.study or [study_folder()]
    runs = [run for folder in folders for run in run_files.read_all(folder)]
    plan = make_plan(options, overrides, runs, fit(runs), run_files.sources(runs, folders))
    console = Console()
    print_plan(plan, console if console.is_terminal else Console(width=PIPE_WIDTH))
    return 0 if plan.recommendation.best else 1


def parser() -> Parser:
    """Return the parser of the options, without those of `fit`."""
    return parser_of(PlanOptions, "plan", has_config=False)


def parse_options(args: Sequence[str]) -> tuple[PlanOptions, list[str]]:
    """Return the options of `plan`, and those of `fit`."""
    return parse_known(PlanOptions, "plan", args)


def make_plan(options: PlanOptions, overrides: Sequence[str], runs: Sequence[Run], fitted: Fitted, source: str) -> Plan:
    """Return the plan.

    Args:
        options: options of `plan`.
        overrides: options of `fit`, which override those of the config files.
        runs: measured runs.
        fitted: performance model of the runs.
        source: description of the runs.

    Raises:
        InputError: an option, the config or the study does not allow a plan; says what to do.
    """
    for name in options.instance_type:
        instance(name)  # reports a misspelt type before resolving the config, which takes seconds
    region = aws_session.region_of(options.region)
    config = resolve(options.config, overrides)
    config_checks.check_paths(config)
    task, length = task_of(config, options, runs)
    assumed = assumptions(runs, defaults())
    image = image_uri(defaults()["torch"], region)
    possible, without_price, useless = candidates(
        region, image, config, options.spot, options.instance_type or None, options.most_instances
    )
    possible, refused = accepted(possible, config)
    estimated, left_out = estimates(possible, task, fitted, assumed, region, options.deadline_h)
    return Plan(
        estimates=estimated,
        left_out=useless | refused | left_out,
        without_price=without_price,
        recommendation=recommend(estimated, options.deadline_h, options.budget),
        task=task,
        length=length,
        assumed=assumed,
        sources=source,
        notes=(*_approximations(config), *fitted.notes),
        region=region,
        deadline_h=options.deadline_h,
        budget_usd=options.budget,
        config_files=tuple(options.config),
        overrides=(*_length_options(options.epochs), *overrides),
    )


def _approximations(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield notes on options that the plan approximates."""
    if warning := size_warning(config["model"]):
        yield f"{warning}."
    if shards_weights(config):
        yield "trainer.strategy fsdp2 is planned like DDP, but exchanges 1.5 times the data, for each micro-batch."


def accepted(possible: Sequence[Candidate], config: Mapping[str, Any]) -> tuple[list[Candidate], dict[str, str]]:
    """Return the candidates that `submit` accepts for the config, and the reason against each other one."""
    accepted_candidates, refused = [], {}
    for candidate in possible:
        try:
            checks.check_config(config, candidate.machine, candidate.count, candidate.is_spot)
        except InputError as error:
            refused[str(candidate)] = str(error)
        else:
            accepted_candidates.append(candidate)
    return accepted_candidates, refused


def task_of(config: Mapping[str, Any], options: PlanOptions, runs: Sequence[Run]) -> tuple[Task, str]:
    """Return the training to plan, and its length in words."""
    data = config["data"]
    epoch: Epoch
    if options.manifest:
        epoch = workload.planned_epoch(options.manifest, data)
    else:
        assert options.hours is not None  # PlanOptions requires it without a manifest
        epoch = workload.assumed_epoch(options.hours, data["batch_seconds"], runs)
    steps, length = steps_of(config["trainer"], epoch, options.epochs)
    task = Task(
        config=config,
        model=workload.model_of(config, epoch.utterance_s),
        epoch=epoch,
        steps=steps,
        device_seconds=partial(workload.device_seconds, config=config, runs=runs),
        input_mode=defaults()["input_mode"],
    )
    return task, length


def steps_of(trainer: Mapping[str, Any], epoch: Epoch, epochs: int | None) -> tuple[int, str]:
    """Return the number of steps, and the reason in words.

    Raises:
        InputError: neither the option nor the config limits the training.
    """
    limits: dict[str, int | None] = {"--epochs": epochs} if epochs else {}
    if not limits:
        limits = {f"trainer.{name}": trainer.get(name) for name in ("max_steps", "max_epochs")}
    steps_per = {"trainer.max_steps": 1}
    steps = {name: limit * steps_per.get(name, epoch.steps) for name, limit in limits.items() if limit and limit > 0}
    if not steps:
        raise InputError("--epochs is missing, and the config has neither trainer.max_steps nor trainer.max_epochs.")
    name = min(steps, key=steps.__getitem__)
    return steps[name], f"{steps[name]} steps: {name} {limits[name]}, {epoch.steps} steps an epoch"


def _length_options(epochs: int | None) -> tuple[str, ...]:
    """Return the options of `fit` that replace the limits of the config by a number of epochs."""
    return ("--trainer.max_epochs", str(epochs), "--trainer.max_steps", "-1") if epochs else ()
