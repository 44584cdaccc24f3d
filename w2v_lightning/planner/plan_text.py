"""Terminal output of a plan: best candidate and why, time against cost, assumptions, and the command to submit it."""

import math
import re
import shlex
from collections import Counter
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from w2v_lightning.catalog.cost import training_usd
from w2v_lightning.catalog.dated import OLD_DAYS
from w2v_lightning.catalog.defaults import MAX_HOURS
from w2v_lightning.catalog.instances import Instance
from w2v_lightning.perf_model.step_time import Terms
from w2v_lightning.planner import launch_text
from w2v_lightning.planner.assumptions import Assumptions
from w2v_lightning.planner.candidates import Task
from w2v_lightning.planner.launch_text import CHECKPOINTS
from w2v_lightning.planner.offers import BOX
from w2v_lightning.planner.planner import DRAWS, Estimate, Recommendation, pareto, recommend
from w2v_lightning.reporting.units import duration

MARGIN = 1.25  # ratio of --max_hours to the 90 % bound: a run stopped at the limit has to be resubmitted
MAX_REASONS = 6  # printed reasons for excluding candidates
COLUMNS = ("instances", "time", "90 %", "USD", "90 %", "misses deadline", "basis", "step", "parts of the step")


@dataclass(frozen=True)
class Plan:
    """Content of a plan.

    Args:
        estimates: estimate of each candidate that can train the task.
        left_out: reason for excluding each other candidate, or type of machine.
        machines: machines that were considered, by the name of their type.
        recommendation: best candidate, or why there is none.
        task: training to plan.
        length: length of the training, in words.
        assumed: assumptions that no run has measured.
        sources: description of the runs.
        notes: limits of what can be concluded from the runs.
        region: AWS region; "" if no candidate is AWS's.
        deadline_h: limit on the time, in hours.
        budget_usd: limit on the cost, in dollars.
        config_files: config files of `fit`.
        overrides: options of `fit` that override the config files.
    """

    estimates: list[Estimate]
    left_out: dict[str, str]
    machines: dict[str, Instance]
    recommendation: Recommendation
    task: Task
    length: str
    assumed: Assumptions
    sources: str
    notes: tuple[str, ...]
    region: str
    deadline_h: float | None
    budget_usd: float | None
    config_files: tuple[str, ...]
    overrides: tuple[str, ...]


def print_plan(plan: Plan, console: Console) -> None:
    """Print the plan."""

    def say(text: str = "") -> None:
        console.print(Text(text), soft_wrap=True)

    best = plan.recommendation.best
    say(f"Best: {_summary(best)}" if best else f"No recommendation: {plan.recommendation.why}")
    for line in beside(plan):
        say(line)
    say()
    for name, lines in facts(plan).items():
        for i, line in enumerate(lines):
            say(f"{name if i == 0 else '':<12} {line}")
    if plan.estimates:
        say("\nPareto-optimal candidates (expected time against expected cost):\n")
        console.print(_table(plan))
    say()
    for line in notes(plan):
        say(line)
    for line in launch_lines(plan, best) if best else []:
        say(line)


def launch_lines(plan: Plan, best: Estimate) -> list[str]:
    """Return what runs the best candidate: a command, or a task of SkyPilot."""
    candidate = best.candidate
    if candidate.offer is None:
        title = "Command to run it (add --role, --data and --output, or set their variables; see docs/sagemaker.md):"
        return ["", title, "", f"  {shlex.join(submit_command(plan, best))}"]
    if candidate.offer.place == BOX:
        command = launch_text.torchrun_command(candidate, plan.config_files, plan.overrides)
        return ["", "Command to run it on that machine:", "", f"  {shlex.join(command)}"]
    verb = "sky jobs launch" if candidate.is_spot else "sky launch"
    title = f"Task of SkyPilot (docs.skypilot.co). Save it as w2v.yaml in the checkout, then `{verb} w2v.yaml`."
    if candidate.is_spot:
        title += f" Name a bucket of yours in it: an interrupted run resumes from {CHECKPOINTS}."
    task = launch_text.skypilot_task(candidate, plan.config_files, plan.overrides)
    return ["", title, "", *launch_text.skypilot_text(task).splitlines()]


def beside(plan: Plan) -> list[str]:
    """Return what to know beside the recommendation: GPUs without a candidate, and estimated or old prices."""
    gpus_by_reason: dict[str, list[str]] = {}
    for gpu, reason in gpus_left_out(plan).items():
        gpus_by_reason.setdefault(reason, []).append(gpu)
    lines = [f"Not compared: {', '.join(gpus)}: {reason}." for reason, gpus in gpus_by_reason.items()]
    listed = {estimate.candidate.machine.gpu for estimate in plan.estimates if not estimate.price.log_sd}
    estimated = {estimate.candidate.machine.gpu for estimate in plan.estimates} - listed
    if estimated:
        lines.append(f"Prices estimated, because no list has them: {', '.join(sorted(estimated))}.")
    best = plan.recommendation.best
    if best and not best.price.is_of_region:
        lines.append(f"WARNING: no list shows that {plan.region} has {best.candidate.instance_type}. {_sure(plan)}")
    if best and best.is_old:
        lines.append(f"WARNING: its price, or that of spot, may be over {OLD_DAYS} days old: see price and saving.")
    return lines


def _sure(plan: Plan) -> str:
    """Return the recommendation among machines that a list shows in the region."""
    known = [estimate for estimate in plan.estimates if estimate.price.is_of_region]
    sure = recommend(known, plan.deadline_h, plan.budget_usd)
    return f"Best of those that it has: {_summary(sure.best)}." if sure.best else f"Of those that it has, {sure.why}"


def gpus_left_out(plan: Plan) -> dict[str, str]:
    """Return the GPUs that no candidate has, each with the first reason."""
    compared = {estimate.candidate.machine.gpu for estimate in plan.estimates}
    reasons: dict[str, str] = {}
    for name, reason in plan.left_out.items():
        machine = plan.machines.get(re.sub(r"^\d+ x | \(\w+\)|, (spot|on demand)$", "", name))
        gpu = machine.gpu if machine else name  # GPUs that are unknown here have no machine
        if gpu not in compared:
            reasons.setdefault(gpu, re.split(r"\. (?=[A-Z])", reason)[0].rstrip("."))
    return reasons


def facts(plan: Plan) -> dict[str, list[str]]:
    """Return the facts about the best candidate, or without one about the task alone: lines by title."""
    best = plan.recommendation.best
    lines = {"task": [plan.length, plan.task.epoch.basis], "limits": _limits(plan)}
    if best:
        lines["risk"] = [] if best.risk is None else [f"{best.risk:.1%} of {DRAWS} simulated runs miss the deadline"]
        lines["why"] = why(plan, best)
        lines["step"] = [f"{best.terms.step_s:.3g} s: {parts(best.terms)}"]
        lines["basis"] = [f"{best.basis}, from {plan.sources}", *best.reasons]
        place = best.candidate.offer.region if best.candidate.offer else plan.region
        lines["price"] = [f"{best.price.described()}{f', {place}' if place else ''}"]
        lines["saving"] = [best.saving] if best.saving else []
        lines["interrupted"] = [f"{best.interruptions:.2g} times on average"] if best.candidate.is_spot else []
        lines["assumed"] = plan.assumed.described(best.candidate.is_spot)
    return lines


def _limits(plan: Plan) -> list[str]:
    limits = [f"{plan.deadline_h:g} h"] if plan.deadline_h else []
    limits += [f"${plan.budget_usd:g}"] if plan.budget_usd else []
    return [f"{' and '.join(limits)}, which 9 of 10 runs must meet"] if limits else []


def why(plan: Plan, best: Estimate) -> list[str]:
    """Return comparisons of the best candidate with the cheapest, the fastest and the other pricing."""
    within = " within the limits" if _limits(plan) else ""
    lines = [f"the cheapest{within} of {len(plan.estimates)} candidates"] if len(plan.estimates) > 1 else []
    cheapest = min(plan.estimates, key=lambda estimate: (estimate.usd, estimate.hours))
    if cheapest is not best:
        lines.append(f"cheaper, but not within the limits: {_summary(cheapest)}")
    fastest = min(plan.estimates, key=lambda estimate: (estimate.hours, estimate.usd))
    if fastest is not best:
        lines.append(f"the fastest: {_summary(fastest)}")
    if other := _other_pricing(plan, best):
        lines.append(f"the same {'on demand' if best.candidate.is_spot else 'on spot'}: {_summary(other)}")
    return lines


def _other_pricing(plan: Plan, best: Estimate) -> Estimate | None:
    """Estimate of the same instances on demand instead of spot, or vice versa."""

    def machines(estimate: Estimate) -> tuple[str, int]:
        return estimate.candidate.instance_type, estimate.candidate.count

    same_machines = (estimate for estimate in plan.estimates if machines(estimate) == machines(best))
    return next((estimate for estimate in same_machines if estimate is not best), None)


def parts(terms: Terms) -> str:
    """Return the parts of a step as percentages, the largest first."""
    name = "data" if terms.data_s > terms.compute_s else "compute"
    seconds = {name: max(terms.data_s, terms.compute_s)} | {
        "loading": terms.serial_loading_s,
        "communication": terms.exposed_s,
        "imbalance": terms.imbalance_s,
        "overhead": terms.overhead_s,
    }
    shares = sorted(((value / terms.step_s, name) for name, value in seconds.items()), reverse=True)
    return ", ".join(f"{name} {share:.0%}" for share, name in shares if share >= 0.005)


def notes(plan: Plan) -> list[str]:
    """Return notes that apply to all candidates."""
    lines = [
        "Not included: validation (a third of the time of training on as much audio), waits for on-demand instances,"
        " disks, S3 and logs.",
        *plan.notes,
    ]
    oldest = max((estimate.price for estimate in plan.estimates), key=lambda price: price.age_days(), default=None)
    if oldest:
        lines.append(f"The oldest price used is of {oldest.origin()}; --refresh gets newer ones.")
    reasons = Counter(plan.left_out.values()).most_common()
    for reason, count in reasons[:MAX_REASONS]:
        example = next(name for name, text in plan.left_out.items() if text == reason)
        lines.append(f"Excluded: {count} ({example}{', ...' if count > 1 else ''}): {reason}")
    if rest := sum(count for _, count in reasons[MAX_REASONS:]):
        lines.append(f"Excluded: {rest} more, for {len(reasons) - MAX_REASONS} other reasons.")
    return lines


def submit_command(plan: Plan, best: Estimate) -> list[str]:
    """Return the command that submits the candidate; its --max_hours exceed the 90 % bound of the billed time."""
    candidate, hourly_usd = best.candidate, training_usd(3600, best.candidate.count, best.price.most_usd_per_hour)
    max_hours = min(math.ceil(best.billed_hours_p90 * MARGIN * 10) / 10, MAX_HOURS)
    # `submit` counts spot at the on-demand price, so --budget could refuse a spot job that is within the budget.
    budget_usd = None if candidate.is_spot else plan.budget_usd
    if budget_usd is not None:
        max_hours = min(max_hours, math.floor(budget_usd / hourly_usd * 100) / 100)
    return [
        *("python", "-m", "w2v_lightning", "submit"),
        *(part for file in plan.config_files for part in ("--config", file)),
        *("--instance_type", candidate.instance_type, "--count", str(candidate.count)),
        *(("--spot",) if candidate.is_spot else ()),
        *("--max_hours", f"{max_hours:g}", "--region", plan.region),
        *(() if budget_usd is None else ("--budget", f"{budget_usd:g}")),
        *plan.overrides,
    ]


def _table(plan: Plan) -> Table:
    table = Table(box=None, pad_edge=False)
    for title in COLUMNS:
        is_text = title in ("instances", "basis", "parts of the step")
        table.add_column(title, justify="left" if is_text else "right", overflow="fold")
    for estimate in pareto(plan.estimates):
        is_best = estimate is plan.recommendation.best
        table.add_row(*_cells(estimate), style="bold" if is_best else "")
    return table


def _cells(estimate: Estimate) -> tuple[str, ...]:
    risk = "-" if estimate.risk is None else f"{estimate.risk:.0%}"
    times = duration(3600 * estimate.hours), duration(3600 * estimate.hours_p90)
    money = f"{estimate.usd:.2f}", f"{estimate.usd_p90:.2f}"
    step = f"{estimate.terms.step_s:.3g} s", parts(estimate.terms)
    return str(estimate.candidate), *times, *money, risk, estimate.basis, *step


def _summary(estimate: Estimate) -> str:
    time, time_p90 = duration(3600 * estimate.hours), duration(3600 * estimate.hours_p90)
    money = f"${estimate.usd:.2f} (90 %: ${estimate.usd_p90:.2f})"
    return f"{estimate.candidate}, {time} (90 %: {time_p90}), {money}, {estimate.basis}"
