"""Throughput and how it scales, parts of a step, use of the devices, the network's latency."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from w2v_lightning.errors import listed
from w2v_lightning.reporting.charts import Curve, Point, Series, xy_chart
from w2v_lightning.reporting.document import Figure, Inline, Link, Paragraph, Section, Table
from w2v_lightning.reporting.rows import Bar, bar_rows
from w2v_lightning.reporting.units import UNKNOWN, seconds, spread, time_unit
from w2v_lightning.study.report.configurations import Configuration, Spread, Study, by_device, unit
from w2v_lightning.study.report.scaling import Scaling, scalings

PARTS = ("compute", "waiting for data", "communication", "imbalance", "overhead")
PARTS_NOTE = (
    "Compute: the device has a micro-batch in hand. Waiting for data: it has none, and the loader is behind."
    " Communication: gradients are on their way and nothing is left to compute. Imbalance: waiting for the slowest"
    " device. Overhead: what the host does between two micro-batches."
)
EFFICIENCY_NOTE = "Throughput per device, of that of the series' smallest; the batch of a step stays the same."
Curves = Callable[[Scaling], Sequence[Curve]]
Points = Callable[[Scaling], Sequence[Point]]
Get = Callable[[Configuration], Spread | None]


def speed_section(study: Study, curves: Curves, predicted: Points) -> Section:
    """For each kind of device how throughput scales, laws and predictions beside it, and where a step's time goes."""
    blocks: list[Figure | Paragraph] = []
    for i, (device, its) in enumerate(by_device(study.physical).items(), 1):
        if found := scalings(its):
            blocks += [_throughput(found, curves, predicted, device, i), *_ratios(found, device, i)]
        blocks.append(_step(its, device, i))
    if not scalings(study.physical):
        text = "Every configuration was measured with one number of devices: how throughput scales was not measured."
        blocks.insert(0, Paragraph(text, "finding"))
    return Section("Speed, and where the time goes", blocks)


def device_section(study: Study) -> Section:
    """How busy the devices were, and what the network took."""
    kinds: dict[str, tuple[str, str, Get]] = {
        "utilisation": ("GPU utilisation", "per cent of the time with a kernel running", _utilisation),
        "latency": ("All-reduce latency", "ms for 4 KiB", all_reduce("latency_ms")),
        "gradients": ("All-reduce of all gradients", "ms, nothing else going on", all_reduce("gradients_ms")),
    }
    blocks, missing = [], []
    for name, (title, axis, get) in kinds.items():
        figures = list(_by_devices(study, name, title, axis, get))
        blocks += figures
        missing += [] if any(map(get, study.physical)) else [title]
    if missing:
        blocks.append(Paragraph(f"Not measured: {', '.join(missing)}. {_why_missing(study)}"))
    return Section("Devices and network", [*blocks, _device_table(study), *_warm_up_notes(study)])


def all_reduce(name: str) -> Get:
    """What was measured of all-reduce with nothing else going on, as throughput.json has it."""
    return lambda one: one.spread(lambda run: (run.throughput.get("all_reduce") or {}).get(name))


def _throughput(found: list[Scaling], curves: Curves, predicted: Points, device: str, index: int) -> Figure:
    first = max(one.base.audio_s_per_s.mean / one.base.world_size for one in found)
    series = [
        Series(s.label, [*(_point(c, c.audio_s_per_s) for c in s.configurations), *predicted(s)], curves(s))
        for s in found
    ]
    sizes = sorted({int(point.x) for one in series for point in one.points})
    ideal = Curve("linear", [(0, 0), (sizes[-1], first * sizes[-1])])
    drawing = xy_chart(series, unit(_members(found)), "audio-s/s", ideal, sizes)
    note = "Filled points are measured, with error bars. Curves are laws fitted to them: see the knee."
    return Figure(f"throughput-{index}", f"Throughput: {device}", drawing, note)


def _ratios(found: list[Scaling], device: str, index: int) -> Iterator[Figure]:
    """Efficiency and epoch time."""
    sizes = sorted({one.world_size for one in _members(found)})
    whole = Curve("linear", [(0, 100), (sizes[-1], 100)])
    name, in_s = time_unit(max(one.epoch_s for one in _members(found)))
    kinds = [
        ("efficiency", "Scaling efficiency", "per cent of linear", _efficiency, whole, EFFICIENCY_NOTE),
        (
            "epoch",
            "Epoch time",
            f"{name} per epoch",
            partial(_epoch, in_s=in_s),
            None,
            "Without start-up and validation.",
        ),
    ]
    for name, title, axis, get, ideal, note in kinds:
        series = [Series(s.label, [_point(c, get(s, c)) for c in s.configurations]) for s in found]
        drawing = xy_chart(series, unit(_members(found)), axis, ideal, sizes)
        yield Figure(f"{name}-{index}", f"{title}: {device}", drawing, note)


def _step(its: Sequence[Configuration], device: str, index: int) -> Figure:
    drawing = bar_rows([(one.name, [_step_bar(one)]) for one in its], PARTS, "seconds per step")
    return Figure(f"step-{index}", f"A step's parts: {device}", drawing, PARTS_NOTE)


def _by_devices(study: Study, name: str, title: str, axis: str, get: Get) -> Iterator[Figure]:
    """A chart for each kind of device that has figures for several numbers of them."""
    for i, (device, its) in enumerate(by_device(study.physical).items(), 1):
        series = []
        for one in scalings(its):
            points = [_point(c, found) for c in one.configurations if (found := get(c))]
            series += [Series(one.label, points)] if points else []
        if series:
            sizes = sorted({point.x for one in series for point in one.points})
            yield Figure(f"{name}-{i}", f"{title}: {device}", xy_chart(series, unit(its), axis, None, sizes))


def _point(one: Configuration, found: Spread) -> Point:
    title = f"{one.name}: {spread(found)}"
    return Point(one.world_size, found.mean, found.low, found.high, title, one.href)


def _efficiency(scaling: Scaling, one: Configuration) -> Spread:
    return scaling.efficiency(one).times(100)


def _epoch(scaling: Scaling, one: Configuration, in_s: float) -> Spread:
    pace, epoch = one.audio_s_per_s, one.epoch_s / in_s
    if pace.low is None or pace.high is None:
        return Spread(epoch)
    return Spread(epoch, epoch * pace.mean / pace.high, epoch * pace.mean / pace.low)


def _members(found: list[Scaling]) -> list[Configuration]:
    return [one for scaling in found for one in scaling.configurations]


def _step_bar(one: Configuration) -> Bar:
    terms = one.terms
    lengths = terms.compute_s, terms.wait_s, terms.exposed_s, terms.imbalance_s, terms.overhead_s
    title = ", ".join(f"{name} {seconds(s)}" for name, s in zip(PARTS, lengths, strict=True))
    return Bar(list(enumerate(lengths)), seconds(terms.step_s), href=one.href, title=title)


def _device_table(study: Study) -> Table:
    columns: dict[str, tuple[Get, str, float]] = {
        "GPU utilisation": (lambda one: one.gpu_utilisation, " %", 100),
        "MFU": (lambda one: one.spread(lambda run: run.mfu), " %", 100),
        "peak memory": (_recorded("peak_memory_gib"), " GiB", 1),
        "energy per audio-hour": (lambda one: one.energy_wh_per_audio_hour, " Wh", 1),
        "all-reduce, 4 KiB": (all_reduce("latency_ms"), " ms", 1),
        "all-reduce, gradients": (all_reduce("gradients_ms"), " ms", 1),
        "exposed per step": (_exposed, " ms", 1),
        "start-up": (_recorded("startup_s"), " s", 1),
    }
    rows: list[list[Inline]] = [
        [Link(one.name, one.href), *(spread(get(one), unit, scale) for get, unit, scale in columns.values())]
        for one in study.physical
    ]
    filled = [0, *(i for i in range(1, len(columns) + 1) if any(row[i] != UNKNOWN for row in rows))]
    titles = ["configuration", *columns]
    return Table([titles[i] for i in filled], [["-" if row[i] == UNKNOWN else row[i] for i in filled] for row in rows])


def _warm_up_notes(study: Study) -> Iterator[Paragraph]:
    """What is not of the steps behind the warm-up, as everything else is."""
    older = [one.name for one in study.physical if one.gpu_use_has_warm_up]
    if older:
        which = "all configurations" if len(older) == len(study.physical) else listed(older)
        yield Paragraph(
            f"GPU utilisation and energy of {which} are over the whole run, the warm-up, in which the GPU waits"
            " for compilers, included: too low, and too high. Their version did not record these by window; where some"
            " runs of a configuration did, these alone count.",
            "note",
        )


def _why_missing(study: Study) -> str:
    reasons = []
    if not any(one.is_gpu for one in study.physical):
        reasons.append("These runs computed on CPUs.")
    if all(one.world_size == 1 for one in study.physical):
        reasons.append("One process has nobody to exchange gradients with.")
    return " ".join(reasons)


def _recorded(name: str) -> Get:
    return lambda one: one.spread(lambda run: run.throughput.get(name))


def _utilisation(one: Configuration) -> Spread | None:
    return one.gpu_utilisation and one.gpu_utilisation.times(100)


def _exposed(one: Configuration) -> Spread | None:
    return one.spread(lambda run: (run.throughput.get("communication") or {}).get("exposed_ms_median"))
