"""A study's report, made from its runs and the model fitted to them."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime

from w2v_lightning.errors import InputError
from w2v_lightning.perf_model import fitting
from w2v_lightning.perf_model.fitted import Fitted
from w2v_lightning.reporting.document import Document, Section
from w2v_lightning.reporting.units import counted, number, percent, seconds, usd
from w2v_lightning.study.report import claims, elsewhere, knee, model_fit, money, overview, performance, summary
from w2v_lightning.study.report.configurations import Study
from w2v_lightning.study.report.elsewhere import Elsewhere


def fitted_or_why(study: Study) -> Fitted | str:
    """Fit the model to all measured runs; return the reason if that is impossible.

    On demand and spot runs of a cell count as one configuration: otherwise each would be predicted from the other.
    """
    runs = [
        replace(run, cell=run.cell | {"name": configuration.name})
        for configuration in study.physical
        for run in configuration.runs
    ]
    try:
        return fitting.fit(runs, leaves_one_out=True)
    except InputError as error:
        return str(error)


def document(study: Study, fitted: Fitted | str, title: str | None = None) -> Document:
    """Return the whole report; the default title is the name of the study's folder."""
    return Document(
        title=title or f"Study {study.name}",
        subtitle=f"Measured: {counted(len(study.recorded), 'run')} of"
        f" {counted(len(study.configurations), 'configuration')}. Report of {datetime.now(UTC):%Y-%m-%d}.",
        facts=_facts(study, fitted),
        sections=list(_sections(study, fitted)),
    )


def _sections(study: Study, fitted: Fitted | str) -> Iterator[Section]:
    if study.configurations:
        yield summary.section(study, fitted)
    yield overview.section(study, fitted)
    if failures := overview.failures(study):
        yield failures
    if not study.configurations:
        return
    predictions = Elsewhere(study, fitted)
    yield performance.speed_section(study, knee.curves, lambda series: knee.predicted_points(series, fitted))
    yield knee.section(study, fitted)
    yield performance.device_section(study)
    yield money.section(study)
    yield money.wer_section(study)
    yield model_fit.section(study, fitted)
    yield claims.section(study, predictions)
    yield elsewhere.section(predictions)


def _facts(study: Study, fitted: Fitted | str) -> dict[str, str]:
    facts = {}
    if study.configurations:
        facts["highest audio-s/s"] = number(max(each.audio_s_per_s.mean for each in study.configurations))
        facts["shortest epoch"] = seconds(min(each.epoch_s for each in study.configurations))
    costs = [bill.usd_per_epoch for each in study.configurations if (bill := money.bill(each))]
    if costs:
        facts["cheapest epoch"] = usd(min(costs))
    left_out = [] if isinstance(fitted, str) else fitted.leave_one_out.values()
    errors = [abs(prediction.error) for prediction in left_out if prediction.error is not None]
    if errors:
        facts["largest prediction error"] = percent(max(errors), 1)
    return facts
