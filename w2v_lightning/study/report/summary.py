"""The report in a few sentences."""

from w2v_lightning.perf_model.fitted import Fitted
from w2v_lightning.reporting.document import Inline, Link, Paragraph, Section
from w2v_lightning.reporting.units import counted, number, percent, seconds, usd
from w2v_lightning.study.report import knee, model_fit
from w2v_lightning.study.report.configurations import Configuration, Study
from w2v_lightning.study.report.money import bill
from w2v_lightning.study.report.scaling import Scaling, scalings


def section(study: Study, fitted: Fitted | str) -> Section:
    """The fastest, the cheapest, how each series scales, and how far to trust predictions."""
    fastest = max(study.configurations, key=lambda one: one.audio_s_per_s.mean)
    said: list[Inline] = [
        ["Fastest: ", _link(fastest), f", {number(fastest.audio_s_per_s.mean)} audio-s/s, an epoch in"
         f" {seconds(fastest.epoch_s)}."],
    ]  # fmt: skip
    bills = {one.name: (one, found) for one in study.configurations if (found := bill(one))}
    if bills:
        one, found = min(bills.values(), key=lambda pair: pair[1].usd_per_epoch)
        said.append(["Cheapest: ", _link(one), f", {usd(found.usd_per_epoch)} an epoch."])
    said += [_scales(series, fitted) for series in scalings(study.physical)]
    said.append(model_fit.summary(fitted) if isinstance(fitted, Fitted) else f"There is no model: {fitted}")
    if study.failed:
        said.append(f"{counted(len(study.failed), 'run')} did not finish.")
    return Section("In short", [Paragraph(sentence, "item") for sentence in said])


def _scales(series: Scaling, fitted: Fitted | str) -> Inline:
    first, last = series.base, series.configurations[-1]
    factor = last.audio_s_per_s.mean / first.audio_s_per_s.mean
    return [
        f"Scaling, {series.label}: {first.world_size} to {last.world_size} devices, {factor:.2f} times as fast,"
        f" {percent(series.efficiency(last).mean)} of linear (",
        _link(last),
        f"). {knee.explained(series, fitted)}",
    ]


def _link(one: Configuration) -> Link:
    return Link(one.name, one.href)
