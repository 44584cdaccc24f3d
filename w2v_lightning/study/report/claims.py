"""The original study's five claims: theirs, what these runs show, what the model predicts, and why they differ."""

from collections.abc import Callable
from dataclasses import dataclass

from w2v_lightning.catalog.cost import training_usd
from w2v_lightning.catalog.prices import on_demand
from w2v_lightning.errors import InputError
from w2v_lightning.reporting.document import Inline, Link, Section, Table
from w2v_lightning.reporting.units import counted, number, percent, seconds, signed_percent, usd
from w2v_lightning.study.collect import FINISHED
from w2v_lightning.study.report import knee
from w2v_lightning.study.report.configurations import Configuration, Study, paid_in_two_ways
from w2v_lightning.study.report.elsewhere import BATCH, MULTI, SINGLE, Elsewhere, Predicted
from w2v_lightning.study.report.money import bill
from w2v_lightning.study.report.performance import all_reduce
from w2v_lightning.study.report.scaling import Scaling, scalings

NONE = "Not measured"
NO_SERIES = "no configuration was run with several numbers of devices."
# What the original study reports.
SAMPLES_1, SAMPLES_4 = 30.8, 61.3  # per second, on 1 and 4 GPUs
ACCUMULATION = 4
SAVED_USD, SAVED_SHARE, SAVED_GPUS = 7.96, 0.35, 12
MARGIN = 0.1  # of linear: what the model need not explain


@dataclass(frozen=True)
class Claim:
    """One line of the table."""

    theirs: str
    measured: Inline
    predicted: str
    why: str


def section(study: Study, elsewhere: Elsewhere) -> Section:
    """All five."""
    made: list[Callable[[Study, Elsewhere], Claim]] = [_pipeline, _machines, _speedup, _spot, _returns]
    claims = [make(study, elsewhere) for make in made]
    rows = [[f"{i}. {c.theirs}", c.measured, c.predicted, c.why] for i, c in enumerate(claims, 1)]
    columns = ["theirs", "ours, measured", "ours, predicted", "why different"]
    return Section("The original study's claims", [Table(columns, rows, is_prose=True)])


def _pipeline(study: Study, elsewhere: Elsewhere) -> Claim:
    finished = [one for one in study.recorded if one.run.outcome == FINISHED]
    measured: Inline = f"{NONE}: no run has finished."
    if finished:
        largest = max(finished, key=lambda one: one.run.throughput["world_size"]).run
        where = "training jobs" if largest.where == "sagemaker" else "processes on one host, not on SageMaker"
        backend = largest.throughput.get("backend")
        by = f", gradients by {backend}" if backend else ""
        devices = largest.throughput["world_size"]
        measured = f"Finished: {counted(len(finished), 'run')}, on up to {counted(devices, 'device')}: {where}{by}."
    return Claim(
        "A distributed training pipeline for 100 h of LibriSpeech, with SageMaker's smdistributed module.",
        measured,
        "Nothing to predict.",
        "SMDDP was made for ml.p3dn, ml.p4d and ml.p4de and never supported g4dn: the original's gradients, too, went"
        " over NCCL. What is used here, and why, is in each run's throughput (backend_reason).",
    )


def _machines(study: Study, elsewhere: Elsewhere) -> Claim:
    clusters = [(SINGLE, 1), (SINGLE, 4), (MULTI, 1)]
    found = [one for cluster in clusters if (one := _find(study, *cluster))]
    measured = [part for one in found for part in (Link(one.name, one.href), f": {_described(one)}. ")]
    predictions = [elsewhere.predict(*cluster) for cluster in clusters]
    known = [one for one in predictions if isinstance(one, Predicted)]
    four = {one.candidate.count: one.on_demand.terms for one in known if one.candidate.world_size == 4}
    why = "What differs is the way between GPUs: PCIe within a host, the network between hosts."
    if len(four) == 2:
        within, between = (four[count].exposed_s / four[count].step_s for count in (1, 4))
        why += f" The model has {percent(within)} of a step for it with 4 GPUs in one host, {percent(between)} in four."
    return Claim(
        f"Single-GPU {SINGLE} against 4-GPU {MULTI}: throughput, GPU utilisation, network latency.",
        measured or f"{NONE}: no run of this study was on either of them.",
        " ".join(map(_predicted, known)) or str(predictions[0]),
        why,
    )


def _speedup(study: Study, elsewhere: Elsewhere) -> Claim:
    series = _best_series(study)
    one, four = elsewhere.predict(SINGLE, 1), elsewhere.predict(MULTI, 1)
    predicted = str(one)
    if isinstance(one, Predicted) and isinstance(four, Predicted):
        factor = four.samples_per_s / one.samples_per_s
        predicted = (
            f"1 x {SINGLE} to 1 x {MULTI}: {number(one.samples_per_s)} to {number(four.samples_per_s)} samples/s,"
            f" {percent(factor / 4)} of linear; epoch {signed_percent(1 / factor - 1)}."
        )
    why = _why_half(elsewhere)
    if series:
        why += f" {_where_it_goes(_on_four(series))}"
    return Claim(
        f"Epoch time down by up to 50 %; {SAMPLES_1:g} to {SAMPLES_4:g} samples/s for 4 GPUs; latency between nodes"
        " 7.6 % lower.",
        [*_scaled(series), *_latency(study)] if series else f"{NONE}: {NO_SERIES}",
        predicted,
        why,
    )


def _why_half(elsewhere: Elsewhere) -> str:
    """Their efficiency at 4 GPUs, and how much of what is missing the model finds in the exchange of gradients."""
    factor = SAMPLES_4 / SAMPLES_1
    said = (
        f"{SAMPLES_4:g} / {SAMPLES_1:g} is {factor:.2f} times with 4 GPUs: {percent(factor / 4)} of linear. Theirs had"
        " 4 to 8 utterances on a device and accumulated 4 such batches; here the batch of a step stays the same, and"
        " each device has as much at once as its memory holds."
    )
    seldom, often = (elsewhere.their_efficiency(batches) for batches in (ACCUMULATION, 1))
    if seldom is None or often is None:
        return said
    said += (
        f" With {BATCH} utterances on each of 4 GPUs in a host the model has {percent(seldom)} of linear, and"
        f" {percent(often)} if gradients are exchanged after every batch."
    )
    if min(seldom, often) > factor / 4 + MARGIN:
        said += " The exchange alone does not explain theirs: loading data and uneven batches remain."
    return said


def _spot(study: Study, elsewhere: Elsewhere) -> Claim:
    one = elsewhere.predict(SINGLE, SAVED_GPUS)
    return Claim(
        f"Spot clusters save up to {percent(SAVED_SHARE)} at minimal performance cost; ${SAVED_USD:g} less for"
        f" {SAVED_GPUS} GPUs.",
        _saved(study),
        _predicted_saving(one) if isinstance(one, Predicted) else one,
        f"{_their_bill(elsewhere.region)} SageMaker's discount is a job's own, known when it has ended; waiting for"
        " capacity, restarts and replayed steps are counted here.",
    )


def _their_bill(region: str) -> str:
    """What their saving says of the run behind it, as far as it says anything."""
    whole_usd = SAVED_USD / SAVED_SHARE
    said = f"${SAVED_USD:g} at {percent(SAVED_SHARE)} are ${whole_usd:.2f} on demand"
    try:
        price = on_demand(SINGLE, region)
    except InputError:
        return f"{said}."
    hours = whole_usd / training_usd(3600, SAVED_GPUS, price.usd_per_hour)
    return f"{said}: {hours:.1f} h of {SAVED_GPUS} x {SINGLE} at {price.described()}."


def _returns(study: Study, elsewhere: Elsewhere) -> Claim:
    series = _best_series(study)
    measured: Inline = f"{NONE}: {NO_SERIES}"
    why = "Which part of a step grows decides, and it depends on network, model and batch."
    if series:
        shown = ", ".join(f"{one.world_size}: {percent(series.efficiency(one).mean)}" for one in series.configurations)
        last = series.configurations[-1]
        measured = [f"{series.label}, per cent of linear by devices: {shown} (", Link(last.name, last.href), ")."]
        why += f" Here: {knee.explained(series, elsewhere.fitted)}"
    found = {n: elsewhere.predict(SINGLE, n) for n in (1, 4, 8, 12, 16)}
    known = {n: one for n, one in found.items() if isinstance(one, Predicted)}
    predicted = str(found[1])
    if len(known) == len(found):
        shown = ", ".join(f"{n}: {percent(known[n].samples_per_s / known[1].samples_per_s / n)}" for n in found)
        predicted = f"{SINGLE}, per cent of linear by GPUs: {shown}."
    return Claim(
        "Diminishing returns beyond 8 GPUs, because of the data pipeline and synchronisation.", measured, predicted, why
    )


def _find(study: Study, hardware: str, count: int) -> Configuration | None:
    return next((one for one in study.physical if (one.cell["hardware"], one.cell["count"]) == (hardware, count)), None)


def _described(one: Configuration) -> str:
    parts = [f"{number(one.utterances_per_s)} samples/s"]
    if use := one.gpu_utilisation:
        parts.append(f"GPU {percent(use.mean)}")
    if latency := all_reduce("latency_ms")(one):
        parts.append(f"all-reduce of 4 KiB {number(latency.mean)} ms")
    return ", ".join(parts)


def _predicted(one: Predicted) -> str:
    count, kind = one.candidate.count, one.candidate.instance_type
    return f"{count} x {kind}: {number(one.samples_per_s)} samples/s, epoch {seconds(one.epoch_s)}."


def _best_series(study: Study) -> Scaling | None:
    """The original's if it was run; else GPUs before processes, then the one that went furthest."""
    return max(
        scalings(study.physical),
        key=lambda one: (
            one.configurations[-1].cell["hardware"] in (SINGLE, MULTI),
            one.base.is_gpu,
            one.configurations[-1].world_size,
        ),
        default=None,
    )


def _on_four(series: Scaling) -> Configuration:
    """As theirs, or the largest."""
    return next((one for one in series.configurations if one.world_size == 4), series.configurations[-1])


def _latency(study: Study) -> list[str | Link]:
    """Of four GPUs, between hosts and within one."""
    pair = _find(study, SINGLE, 4), _find(study, MULTI, 1)
    if not all(pair):
        return []
    between, within = (all_reduce("latency_ms")(one) for one in pair)
    if not between or not within:
        return []
    change = within.mean / between.mean - 1
    link = Link(f"{percent(abs(change))} {'less' if change < 0 else 'more'}", pair[1].href)
    return [" All-reduce of 4 KiB takes ", link, f" within 1 x {MULTI} than between 4 x {SINGLE}."]


def _scaled(series: Scaling) -> list[str | Link]:
    first, last = series.base, _on_four(series)
    what = "GPUs" if last.is_gpu else "processes"
    return [
        f"{series.label}, {first.world_size} to {last.world_size} {what}: ",
        Link(number(first.utterances_per_s), first.href),
        " to ",
        Link(number(last.utterances_per_s), last.href),
        f" samples/s, {percent(series.efficiency(last).mean)} of linear; epoch"
        f" {signed_percent(last.epoch_s / first.epoch_s - 1)}.",
    ]


def _predicted_saving(one: Predicted) -> str:
    spot, paid = one.spot, one.on_demand
    if isinstance(spot, str):
        return f"{paid.candidate}: {usd(paid.usd)}; on spot {spot}."
    return (
        f"{one.candidate.count} x {one.candidate.instance_type}: on spot {percent(1 - spot.usd / paid.usd)} less,"
        f" {usd(spot.usd)} instead of {usd(paid.usd)}, in {number(spot.hours)} h instead of {number(paid.hours)} h,"
        f" with {number(spot.interruptions)} interruptions on average."
    )


def _where_it_goes(one: Configuration) -> str:
    terms = one.terms
    parts = {"compute": terms.compute_s, "waiting for data": terms.wait_s, "communication": terms.exposed_s}
    shown = ", ".join(f"{percent(part_s / terms.step_s)} {name}" for name, part_s in parts.items())
    return f"Of a step on {one.world_size} devices here: {shown}."


def _saved(study: Study) -> Inline:
    """Pairs of the same cluster, paid for in both ways."""
    both = [its for its in paid_in_two_ways(study.configurations) if len({one.cell["is_spot"] for one in its}) == 2]
    pairs = [pair for its in both if all(pair := (its[-1], bill(its[-1]), bill(its[0])))]
    if not pairs:
        return f"{NONE}: this study has no cluster with a bill both on demand and on spot."
    shares = sorted(1 - spot.usd_per_run / paid.usd_per_run for _, spot, paid in pairs)
    one, spot, paid = max(pairs, key=lambda pair: (pair[0].world_size == SAVED_GPUS, pair[0].world_size))
    return [
        f"{counted(len(pairs), 'cluster')}: {percent(shares[0])} to {percent(shares[-1])} less per run. ",
        Link(one.name, one.href),
        f": {usd(paid.usd_per_run - spot.usd_per_run)} less, with {spot.interruptions:.3g} interruptions and"
        f" {signed_percent(spot.training_s / paid.training_s - 1)} time.",
    ]
