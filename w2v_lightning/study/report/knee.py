"""Where more devices stop to pay, and why: as measured, and beyond that by the model; the laws of scaling beside it."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from w2v_lightning.errors import InputError
from w2v_lightning.perf_model import laws
from w2v_lightning.perf_model.fitted import Fitted, Prediction
from w2v_lightning.perf_model.laws import Law
from w2v_lightning.perf_model.step_time import LAUNCHING, Setup, Terms
from w2v_lightning.reporting.charts import Curve, Point
from w2v_lightning.reporting.document import Figure, Inline, Paragraph, Section, Table
from w2v_lightning.reporting.rows import Bar, bar_rows
from w2v_lightning.reporting.units import counted, number, percent, seconds
from w2v_lightning.study.report.configurations import Study
from w2v_lightning.study.report.performance import PARTS
from w2v_lightning.study.report.scaling import Scaling, scalings

MOST_GPUS = 8  # of one host
CURVE_POINTS = 60
LAUNCHES = "It is launching, by the model."
LAUNCHING_NOTE = (
    "Launching: the host hands a micro-batch to the GPU. That takes as long for a short one: it does not shrink with"
    " more devices, and longer steps (data.batch_seconds) move the knee."
)
NOTE = "With perfect scaling all rows would be of the same length: what gets longer is what the knee is made of."


@dataclass(frozen=True)
class Beyond:
    """More devices than were measured."""

    devices: int
    prediction: Prediction
    audio_s: float  # of a step


def section(study: Study, fitted: Fitted | str) -> Section:
    """The knee of each series in words, what grows in a picture, the laws in a table."""
    found = scalings(study.physical)
    if not found:
        text = "There is no series of several numbers of devices: whether more would pay was not measured."
        return Section("The knee", [Paragraph(text, "finding")])
    figures = [_figure(one, beyond(one, fitted), i) for i, one in enumerate(found, 1)]
    laws_of = [(one, list(_laws(one))) for one in found]
    reasons = [f"{one.label}: {explained(one, fitted)}" for one in found]
    note = "Error: standard deviation of the throughput around the law. A law with as many unknowns as points has none."
    table = Table(["series", "law", "one device", "serial", "crosstalk", "peak", "error"], _rows(laws_of), num_text=2)
    notes = [Paragraph(text, "note") for text in (*_unfitted(laws_of), note)]
    if any(LAUNCHES in reason for reason in reasons):
        notes.append(Paragraph(LAUNCHING_NOTE, "note"))
    return Section("The knee", [*map(Paragraph, reasons), *figures, table, *notes])


def curves(series: Scaling) -> list[Curve]:
    """Amdahl's law and USL, as far as there are points for them."""
    first, last = (one.world_size for one in (series.base, series.configurations[-1]))
    places = [first + (last - first) * i / CURVE_POINTS for i in range(CURVE_POINTS + 1)]
    return [Curve(law.name, [(x, law.rate(x)) for x in places]) for law in _laws(series) if isinstance(law, Law)]


def beyond(series: Scaling, fitted: Fitted | str) -> list[Beyond]:
    """Twice as many devices as were measured, and four times where no knee was: as predicted; none for CPUs.

    Processes share their machine's cores; more of them are another machine.
    """
    last = series.configurations[-1]
    if isinstance(fitted, str) or not last.is_gpu:
        return []
    factors = (2,) if laws.knee(_measured(series)) else (2, 4)
    setups = filter(None, (_larger(last.setup, factor) for factor in factors))
    return [Beyond(s.world_size, fitted.predict(s), s.audio_s) for s in setups]


def predicted_points(series: Scaling, fitted: Fitted | str) -> list[Point]:
    """Audio per second beyond what was measured, with 90 % intervals."""
    return [
        Point(
            one.devices,
            one.audio_s / one.prediction.terms.step_s,
            one.audio_s / one.prediction.high_s,
            one.audio_s / one.prediction.low_s,
            f"{one.devices} devices, predicted",
            is_predicted=True,
        )
        for one in beyond(series, fitted)
    ]


def explained(series: Scaling, fitted: Fitted | str) -> str:
    """In words: the measured knee, or the predicted one, or that there is none so far."""
    measured, more = _measured(series), beyond(series, fitted)
    bottlenecks = {one.world_size: one.bottleneck(fitted) for one in series.configurations}
    bottlenecks |= {one.devices: one.prediction.bottleneck for one in more}
    if found := laws.knee(measured):
        return f"The knee is at {counted(found.devices, 'device')}, measured. {_why(found, bottlenecks)}"
    said = f"Up to {counted(max(measured), 'device')} each further one adds at least half of what the first brought."
    if not more:
        return said
    if found := laws.knee(measured | {one.devices: one.prediction.terms for one in more}):
        return f"{said} The knee is predicted at {counted(found.devices, 'device')}. {_why(found, bottlenecks)}"
    return f"{said} Predicted, it stays so up to {more[-1].devices}."


def _why(found: laws.Knee, bottlenecks: Mapping[int, str]) -> str:
    if found.term == "compute" and bottlenecks[found.next_devices] == LAUNCHING:
        return f"{found.reason} {LAUNCHES}"
    return found.reason


def _measured(series: Scaling) -> dict[int, Terms]:
    return {one.world_size: one.terms for one in series.configurations}


def _larger(setup: Setup, factor: int) -> Setup | None:
    """More hosts where there is a network, else more devices in the host, as far as one has them."""
    batches = max(1, math.ceil(setup.micro_batches / factor))
    if setup.link:
        return replace(setup, hosts=factor * setup.hosts, micro_batches=batches)
    devices = factor * setup.devices_per_host
    return replace(setup, devices_per_host=devices, micro_batches=batches) if devices <= MOST_GPUS else None


def _figure(series: Scaling, more: list[Beyond], index: int) -> Figure:
    rows = [
        (counted(one.world_size, "device"), [_bar(one.world_size, one.terms, one.href)])
        for one in series.configurations
    ]
    rows += [(f"{one.devices} devices, predicted", [_bar(one.devices, one.prediction.terms)]) for one in more]
    drawing = bar_rows(rows, PARTS, "device-seconds per step")
    return Figure(f"knee-{index}", f"What all devices together spend on a step: {series.label}", drawing, NOTE)


def _bar(devices: int, terms: Terms, href: str = "") -> Bar:
    spent_s = list(laws.device_seconds(devices, terms).values())
    return Bar(list(enumerate(spent_s)), seconds(sum(spent_s)), href=href)


def _laws(series: Scaling) -> Iterator[Law | str]:
    points = [(one.world_size, run.audio_s_per_s) for one in series.configurations for run in one.runs]
    for fit in (laws.amdahl, laws.usl):
        try:
            yield fit(points)
        except InputError as error:
            yield str(error)


def _rows(laws_of: list[tuple[Scaling, list[Law | str]]]) -> list[list[Inline]]:
    rows: list[list[Inline]] = []
    for series, found in laws_of:
        for law in found:
            if isinstance(law, str):
                continue
            peak = f"{law.peak:.0f} device{'s' if round(law.peak) != 1 else ''}" if law.peak else "none"
            rate = f"{number(law.rate_1)} audio-s/s"
            row = [series.label, law.name, rate, percent(law.serial, 1), f"{law.crosstalk:.2g}", peak]
            rows.append([*row, percent(law.error, 1)])
    return rows


def _unfitted(laws_of: list[tuple[Scaling, list[Law | str]]]) -> list[str]:
    """Why a law is not in the table, with the series of which that is so."""
    labels: dict[str, list[str]] = {}
    for series, found in laws_of:
        for law in found:
            if isinstance(law, str):
                labels.setdefault(law, []).append(series.label)
    return [f"{'; '.join(of)}: {why}" for why, of in labels.items()]
