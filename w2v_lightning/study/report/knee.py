"""Number of devices beyond which more do not pay off, and why: measured, predicted, and by the laws of scaling."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from w2v_lightning.errors import InputError
from w2v_lightning.perf_model import laws
from w2v_lightning.perf_model.fitted import Fitted, Prediction
from w2v_lightning.perf_model.laws import Law
from w2v_lightning.perf_model.step_time import LAUNCHING, Setup, Terms
from w2v_lightning.reporting.charts import Bar, Curve, Point, bar_rows
from w2v_lightning.reporting.document import Bullets, Figure, Inline, Paragraph, Section, Table
from w2v_lightning.reporting.units import counted, number, percent, seconds
from w2v_lightning.study.report.configurations import Study
from w2v_lightning.study.report.performance import PARTS
from w2v_lightning.study.report.scaling import Scaling, scalings

MOST_GPUS = 8  # of one host
CURVE_POINTS = 60
LAUNCHES = "According to the model it is kernel launching."
LAUNCHING_NOTE = (
    "Launching: the host launches the kernels of a micro-batch. That takes as long for a short one as for a long one,"
    " so it does not shrink with more devices. Longer steps (data.batch_seconds) move the knee to more devices."
)
NOTE = "With perfect scaling all rows would have the same length: the knee comes from the parts that grow."


@dataclass(frozen=True)
class Beyond:
    """Prediction for more devices than were measured; `audio_s` is the audio of a step in seconds."""

    devices: int
    prediction: Prediction
    audio_s: float


def section(study: Study, fitted: Fitted | str) -> Section:
    """Explain the knee of each series in words, chart the parts that grow, and list the laws in a table."""
    series = scalings(study.physical)
    if not series:
        text = "No series has several numbers of devices: whether more would pay off was not measured."
        return Section("The knee", [Paragraph(text, "finding")])
    figures = [_figure(each, beyond(each, fitted), i) for i, each in enumerate(series, 1)]
    laws_of = [(each, list(_laws(each))) for each in series]
    reasons = [f"{each.label}: {explained(each, fitted)}" for each in series]
    note = "Error: standard deviation of the throughput around the law. A law with as many unknowns as points has none."
    table = Table(["series", "law", "one device", "serial", "crosstalk", "peak", "error"], _rows(laws_of), num_text=2)
    notes = [Paragraph(text, "note") for text in (*_unfitted(laws_of), note)]
    if any(LAUNCHES in reason for reason in reasons):
        notes.append(Paragraph(LAUNCHING_NOTE, "note"))
    return Section("The knee", [Bullets(reasons), *figures, table, *notes])


def curves(series: Scaling) -> list[Curve]:
    """Return the curves of Amdahl's law and USL, if there are enough points to fit them."""
    first, last = (configuration.world_size for configuration in (series.base, series.configurations[-1]))
    places = [first + (last - first) * i / CURVE_POINTS for i in range(CURVE_POINTS + 1)]
    return [Curve(law.name, [(x, law.rate(x)) for x in places]) for law in _laws(series) if isinstance(law, Law)]


def beyond(series: Scaling, fitted: Fitted | str) -> list[Beyond]:
    """Predict twice as many devices as were measured, and four times as many if no knee was measured.

    Nothing is predicted for CPUs: processes share the cores of their machine, so more of them are another machine.
    """
    last = series.configurations[-1]
    if isinstance(fitted, str) or not last.is_gpu:
        return []
    factors = (2,) if laws.knee(_measured(series)) else (2, 4)
    setups = [setup for factor in factors if (setup := _larger(last.setup, factor))]
    return [Beyond(setup.world_size, fitted.predict(setup), setup.audio_s) for setup in setups]


def predicted_points(series: Scaling, fitted: Fitted | str) -> list[Point]:
    """Return predictions of audio-s/s beyond the measurements, with 90 % intervals."""
    return [
        Point(
            each.devices,
            each.audio_s / each.prediction.terms.step_s,
            each.audio_s / each.prediction.high_s,
            each.audio_s / each.prediction.low_s,
            f"{each.devices} devices, predicted",
            is_predicted=True,
        )
        for each in beyond(series, fitted)
    ]


def explained(series: Scaling, fitted: Fitted | str) -> str:
    """Say where the knee was measured or is predicted, or that there is none so far."""
    measured, predicted = _measured(series), beyond(series, fitted)
    bottlenecks = {
        configuration.world_size: configuration.bottleneck(fitted) for configuration in series.configurations
    }
    bottlenecks |= {each.devices: each.prediction.bottleneck for each in predicted}
    if knee := laws.knee(measured):
        return f"The knee is at {counted(knee.devices, 'device')}, measured. {_why(knee, bottlenecks)}"
    text = f"Up to {counted(max(measured), 'device')} each further device adds at least half of what the first brought."
    if not predicted:
        return text
    if knee := laws.knee(measured | {each.devices: each.prediction.terms for each in predicted}):
        return f"{text} The knee is predicted at {counted(knee.devices, 'device')}. {_why(knee, bottlenecks)}"
    return f"{text} The same is predicted up to {predicted[-1].devices} devices."


def _why(knee: laws.Knee, bottlenecks: Mapping[int, str]) -> str:
    if knee.term == "compute" and bottlenecks[knee.next_devices] == LAUNCHING:
        return f"{knee.reason} {LAUNCHES}"
    return knee.reason


def _measured(series: Scaling) -> dict[int, Terms]:
    return {configuration.world_size: configuration.terms for configuration in series.configurations}


def _larger(setup: Setup, factor: int) -> Setup | None:
    """Multiply the hosts if there is a network, otherwise the devices of the host up to the most that a host has."""
    batches = max(1, math.ceil(setup.micro_batches / factor))
    if setup.link:
        return replace(setup, hosts=factor * setup.hosts, micro_batches=batches)
    devices = factor * setup.devices_per_host
    return replace(setup, devices_per_host=devices, micro_batches=batches) if devices <= MOST_GPUS else None


def _figure(series: Scaling, predicted: list[Beyond], index: int) -> Figure:
    rows = [
        (counted(each.world_size, "device"), [_bar(each.world_size, each.terms, each.href)])
        for each in series.configurations
    ]
    rows += [(f"{each.devices} devices, predicted", [_bar(each.devices, each.prediction.terms)]) for each in predicted]
    chart = bar_rows(rows, PARTS, "device-seconds per step")
    return Figure(f"knee-{index}", f"Time of all devices together for a step: {series.label}", chart, NOTE)


def _bar(devices: int, terms: Terms, href: str = "") -> Bar:
    spent_s = list(laws.device_seconds(devices, terms).values())
    title = ", ".join(f"{name} {seconds(s)}" for name, s in zip(PARTS, spent_s, strict=True))
    return Bar(list(enumerate(spent_s)), seconds(sum(spent_s)), title=title, href=href)


def _laws(series: Scaling) -> Iterator[Law | str]:
    """Fit each law; yield the reason if it cannot be fitted."""
    points = [(each.world_size, run.audio_s_per_s) for each in series.configurations for run in each.runs]
    for fit in (laws.amdahl, laws.usl):
        try:
            yield fit(points)
        except InputError as error:
            yield str(error)


def _rows(laws_of: list[tuple[Scaling, list[Law | str]]]) -> list[list[Inline]]:
    rows: list[list[Inline]] = []
    for series, fits in laws_of:
        for law in fits:
            if isinstance(law, str):
                continue
            peak = f"{law.peak:.0f} device{'s' if round(law.peak) != 1 else ''}" if law.peak else "none"
            rate = f"{number(law.rate_1)} audio-s/s"
            row = [series.label, law.name, rate, percent(law.serial, 1), f"{law.crosstalk:.2g}", peak]
            rows.append([*row, percent(law.error, 1)])
    return rows


def _unfitted(laws_of: list[tuple[Scaling, list[Law | str]]]) -> list[str]:
    """Say why laws are not in the table, and for which series."""
    labels: dict[str, list[str]] = {}
    for series, fits in laws_of:
        for law in fits:
            if isinstance(law, str):
                labels.setdefault(law, []).append(series.label)
    return [f"{'; '.join(names)}: {why}" for why, names in labels.items()]
