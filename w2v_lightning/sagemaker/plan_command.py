"""Command `plan`: recommend machines for a config, and print what runs it on them."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, partial
from typing import Any

from rich.console import Console

from w2v_lightning.catalog import prices
from w2v_lightning.catalog.clouds import refresh as cloud_prices
from w2v_lightning.catalog.defaults import defaults
from w2v_lightning.catalog.measurements import study_folder
from w2v_lightning.catalog.model_sizes import size_warning
from w2v_lightning.command_line import Parser, parse_known, parser_of
from w2v_lightning.config import resolve
from w2v_lightning.errors import InputError
from w2v_lightning.perf_model import runs as run_files
from w2v_lightning.perf_model.fitted import Fitted
from w2v_lightning.perf_model.kept import kept_fit
from w2v_lightning.perf_model.runs import Run
from w2v_lightning.planner import workload
from w2v_lightning.planner.assumptions import assumptions
from w2v_lightning.planner.candidates import Candidate, Task
from w2v_lightning.planner.launch_text import SKYPILOT_CLOUD
from w2v_lightning.planner.market import Market
from w2v_lightning.planner.memory import shards_weights
from w2v_lightning.planner.plan_text import Plan, print_plan
from w2v_lightning.planner.planner import estimates, recommend
from w2v_lightning.planner.workload import Epoch
from w2v_lightning.sagemaker import aws_session, checks, config_checks, refresh_prices
from w2v_lightning.sagemaker.aws_errors import explain_aws_errors
from w2v_lightning.sagemaker.plan_options import PlanOptions

PIPE_WIDTH = 160  # columns if the output is not a terminal


@explain_aws_errors()
def main(args: Sequence[str]) -> int:
    """Print the plan; return the exit status, which is 1 if no candidate meets deadline and budget."""
    options, overrides = parse_options(args)
    if options.refresh:
        refresh(options)
    folders = options.study or [study_folder()]
    runs = [run for folder in folders for run in run_files.read_all(folder)]
    plan = make_plan(options, overrides, runs, None, run_files.sources(runs, folders))
    console = Console()
    print_plan(plan, console if console.is_terminal else Console(width=PIPE_WIDTH))
    return 0 if plan.recommendation.best else 1


def parser() -> Parser:
    """Return the parser of the options, without those of `fit`."""
    return parser_of(PlanOptions, "plan", has_config=False)


def parse_options(args: Sequence[str]) -> tuple[PlanOptions, list[str]]:
    """Return the options of `plan`, and those of `fit`."""
    return parse_known(PlanOptions, "plan", args)


def refresh(options: PlanOptions) -> None:
    """Fetch newer prices of the places to plan for.

    Raises:
        InputError: AWS or SkyPilot's catalog cannot be reached, or refuses.
    """
    for place in options.places:
        if place == "sagemaker":
            for problem in refresh_prices.refresh([aws_session.region_of(options.region)]):
                print(f"Not changed: {problem}", file=sys.stderr)
        else:
            cloud = SKYPILOT_CLOUD.get(place, place)
            print(f"{cloud}: {cloud_prices.refresh(cloud)} machines with GPUs, prices of today.")
            prices.forget()  # SageMaker's estimates follow EC2's prices


def market_of(options: PlanOptions) -> Market:
    """Return the machines to choose from.

    Raises:
        InputError: an instance type is unknown, the region is missing, or nothing is offered there.
    """
    is_on_aws = bool({"sagemaker", "ec2"} & set(options.places))
    region = aws_session.region_of(options.region) if is_on_aws else options.region
    return Market.open(options.places, region, options.instance_type, [options.box] if options.box else [])


def make_plan(
    options: PlanOptions, overrides: Sequence[str], runs: Sequence[Run], fitted: Fitted | None, source: str
) -> Plan:
    """Return the plan.

    Args:
        options: options of `plan`.
        overrides: options of `fit`, which override those of the config files.
        runs: measured runs.
        fitted: performance model of the runs; None: it is fitted here, once all input has been checked.
        source: description of the runs.

    Raises:
        InputError: an option, the config or the study does not allow a plan; says what to do.
    """
    market = market_of(options)  # before the config, which takes seconds to resolve
    config = resolve(options.config, overrides)
    config_checks.check_paths(config)
    possible, useless = market.candidates(config, options.spot, options.most_instances)
    task, length = task_of(config, options, runs)
    possible, refused = accepted(possible, config)
    assumed = assumptions(runs, defaults())
    fitted = fitted or kept_fit(runs)
    estimated, left_out = estimates(possible, task, fitted, assumed, market.region, options.deadline_h)
    return Plan(
        estimates=estimated,
        left_out=market.unpriced | useless | refused | left_out,
        machines=market.machines,
        recommendation=recommend(estimated, options.deadline_h, options.budget),
        task=task,
        length=length,
        assumed=assumed,
        sources=source,
        notes=(*_approximations(config), *market.unknowns(), *fitted.notes),
        region=market.region,
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
        device_seconds=cache(partial(workload.device_seconds, config=config, runs=runs)),
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
