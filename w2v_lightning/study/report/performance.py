"""Throughput and how it scales, parts of a step, use of the devices, latency of the network."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from w2v_lightning.errors import listed
from w2v_lightning.reporting.charts import Bar, Curve, Point, Series, bar_rows, xy_chart
from w2v_lightning.reporting.document import Block, Figure, Inline, Paragraph, Section, Table
from w2v_lightning.reporting.units import UNKNOWN, seconds, spread, time_unit
from w2v_lightning.study.report.configurations import Configuration, Spread, Study, by_device, device_unit
from w2v_lightning.study.report.scaling import Scaling, scalings

PARTS = ("compute", "waiting for data", "communication", "imbalance", "overhead")
PARTS_NOTE = (
    "Compute: the device has a micro-batch. Waiting for data: it has none, because loading is behind. Communication:"
    " gradients are being exchanged and nothing is left to compute. Imbalance: waiting for the slowest device."
    " Overhead: work of the host between two micro-batches."
)
EFFICIENCY_NOTE = "Throughput per device relative to the smallest of the series; all sizes train on the same batch."
Curves = Callable[[Scaling], Sequence[Curve]]
Points = Callable[[Scaling], Sequence[Point]]
Measure = Callable[[Configuration], Spread | None]


def speed_section(study: Study, curves: Curves, predicted: Points) -> Section:
    """Show for each kind of device how throughput scales, with laws and predictions, and where the time goes."""
    blocks: list[Block] = []
    for i, (device, configurations) in enumerate(by_device(study.physical).items(), 1):
        if series := scalings(configurations):
            blocks += [_throughput(series, curves, predicted, device, i), *_ratios(series, device, i)]
        blocks.append(_step(configurations, device, i))
    if not scalings(study.physical):
        text = "Every configuration was measured with one number of devices: how throughput scales was not measured."
        blocks.insert(0, Paragraph(text, "finding"))
    return Section("Speed, and where the time goes", blocks)


def device_section(study: Study) -> Section:
    """Show how busy the devices were, and the latency of the network."""
    kinds: dict[str, tuple[str, str, Measure]] = {
        "utilisation": ("GPU utilisation", "% of the time with a kernel running", _utilisation),
        "latency": ("All-reduce latency", "ms for 4 KiB", all_reduce("latency_ms")),
        "gradients": ("All-reduce of all gradients", "ms on an idle network", all_reduce("gradients_ms")),
    }
    blocks: list[Block] = []
    missing: list[str] = []
    for name, (title, axis, measure) in kinds.items():
        blocks += _by_devices(study, name, title, axis, measure)
        missing += [] if any(map(measure, study.physical)) else [title]
    if missing:
        blocks.append(Paragraph(f"Not measured: {', '.join(missing)}. {_why_missing(study)}"))
    return Section("Devices and network", [*blocks, _device_table(study), *_warm_up_notes(study)])


def all_reduce(name: str) -> Measure:
    """Return a function that reads a measurement of all-reduce on an idle network from throughput.json."""
    return lambda configuration: configuration.spread(lambda run: (run.throughput.get("all_reduce") or {}).get(name))


def _throughput(series: list[Scaling], curves: Curves, predicted: Points, device: str, index: int) -> Figure:
    first = max(_per_device(each.base) for each in series)
    drawn = [
        Series(each.label, [*(_point(c, c.audio_s_per_s) for c in each.configurations), *predicted(each)], curves(each))
        for each in series
    ]
    sizes = sorted({int(point.x) for each in drawn for point in each.points})
    ideal = Curve("linear", [(0, 0), (sizes[-1], first * sizes[-1])])
    chart = xy_chart(drawn, device_unit(_members(series)), "audio-s/s", ideal, sizes)
    note = "Filled points are measured, with error bars. Curves are laws fitted to them; see the knee."
    return Figure(f"throughput-{index}", f"Throughput: {device}", chart, note)


def _ratios(series: list[Scaling], device: str, index: int) -> Iterator[Figure]:
    """Chart efficiency and epoch time."""
    members = _members(series)
    sizes = sorted({configuration.world_size for configuration in members})
    linear = Curve("linear", [(0, 100), (sizes[-1], 100)])
    unit, unit_s = time_unit(max(configuration.epoch_s for configuration in members))
    epoch = partial(_epoch, unit_s=unit_s)
    kinds: list[tuple[str, str, str, Callable[[Scaling, Configuration], Spread], Curve | None, str]] = [
        ("efficiency", "Scaling efficiency", "% of linear", _efficiency, linear, EFFICIENCY_NOTE),
        ("epoch", "Epoch time", f"{unit} per epoch", epoch, None, "Without start-up and validation."),
    ]
    for name, title, axis, measure, ideal, note in kinds:
        points = [[_point(c, measure(each, c)) for c in each.configurations] for each in series]
        drawn = [Series(each.label, its, is_joined=True) for each, its in zip(series, points, strict=True)]
        yield Figure(
            f"{name}-{index}", f"{title}: {device}", xy_chart(drawn, device_unit(members), axis, ideal, sizes), note
        )


def _step(configurations: Sequence[Configuration], device: str, index: int) -> Figure:
    rows = [(configuration.name, [_step_bar(configuration)]) for configuration in configurations]
    return Figure(f"step-{index}", f"Parts of a step: {device}", bar_rows(rows, PARTS, "seconds per step"), PARTS_NOTE)


def _by_devices(study: Study, name: str, title: str, axis: str, measure: Measure) -> Iterator[Figure]:
    """Chart a figure for each kind of device that has it for several numbers of devices."""
    for i, (device, configurations) in enumerate(by_device(study.physical).items(), 1):
        series = []
        for each in scalings(configurations):
            points = [_point(c, measured) for c in each.configurations if (measured := measure(c))]
            series += [Series(each.label, points, is_joined=True)] if points else []
        sizes = sorted({point.x for each in series for point in each.points})
        if len(sizes) > 1:
            chart = xy_chart(series, device_unit(configurations), axis, None, sizes)
            yield Figure(f"{name}-{i}", f"{title}: {device}", chart)


def _point(configuration: Configuration, figure: Spread) -> Point:
    title = f"{configuration.name}: {spread(figure)}"
    return Point(configuration.world_size, figure.mean, figure.low, figure.high, title, configuration.href)


def _per_device(configuration: Configuration) -> float:
    return configuration.audio_s_per_s.mean / configuration.world_size


def _efficiency(series: Scaling, configuration: Configuration) -> Spread:
    return series.efficiency(configuration).times(100)


def _epoch(series: Scaling, configuration: Configuration, unit_s: float) -> Spread:
    pace, epoch = configuration.audio_s_per_s, configuration.epoch_s / unit_s
    if pace.low is None or pace.high is None:
        return Spread(epoch)
    return Spread(epoch, epoch * pace.mean / pace.high, epoch * pace.mean / pace.low)


def _members(series: list[Scaling]) -> list[Configuration]:
    return [configuration for each in series for configuration in each.configurations]


def _step_bar(configuration: Configuration) -> Bar:
    terms = configuration.terms
    lengths = terms.compute_s, terms.wait_s, terms.exposed_s, terms.imbalance_s, terms.overhead_s
    title = ", ".join(f"{name} {seconds(s)}" for name, s in zip(PARTS, lengths, strict=True))
    return Bar(list(enumerate(lengths)), seconds(terms.step_s), href=configuration.href, title=title)


def _device_table(study: Study) -> Table:
    columns: Mapping[str, tuple[Measure, str, float]] = {
        "GPU utilisation": (lambda configuration: configuration.gpu_utilisation, " %", 100),
        "MFU": (lambda configuration: configuration.spread(lambda run: run.mfu), " %", 100),
        "peak memory": (_recorded("peak_memory_gib"), " GiB", 1),
        "energy per audio-hour": (lambda configuration: configuration.energy_wh_per_audio_hour, " Wh", 1),
        "all-reduce, 4 KiB": (all_reduce("latency_ms"), " ms", 1),
        "all-reduce, gradients": (all_reduce("gradients_ms"), " ms", 1),
        "exposed per step": (_exposed, " ms", 1),
        "start-up": (_recorded("startup_s"), " s", 1),
    }
    rows: list[list[Inline]] = [
        [each.link, *(spread(measure(each), unit, scale) for measure, unit, scale in columns.values())]
        for each in study.physical
    ]
    filled = [0, *(i for i in range(1, len(columns) + 1) if any(row[i] != UNKNOWN for row in rows))]
    titles = ["configuration", *columns]
    return Table([titles[i] for i in filled], [["-" if row[i] == UNKNOWN else row[i] for i in filled] for row in rows])


def _warm_up_notes(study: Study) -> Iterator[Paragraph]:
    """Note figures that include the warm-up, unlike all others."""
    older = [configuration.name for configuration in study.physical if configuration.gpu_use_has_warm_up]
    if older:
        names = "all configurations" if len(older) == len(study.physical) else listed(older)
        yield Paragraph(
            f"GPU utilisation and energy of {names} cover the whole run, including the warm-up, in which the GPU waits"
            " for compilers: the utilisation is too low and the energy too high. The version that made these runs did"
            " not record them by window. Where some runs of a configuration did, only these count.",
            "note",
        )


def _why_missing(study: Study) -> str:
    reasons = []
    if not any(configuration.is_gpu for configuration in study.physical):
        reasons.append("These runs used CPUs.")
    if all(configuration.world_size == 1 for configuration in study.physical):
        reasons.append("A single process does not exchange gradients.")
    return " ".join(reasons)


def _recorded(name: str) -> Measure:
    return lambda configuration: configuration.spread(lambda run: run.throughput.get(name))


def _utilisation(configuration: Configuration) -> Spread | None:
    utilisation = configuration.gpu_utilisation
    return utilisation and utilisation.times(100)


def _exposed(configuration: Configuration) -> Spread | None:
    return configuration.spread(lambda run: (run.throughput.get("communication") or {}).get("exposed_ms_median"))
