"""The command `plan`: what to train a config on, from the runs of studies, and the line that submits it."""

import argparse
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from w2v_lightning.catalog.defaults import defaults
from w2v_lightning.catalog.images import image_uri
from w2v_lightning.catalog.instances import instance
from w2v_lightning.catalog.measurements import VARIABLE, study_folder
from w2v_lightning.catalog.model_sizes import doubt
from w2v_lightning.config import resolve
from w2v_lightning.errors import InputError
from w2v_lightning.perf_model import runs as run_files
from w2v_lightning.perf_model.fitted import Fitted
from w2v_lightning.perf_model.runs import Run
from w2v_lightning.planner import workload
from w2v_lightning.planner.assumptions import assumptions
from w2v_lightning.planner.candidates import Candidate, Task, candidates
from w2v_lightning.planner.plan_text import Plan
from w2v_lightning.planner.planner import estimates, recommend
from w2v_lightning.planner.workload import Epoch
from w2v_lightning.sagemaker import aws_session, checks, config_checks
from w2v_lightning.sagemaker.options import positive

HOURS_PER = {"m": 1 / 60, "h": 1.0, "d": 24.0}
PIPE_WIDTH = 160  # columns where there is no terminal to ask


def add_parser(commands: Any) -> None:
    """`plan`. What is no option of its own is one of `fit`'s, and comes as `overrides`."""
    default = f"may be repeated; default: {VARIABLE}, or the measurements that come with the project"
    text = "Other options are those of `python -m w2v_lightning fit`, such as --data.batch_seconds 800."
    parser = commands.add_parser(
        "plan", help="which instances, how many, on demand or spot: time against money", epilog=text, allow_abbrev=False
    )
    parser.add_argument("--config", action="append", required=True, metavar="YAML", help="of fit; several are merged")
    data = parser.add_mutually_exclusive_group(required=True)
    data.add_argument("--hours", type=positive, metavar="H", help="of training audio")
    data.add_argument("--manifest", metavar="FILE", help="of the training data: steps are then planned from durations")
    parser.add_argument("--epochs", type=_whole, metavar="N", help="default: as long as the config trains")
    parser.add_argument("--deadline", type=hours_of, metavar="TIME", help="such as 90m, 6h or 2d")
    parser.add_argument("--budget", type=positive, metavar="USD", help="of the whole run")
    parser.add_argument("--region", help="default: AWS_REGION, or that of the AWS profile")
    parser.add_argument("--spot", choices=("allow", "only", "never"), default="allow", help="default: allow")
    parser.add_argument("--study", action="append", type=Path, metavar="DIR", help=f"of runs; {default}")
    parser.add_argument("--instance-type", action="append", metavar="TYPE", help="may be repeated; default: all")
    parser.add_argument(
        "--most-instances", type=_whole, default=16, metavar="N", help="at once; default: 16, the original study's"
    )
    parser.set_defaults(run=run, overrides=[])


def hours_of(text: str) -> float:
    """Such as "6h", for argparse."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([mhd])", text)
    if not found or not float(found[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is no time: give a number and its unit, such as 90m, 6h or 2d")
    return float(found[1]) * HOURS_PER[found[2]]


def _whole(text: str) -> int:
    number = positive(text)
    if number != int(number):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number")
    return int(number)


def run(options: argparse.Namespace) -> int:
    """Print the plan; 1 where nothing is within deadline and budget."""
    from w2v_lightning.perf_model.fitting import fit  # scipy
    from w2v_lightning.planner.plan_text import print_plan

    folders = options.study or [study_folder()]
    runs = [found for folder in folders for found in run_files.read_all(folder)]
    plan = make_plan(options, runs, fit(runs), run_files.sources(runs, folders))
    console = Console()
    print_plan(plan, console if console.is_terminal else Console(width=PIPE_WIDTH))
    return 0 if plan.recommendation.best else 1


def make_plan(options: argparse.Namespace, runs: Sequence[Run], fitted: Fitted, source: str) -> Plan:
    """
    Raises:
        InputError: an option, the config or the study does not allow a plan; says what to do.
    """
    for name in options.instance_type or ():
        instance(name)  # a misspelt one before the seconds that a config takes
    region = aws_session.region_of(options.region)
    config = resolve(options.config, options.overrides)
    config_checks.check_places(config)
    task, length = task_of(config, options, runs)
    assumed = assumptions(runs, defaults())
    image = image_uri(defaults()["torch"], region)
    possible, without_price, useless = candidates(
        region, image, config, options.spot, options.instance_type, options.most_instances
    )
    possible, refused = accepted(possible, config)
    found, left_out = estimates(possible, task, fitted, assumed, region, options.deadline)
    return Plan(
        found=found,
        left_out=useless | refused | left_out,
        without_price=without_price,
        recommendation=recommend(found, options.deadline, options.budget),
        task=task,
        length=length,
        assumed=assumed,
        sources=source,
        notes=(*_remarks(config), *fitted.notes),
        region=region,
        deadline_h=options.deadline,
        budget_usd=options.budget,
        config_files=tuple(options.config),
        overrides=(*_length(options.epochs), *options.overrides),
    )


def _remarks(config: Mapping[str, Any]) -> Iterator[str]:
    """What of the config is planned as if it were else."""
    if remark := doubt(config["model"]):
        yield f"{remark}."
    if checks.shares_weights(config):
        yield "trainer.strategy fsdp2 is planned like DDP; it exchanges half as much again, for each micro-batch."


def accepted(of: Sequence[Candidate], config: Mapping[str, Any]) -> tuple[list[Candidate], dict[str, str]]:
    """Those to which `submit` would send such a config, and why not to the others."""
    found, refused = [], {}
    for candidate in of:
        try:
            checks.check_config(config, candidate.machine, candidate.count, candidate.is_spot)
        except InputError as error:
            refused[str(candidate)] = str(error)
        else:
            found.append(candidate)
    return found, refused


def task_of(config: Mapping[str, Any], options: argparse.Namespace, runs: Sequence[Run]) -> tuple[Task, str]:
    """What is trained, and for how long in words."""
    data = config["data"]
    if options.manifest:
        epoch = workload.planned_epoch(options.manifest, data)
    else:
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
    """How many, and in words why.

    Raises:
        InputError: nothing says how long to train.
    """
    limits = {"--epochs": epochs} if epochs else {}
    if not limits:
        limits = {f"trainer.{name}": trainer.get(name) for name in ("max_steps", "max_epochs")}
    per = {"trainer.max_steps": 1}
    steps = {name: limit * per.get(name, epoch.steps) for name, limit in limits.items() if limit and limit > 0}
    if not steps:
        raise InputError("--epochs: give it; the config has neither trainer.max_steps nor trainer.max_epochs.")
    name = min(steps, key=steps.__getitem__)
    return steps[name], f"{steps[name]} steps: {name} {limits[name]}, {epoch.steps} steps an epoch"


def _length(epochs: int | None) -> tuple[str, ...]:
    """As options of `fit`; one limit replaces the other."""
    return ("--trainer.max_epochs", str(epochs), "--trainer.max_steps", "-1") if epochs else ()
