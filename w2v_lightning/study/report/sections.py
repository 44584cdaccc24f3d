"""A study's report, from its runs and the model that was fitted to them."""

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
    """The model of all runs that were measured; or why there is none.

    On demand and spot of the same are one configuration: else either would be predicted from the other.
    """
    runs = [replace(run, cell=run.cell | {"name": one.name}) for one in study.physical for run in one.runs]
    try:
        return fitting.fit(runs, leaves_one_out=True)
    except InputError as error:
        return str(error)


def document(study: Study, fitted: Fitted | str, title: str | None = None) -> Document:
    """All of the report; its title is the name of the study's folder, unless there is another."""
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
    there = Elsewhere(study, fitted)
    yield performance.speed_section(study, knee.curves, lambda series: knee.predicted_points(series, fitted))
    yield knee.section(study, fitted)
    yield performance.device_section(study)
    yield money.section(study)
    yield money.wer_section(study)
    yield model_fit.section(study, fitted)
    yield claims.section(study, there)
    yield elsewhere.section(there)


def _facts(study: Study, fitted: Fitted | str) -> dict[str, str]:
    facts = {}
    if study.configurations:
        fastest = max(study.configurations, key=lambda one: one.audio_s_per_s.mean)
        facts["audio-s/s at most"] = number(fastest.audio_s_per_s.mean)
        facts["shortest epoch"] = seconds(min(one.epoch_s for one in study.configurations))
    costs = [found.usd_per_epoch for one in study.configurations if (found := money.bill(one))]
    if costs:
        facts["cheapest epoch"] = usd(min(costs))
    left_out = [] if isinstance(fitted, str) else fitted.leave_one_out.values()
    errors = [abs(left.error) for left in left_out if left.error is not None]
    if errors:
        facts["largest error of a prediction"] = percent(max(errors), 1)
    return facts
