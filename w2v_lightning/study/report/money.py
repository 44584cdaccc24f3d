"""What training cost, on demand against spot, and what a word error rate cost."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from w2v_lightning.catalog.cost import saving, training_usd
from w2v_lightning.catalog.prices import Price
from w2v_lightning.perf_model.runs import Run
from w2v_lightning.reporting.charts import Point, Series, xy_chart
from w2v_lightning.reporting.document import Figure, Inline, Link, Paragraph, Section, Table
from w2v_lightning.reporting.rows import Bar, bar_rows
from w2v_lightning.reporting.units import number, percent, seconds, time_unit, usd
from w2v_lightning.study.report.configurations import Configuration, Study, by_device, paid_in_two_ways
from w2v_lightning.study.report.overview import last_wer

KINDS = ("on demand", "spot, as billed")
AXES = {"usd_per_epoch": "USD per epoch", "usd_per_run": "USD per run"}
COLUMNS = (
    "configuration", "USD per instance and hour", "trained", "billed", "saved", "interruptions", "USD per run",
    "USD per epoch",
)  # fmt: skip
MAX_CURVES = 6  # more cannot be told apart


@dataclass(frozen=True)
class Bill:
    """Of the runs of a configuration whose billed seconds and price are known: means.

    `usd_per_epoch` is at the measured pace: price and discount are the runs', start-up and replays are not in it.
    """

    usd_per_run: float
    usd_per_epoch: float
    training_s: float
    billable_s: float
    interruptions: float

    @property
    def saving(self) -> float:
        return saving(self.training_s, self.billable_s)


def bill(one: Configuration) -> Bill | None:
    """None where no run has both a price and billed seconds."""
    billed = [run for run in one.runs if usd_of(run) is not None]
    if not billed:
        return None
    training_s, billable_s = (fmean(getattr(run, name) for run in billed) for name in ("training_s", "billable_s"))
    share = billable_s / training_s
    rate = fmean(run.price["usd_per_hour"] for run in billed)
    return Bill(
        usd_per_run=fmean(usd_of(run) for run in billed),
        usd_per_epoch=training_usd(one.epoch_s * share, one.cell["count"], rate),
        training_s=training_s,
        billable_s=billable_s,
        interruptions=fmean(run.interruptions for run in billed),
    )


def usd_of(run: Run) -> float | None:
    """What it was billed; None where that, or the price, is not known."""
    if run.price is None or run.billable_s is None:
        return None
    return training_usd(run.billable_s, run.cell["count"], run.price["usd_per_hour"])


def section(study: Study) -> Section:
    """Dollars per run and epoch, as far as they are known."""
    bills = {one.name: found for one in study.configurations if (found := bill(one))}
    if not bills:
        text = "No run has both a price and billed seconds: nothing here has a cost, and none is made up."
        return Section("Money", [Paragraph(text, "finding")])
    known = [one for one in study.configurations if one.name in bills]
    pairs = paid_in_two_ways(known)
    per_epoch, per_run = (
        bar_rows([(its[0].name, _bars(its, bills, name)) for its in pairs], KINDS, AXES[name]) for name in AXES
    )
    blocks: list = [
        Figure("usd-epoch", "Cost of an epoch", per_epoch, "At the measured pace; spot with the discount of its runs."),
        Figure("usd-run", "Cost of a run", per_run, "As billed: start-up, interruptions and replays are in it."),
        Table(COLUMNS, [_row(one, bills[one.name]) for one in known]),
        Paragraph(price_ages(study), "note"),
    ]
    if missing := [one.name for one in study.configurations if one.name not in bills]:
        blocks.append(Paragraph(f"Without a price or billed seconds: {', '.join(missing)}.", "note"))
    return Section("Money", blocks)


def price_ages(study: Study) -> str:
    """Every price that was used, with its age and source."""
    used: dict[tuple, dict[str, Any]] = {}
    for one in study.recorded:
        if price := one.run.price:
            used[one.run.cell["hardware"], price["region"], price["date"]] = price
    described = [
        f"{hardware} in {price['region']}: {Price(price['usd_per_hour'], price['date'], price['source']).described()}"
        for (hardware, _, _), price in sorted(used.items())
    ]
    return f"Prices: {'; '.join(described)}. Not counted: storage and requests of S3, logs."


def wer_section(study: Study) -> Section:
    """Word error rate over dollars, or over time where there are no prices."""
    with_wer = [one for one in study.configurations if any(run.wer for run in one.runs)]
    if not with_wer:
        return Section("Word error rate", [Paragraph("Not measured: no run of this study was validated.", "finding")])
    are_priced = [one for one in with_wer if any(run.wer and usd_of(run) is not None for run in one.runs)]
    blocks = []
    for i, (device, its) in enumerate(by_device(are_priced or with_wer).items(), 1):
        shown = sorted(its, key=_wer_and_price)[:MAX_CURVES]
        longest_s = max(run.training_s for one in shown for run in one.runs)
        x_label, in_s = ("USD", None) if are_priced else time_unit(longest_s)
        series = [_wer_series(one, in_s) for one in shown]
        note = "" if are_priced else "Over time: these runs have no price. "
        note += f"The best {MAX_CURVES} of {len(its)}." if len(its) > len(shown) else ""
        title = f"WER against {'dollars' if are_priced else 'time'}: {device}"
        blocks.append(Figure(f"wer-{i}", title, xy_chart(series, x_label, "WER (per cent)"), note))
    return Section("Word error rate", blocks)


def _bars(its: Sequence[Configuration], bills: dict[str, Bill], name: str) -> list[Bar]:
    bars = []
    for one in its:
        value = getattr(bills[one.name], name)
        bars.append(Bar([(int(one.cell["is_spot"]), value)], usd(value), href=one.href, title=one.name))
    return bars


def _row(one: Configuration, found: Bill) -> list[Inline]:
    rates = sorted({run.price["usd_per_hour"] for run in one.runs if run.price})
    return [
        Link(one.name, one.href),
        " to ".join(number(rate) for rate in dict.fromkeys([rates[0], rates[-1]])),
        seconds(found.training_s),
        seconds(found.billable_s),
        percent(found.saving) if one.cell["is_spot"] else "-",
        f"{found.interruptions:.3g}",
        usd(found.usd_per_run),
        usd(found.usd_per_epoch),
    ]


def _wer_series(one: Configuration, in_s: float | None) -> Series:
    """Of its first run that was validated, over units of so many seconds, or where that is None over dollars."""
    recorded = next(r for r in one.recorded if r.run.wer and (in_s or usd_of(r.run) is not None))
    run = recorded.run
    per_s = 1 / in_s if in_s else usd_of(run) / run.training_s
    points = []
    for entry in run.wer:
        title = f"{one.name}, step {entry['step']:g}: {percent(entry['wer'], 1)}"
        points.append(Point(entry["elapsed_s"] * per_s, 100 * entry["wer"], title=title, href=recorded.href))
    return Series(one.name, points, is_joined=True)


def _wer_and_price(one: Configuration) -> tuple[float, float]:
    """The last word error rate in tenths of a per cent; of the same one the cheaper, or the shorter."""
    found = bill(one)
    return round(last_wer(one.runs), 3), found.usd_per_run if found else min(run.training_s for run in one.runs)
