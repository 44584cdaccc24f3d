"""A plan on the terminal: the best candidate and why, time against money, what was assumed, how to submit it."""

import math
import shlex
from collections import Counter
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from w2v_lightning.catalog.cost import training_usd
from w2v_lightning.catalog.defaults import MAX_HOURS
from w2v_lightning.errors import listed
from w2v_lightning.perf_model.step_time import Terms
from w2v_lightning.planner.assumptions import Assumptions
from w2v_lightning.planner.candidates import Task
from w2v_lightning.planner.planner import DRAWS, Estimate, Recommendation, pareto
from w2v_lightning.reporting.units import duration

MARGIN = 1.25  # of --max-hours over the 90 % bound: a run that is stopped at the limit has to be resubmitted
MOST_REASONS = 6  # for leaving candidates out
COLUMNS = ("instances", "time", "90 %", "USD", "90 %", "misses deadline", "basis", "a step", "of which")


@dataclass(frozen=True)
class Plan:
    """All that there is to say.

    Args:
        found: an estimate of each candidate.
        left_out: why not, of other candidates; and instance types without a price.
        recommendation: the best, or why there is none.
        task: what is trained.
        length: how long, in words.
        assumed: what no run has shown.
        sources: the runs, in words.
        notes: what can and cannot be concluded from them.
        region, deadline_h, budget_usd: as asked.
        config_files: of `fit`.
        overrides: options of `fit`.
    """

    found: list[Estimate]
    left_out: dict[str, str]
    without_price: list[str]
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
    """All of it."""

    def say(text: str = "") -> None:
        console.print(Text(text), soft_wrap=True)

    best = plan.recommendation.best
    say(f"Best: {_summary(best)}" if best else f"No recommendation: {plan.recommendation.why}")
    say()
    for name, lines in facts(plan).items():
        for i, line in enumerate(lines):
            say(f"{name if i == 0 else '':<12} {line}")
    if plan.found:
        say("\nNothing that was considered is both faster and cheaper than one of these, as expected:\n")
        console.print(_table(plan))
    say()
    for line in notes(plan):
        say(line)
    if best:
        say("\nTo run it (--role, --data and --output, or their variables: docs/sagemaker.md):\n")
        say(f"  {shlex.join(submit_command(plan, best))}")


def facts(plan: Plan) -> dict[str, list[str]]:
    """Of the best candidate; without one, of the task alone."""
    best = plan.recommendation.best
    found = {"task": [plan.length, plan.task.epoch.basis], "limits": _limits(plan)}
    if best:
        found["risk"] = [] if best.risk is None else [f"{best.risk:.1%} of {DRAWS} drawn runs miss the deadline"]
        found["why"] = why(plan, best)
        found["step"] = [f"{best.terms.step_s:.3g} s: {parts(best.terms)}"]
        found["basis"] = [f"{best.basis}, from {plan.sources}", *best.reasons]
        found["price"] = [f"{best.price.described()}, {plan.region}"]
        found["saving"] = [best.saving] if best.saving else []
        found["interrupted"] = [f"{best.interruptions:.2g} times, on average"] if best.candidate.is_spot else []
        found["assumed"] = plan.assumed.described(best.candidate.is_spot)
    return found


def _limits(plan: Plan) -> list[str]:
    limits = [f"{plan.deadline_h:g} h"] if plan.deadline_h else []
    limits += [f"${plan.budget_usd:g}"] if plan.budget_usd else []
    return [f"{' and '.join(limits)}, to be kept in 9 of 10 cases"] if limits else []


def why(plan: Plan, best: Estimate) -> list[str]:
    """The best against those that somebody would ask about."""
    within = " within the limits" if _limits(plan) else ""
    said = [f"the cheapest{within} of {len(plan.found)} candidates"]
    cheapest = min(plan.found, key=lambda one: (one.usd, one.hours))
    if cheapest is not best:
        said.append(f"cheaper, but not within the limits: {_summary(cheapest)}")
    fastest = min(plan.found, key=lambda one: (one.hours, one.usd))
    if fastest is not best:
        said.append(f"the fastest: {_summary(fastest)}")
    if other := _other_pricing(plan, best):
        said.append(f"the same {'on demand' if best.candidate.is_spot else 'on spot'}: {_summary(other)}")
    return said


def _other_pricing(plan: Plan, best: Estimate) -> Estimate | None:
    """The same instances, on demand instead of spot, or the other way round."""

    def machines(one: Estimate) -> tuple:
        return one.candidate.instance_type, one.candidate.count

    return next((one for one in plan.found if machines(one) == machines(best) and one is not best), None)


def parts(terms: Terms) -> str:
    """Shares of a step, the largest first."""
    name = "data" if terms.data_s > terms.compute_s else "compute"
    seconds = {name: max(terms.data_s, terms.compute_s)} | {
        "loading": terms.loading_behind_s,
        "communication": terms.exposed_s,
        "imbalance": terms.imbalance_s,
        "overhead": terms.overhead_s,
    }
    shares = sorted(((value / terms.step_s, name) for name, value in seconds.items()), reverse=True)
    return ", ".join(f"{name} {share:.0%}" for share, name in shares if share >= 0.005)


def notes(plan: Plan) -> list[str]:
    """What holds for all candidates."""
    found = [
        "Not counted: validation (a third of the time of training on as much audio), waiting for on-demand instances,"
        " disks, S3, logs.",
        *plan.notes,
    ]
    oldest = max((one.price for one in plan.found), key=lambda price: price.age_days(), default=None)
    if oldest:
        found.append(f"The oldest price used is of {oldest.date} ({oldest.age()}); `study prices --refresh` asks AWS.")
    if plan.without_price:
        found.append(f"Left out, for {plan.region} has no price in prices.csv: {listed(plan.without_price)}.")
    reasons = Counter(plan.left_out.values()).most_common()
    for reason, count in reasons[:MOST_REASONS]:
        of = [name for name, text in plan.left_out.items() if text == reason]
        found.append(f"Left out, {count} ({of[0]}{', ...' if count > 1 else ''}): {reason}")
    if len(reasons) > MOST_REASONS:
        found.append(f"Left out for {len(reasons) - MOST_REASONS} other reasons: others.")
    return found


def submit_command(plan: Plan, best: Estimate) -> list[str]:
    """The line that runs it; it is stopped later than it should ever end."""
    candidate, hourly_usd = best.candidate, training_usd(3600, best.candidate.count, best.price.usd_per_hour)
    max_hours = min(math.ceil(best.billed_hours_p90 * MARGIN * 10) / 10, MAX_HOURS)
    is_bounded = plan.budget_usd is not None and not candidate.is_spot  # --budget counts spot like on demand
    if is_bounded:
        max_hours = min(max_hours, math.floor(plan.budget_usd / hourly_usd * 100) / 100)
    return [
        *(
            "python",
            "-m",
            "w2v_lightning",
            "submit",
            *(part for file in plan.config_files for part in ("--config", file)),
        ),
        *("--instance-type", candidate.instance_type, "--count", str(candidate.count)),
        *(("--spot",) if candidate.is_spot else ()),
        *("--max-hours", f"{max_hours:g}", "--region", plan.region),
        *(("--budget", f"{plan.budget_usd:g}") if is_bounded else ()),
        *plan.overrides,
    ]


def _table(plan: Plan) -> Table:
    table = Table(box=None, pad_edge=False)
    for title in COLUMNS:
        is_text = title in ("instances", "basis", "of which")
        table.add_column(title, justify="left" if is_text else "right", overflow="fold")
    for one in pareto(plan.found):
        is_best = one is plan.recommendation.best
        table.add_row(*_cells(one), style="bold" if is_best else "")
    return table


def _cells(one: Estimate) -> tuple[str, ...]:
    risk = "-" if one.risk is None else f"{one.risk:.0%}"
    times = duration(3600 * one.hours), duration(3600 * one.hours_p90)
    money = f"{one.usd:.2f}", f"{one.usd_p90:.2f}"
    return (str(one.candidate), *times, *money, risk, one.basis, f"{one.terms.step_s:.3g} s", parts(one.terms))


def _summary(one: Estimate) -> str:
    time, time_p90 = duration(3600 * one.hours), duration(3600 * one.hours_p90)
    return f"{one.candidate}, {time} (90 %: {time_p90}), ${one.usd:.2f} (90 %: ${one.usd_p90:.2f}), {one.basis}"
