"""The report in a few sentences."""

from w2v_lightning.perf_model.fitted import Fitted
from w2v_lightning.reporting.document import Bullets, Inline, Section
from w2v_lightning.reporting.units import counted, number, percent, seconds, usd
from w2v_lightning.study.report import knee, model_fit
from w2v_lightning.study.report.configurations import Study
from w2v_lightning.study.report.money import bill
from w2v_lightning.study.report.scaling import Scaling, scalings


def section(study: Study, fitted: Fitted | str) -> Section:
    """Name the fastest and the cheapest configuration, how each series scales, and how far to trust predictions."""
    fastest = max(study.configurations, key=lambda configuration: configuration.audio_s_per_s.mean)
    rate, epoch = number(fastest.audio_s_per_s.mean), seconds(fastest.epoch_s)
    sentences: list[Inline] = [["Fastest: ", fastest.link, f", {rate} audio-s/s, an epoch in {epoch}."]]
    bills = [(configuration, costs) for configuration in study.configurations if (costs := bill(configuration))]
    if bills:
        cheapest, costs = min(bills, key=lambda pair: pair[1].usd_per_epoch)
        sentences.append(["Cheapest: ", cheapest.link, f", {usd(costs.usd_per_epoch)} per epoch."])
    sentences += [_scales(series, fitted) for series in scalings(study.physical)]
    sentences.append(model_fit.summary(fitted) if isinstance(fitted, Fitted) else f"There is no model: {fitted}")
    if study.failed:
        sentences.append(f"{counted(len(study.failed), 'run')} did not finish.")
    return Section("Summary", [Bullets(sentences)])


def _scales(series: Scaling, fitted: Fitted | str) -> Inline:
    first, last = series.base, series.configurations[-1]
    factor = last.audio_s_per_s.mean / first.audio_s_per_s.mean
    return [
        f"Scaling, {series.label}: {first.world_size} to {last.world_size} devices, {factor:.2f} times as fast,"
        f" {percent(series.efficiency(last).mean)} of linear (",
        last.link,
        f"). {knee.explained(series, fitted)}",
    ]
