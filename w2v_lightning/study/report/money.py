"""Cost of training, on demand and spot, and the cost of reaching a word error rate."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from w2v_lightning.catalog.cost import saving, training_usd
from w2v_lightning.catalog.prices import Price
from w2v_lightning.perf_model.runs import Run
from w2v_lightning.reporting.charts import Bar, Point, Series, bar_rows, xy_chart
from w2v_lightning.reporting.document import Block, Figure, Inline, Paragraph, Section, Table
from w2v_lightning.reporting.units import number, percent, seconds, time_unit, usd
from w2v_lightning.study.report.configurations import Configuration, Study, by_cluster, by_device
from w2v_lightning.study.report.overview import last_wer

KINDS = ("on demand", "spot, as billed")
COLUMNS = (
    "configuration", "USD per instance-hour", "trained", "billed", "saved", "interruptions", "USD per run",
    "USD per epoch",
)  # fmt: skip
MAX_CURVES = 6  # more cannot be told apart


@dataclass(frozen=True)
class Bill:
    """Costs of a configuration, means over its runs with known price and billed seconds.

    `usd_per_epoch` is at the measured throughput, with price and discount of the runs, without start-up and replayed
    steps.
    """

    usd_per_run: float
    usd_per_epoch: float
    training_s: float
    billable_s: float
    interruptions: float

    @property
    def saving(self) -> float:
        """Saving as a share of the on-demand cost."""
        return saving(self.training_s, self.billable_s)


def bill(configuration: Configuration) -> Bill | None:
    """Return the costs; None if no run has both a price and billed seconds."""
    costs = [(run, cost) for run in configuration.runs if (cost := _cost(run))]
    if not costs:
        return None
    training_s = fmean(run.training_s for run, _ in costs)
    billable_s = fmean(cost.billable_s for _, cost in costs)
    rate = fmean(cost.usd_per_hour for _, cost in costs)
    epoch_s = configuration.epoch_s * billable_s / training_s
    return Bill(
        usd_per_run=fmean(cost.usd for _, cost in costs),
        usd_per_epoch=training_usd(epoch_s, configuration.cell["count"], rate),
        training_s=training_s,
        billable_s=billable_s,
        interruptions=fmean(run.interruptions for run, _ in costs),
    )


@dataclass(frozen=True)
class Cost:
    """Cost of one run."""

    billable_s: float
    usd_per_hour: float
    usd: float


def _cost(run: Run) -> Cost | None:
    """Return the cost of a run; None if its price or its billed seconds are unknown."""
    if run.price is None or run.billable_s is None:
        return None
    rate = run.price["usd_per_hour"]
    return Cost(run.billable_s, rate, training_usd(run.billable_s, run.cell["count"], rate))


def section(study: Study) -> Section:
    """Show dollars per run and per epoch, where they are known."""
    bills = {each.name: costs for each in study.configurations if (costs := bill(each))}
    if not bills:
        text = "No run has both a price and billed seconds, so costs are unknown."
        return Section("Money", [Paragraph(text, "finding")])
    known = [configuration for configuration in study.configurations if configuration.name in bills]
    clusters = by_cluster(known)

    def chart_of(unit: str, values: dict[str, float]) -> Any:
        return bar_rows([(cluster[0].name, _bars(cluster, values)) for cluster in clusters], KINDS, unit)

    per_epoch = chart_of("USD per epoch", {name: costs.usd_per_epoch for name, costs in bills.items()})
    per_run = chart_of("USD per run", {name: costs.usd_per_run for name, costs in bills.items()})
    blocks: list[Block] = [
        Figure(
            "usd-epoch",
            "Cost of an epoch",
            per_epoch,
            "At the measured throughput; spot with the discount of its runs.",
        ),
        Figure("usd-run", "Cost of a run", per_run, "As billed, with start-up, interruptions and replayed steps."),
        Table(COLUMNS, [_row(configuration, bills[configuration.name]) for configuration in known]),
        Paragraph(price_ages(study), "note"),
    ]
    if missing := [configuration.name for configuration in study.configurations if configuration.name not in bills]:
        blocks.append(Paragraph(f"Without a price or billed seconds: {', '.join(missing)}.", "note"))
    return Section("Money", blocks)


def price_ages(study: Study) -> str:
    """List every price that was used, with its age and source."""
    prices: dict[tuple[str, str, str], dict[str, Any]] = {}
    for recorded in study.recorded:
        if price := recorded.run.price:
            prices[recorded.run.cell["hardware"], price["region"], price["date"]] = price
    described = [
        f"{hardware} in {region}: {Price(price['usd_per_hour'], date, price['source']).described()}"
        for (hardware, region, date), price in sorted(prices.items())
    ]
    return f"Prices: {'; '.join(described)}. Storage, S3 requests and logs are not included."


def wer_section(study: Study) -> Section:
    """Chart the word error rate over dollars, or over time if prices are unknown."""
    validated = [configuration for configuration in study.configurations if any(run.wer for run in configuration.runs)]
    if not validated:
        return Section("Word error rate", [Paragraph("Not measured: no run of this study was validated.", "finding")])
    priced = [each for each in validated if any(run.wer and _cost(run) for run in each.runs)]
    blocks = []
    for i, (device, configurations) in enumerate(by_device(priced or validated).items(), 1):
        best = sorted(configurations, key=_wer_and_price)[:MAX_CURVES]
        unit, unit_s = time_unit(max(run.training_s for configuration in best for run in configuration.runs))
        series = [_wer_series(configuration, None if priced else unit_s) for configuration in best]
        note = "" if priced else "Over time, because these runs have no price. "
        note += f"The best {MAX_CURVES} of {len(configurations)}." if len(configurations) > len(best) else ""
        title = f"WER over {'dollars' if priced else 'time'}: {device}"
        blocks.append(Figure(f"wer-{i}", title, xy_chart(series, "USD" if priced else unit, "WER in %"), note))
    return Section("Word error rate", blocks)


def _bars(cluster: Sequence[Configuration], values: dict[str, float]) -> list[Bar]:
    bars = []
    for each in cluster:
        value = values[each.name]
        bars.append(Bar([(int(each.cell["is_spot"]), value)], usd(value), title=each.name, href=each.href))
    return bars


def _row(configuration: Configuration, costs: Bill) -> list[Inline]:
    rates = sorted({run.price["usd_per_hour"] for run in configuration.runs if run.price})
    return [
        configuration.link,
        " to ".join(number(rate) for rate in dict.fromkeys([rates[0], rates[-1]])),
        seconds(costs.training_s),
        seconds(costs.billable_s),
        percent(costs.saving) if configuration.cell["is_spot"] else "-",
        f"{costs.interruptions:.3g}",
        usd(costs.usd_per_run),
        usd(costs.usd_per_epoch),
    ]


def _wer_series(configuration: Configuration, unit_s: float | None) -> Series:
    """Return the error rates of the first validated run over time in units of `unit_s`, or over dollars if None."""
    for recorded in configuration.recorded:
        run, cost = recorded.run, _cost(recorded.run)
        if run.wer and (unit_s or cost):
            break
    else:
        raise AssertionError(f"{configuration.name} was not validated")
    per_s = cost.usd / run.training_s if cost and not unit_s else 1 / (unit_s or 1)
    points = []
    for entry in run.wer:
        title = f"{configuration.name}, step {entry['step']:g}: {percent(entry['wer'], 1)}"
        points.append(Point(entry["elapsed_s"] * per_s, 100 * entry["wer"], title=title, href=recorded.href))
    return Series(configuration.name, points, is_joined=True)


def _wer_and_price(configuration: Configuration) -> tuple[float, float]:
    """Sort by the last word error rate in tenths of a per cent, then by cost, or by time if the cost is unknown."""
    wer, costs = last_wer(configuration.runs), bill(configuration)
    assert wer is not None, f"{configuration.name} was not validated"
    return round(wer, 3), costs.usd_per_run if costs else min(run.training_s for run in configuration.runs)
