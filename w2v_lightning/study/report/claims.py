"""Claims of the original study: measured here, predicted here, and why the results differ."""

from collections.abc import Callable
from dataclasses import dataclass

from w2v_lightning.catalog.cost import training_usd
from w2v_lightning.catalog.prices import on_demand
from w2v_lightning.errors import InputError
from w2v_lightning.reporting.document import Inline, Link, Part, Section, Table
from w2v_lightning.reporting.units import counted, number, percent, seconds, signed_percent, usd
from w2v_lightning.study.collect import FINISHED
from w2v_lightning.study.report import knee
from w2v_lightning.study.report.configurations import Configuration, Study, by_cluster
from w2v_lightning.study.report.elsewhere import BATCH, MULTI, SINGLE, Elsewhere, Predicted
from w2v_lightning.study.report.money import bill
from w2v_lightning.study.report.performance import all_reduce
from w2v_lightning.study.report.scaling import Scaling, scalings

NONE = "Not measured"
NO_SERIES = "no configuration was run with several numbers of devices."
# Results of the original study.
SAMPLES_1, SAMPLES_4 = 30.8, 61.3  # per second, on 1 and 4 GPUs
ACCUMULATION = 4
SAVED_USD, SAVED_SHARE, SAVED_GPUS = 7.96, 0.35, 12
MARGIN = 0.1  # share of linear that the model need not explain


@dataclass(frozen=True)
class Claim:
    """Row of the table."""

    original: str
    measured: Inline
    predicted: str
    why: str


def section(study: Study, elsewhere: Elsewhere) -> Section:
    """Compare all five claims with this study."""
    made: list[Callable[[Study, Elsewhere], Claim]] = [_pipeline, _machines, _speedup, _spot, _returns]
    claims = [make(study, elsewhere) for make in made]
    rows = [[f"{i}. {c.original}", c.measured, c.predicted, c.why] for i, c in enumerate(claims, 1)]
    columns = ["claim", "measured here", "predicted here", "why different"]
    return Section("The original study's claims", [Table(columns, rows, is_prose=True)])


def _pipeline(study: Study, elsewhere: Elsewhere) -> Claim:
    finished = [recorded.run for recorded in study.recorded if recorded.run.outcome == FINISHED]
    measured = f"{NONE}: no run has finished."
    if finished:
        largest = max(finished, key=lambda run: run.throughput["world_size"])
        where = "training jobs" if largest.where == "sagemaker" else "processes on one host, not on SageMaker"
        backend = largest.throughput.get("backend")
        by = f", gradients by {backend}" if backend else ""
        devices = largest.throughput["world_size"]
        measured = f"Finished: {counted(len(finished), 'run')}, on up to {counted(devices, 'device')}: {where}{by}."
    return Claim(
        "A distributed training pipeline for 100 h of LibriSpeech, with SageMaker's smdistributed module.",
        measured,
        "Nothing to predict.",
        "SMDDP was made for ml.p3dn, ml.p4d and ml.p4de and never supported g4dn. The original study's gradients, too,"
        " were exchanged by NCCL. Each run's throughput file names its backend and the reason (backend_reason).",
    )


def _machines(study: Study, elsewhere: Elsewhere) -> Claim:
    clusters = [(SINGLE, 1), (SINGLE, 4), (MULTI, 1)]
    configurations = [configuration for cluster in clusters if (configuration := _find(study, *cluster))]
    measured = [part for each in configurations for part in (each.link, f": {_described(each)}. ")]
    predictions = [elsewhere.predict(*cluster) for cluster in clusters]
    known = [prediction for prediction in predictions if isinstance(prediction, Predicted)]
    with_4 = {each.candidate.count: each.on_demand.terms for each in known if each.candidate.world_size == 4}
    why = "The connection between GPUs differs: PCIe within a host, the network between hosts."
    if len(with_4) == 2:
        within, between = (with_4[count].exposed_s / with_4[count].step_s for count in (1, 4))
        why += (
            f" According to the model it takes {percent(within)} of a step with 4 GPUs in one host and"
            f" {percent(between)} with one GPU in each of four."
        )
    return Claim(
        f"Single-GPU {SINGLE} against 4-GPU {MULTI}: throughput, GPU utilisation, network latency.",
        measured or f"{NONE}: no run of this study was on either of them.",
        " ".join(map(_predicted, known)) or str(predictions[0]),
        why,
    )


def _speedup(study: Study, elsewhere: Elsewhere) -> Claim:
    series = _best_series(study)
    single, multi = elsewhere.predict(SINGLE, 1), elsewhere.predict(MULTI, 1)
    predicted = str(single)
    if isinstance(single, Predicted) and isinstance(multi, Predicted):
        factor = multi.samples_per_s / single.samples_per_s
        predicted = (
            f"1 x {SINGLE} to 1 x {MULTI}: {number(single.samples_per_s)} to {number(multi.samples_per_s)} samples/s,"
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
    """Explain the original efficiency with 4 GPUs, and how much of the loss the exchange of gradients explains."""
    factor = SAMPLES_4 / SAMPLES_1
    text = (
        f"{SAMPLES_4:g} / {SAMPLES_1:g} is {factor:.2f} times with 4 GPUs: {percent(factor / 4)} of linear. The"
        " original study had 4 to 8 utterances on a device and accumulated 4 such batches; here the batch of a step is"
        " always the same, and each device processes as much at once as its memory holds."
    )
    accumulated, each_batch = (elsewhere.original_efficiency(batches) for batches in (ACCUMULATION, 1))
    if accumulated is None or each_batch is None:
        return text
    text += (
        f" With {BATCH} utterances on each of 4 GPUs in a host the model predicts {percent(accumulated)} of linear, and"
        f" {percent(each_batch)} if gradients are exchanged after every batch."
    )
    if min(accumulated, each_batch) > factor / 4 + MARGIN:
        text += " The exchange alone does not explain the original result: loading data and uneven batches remain."
    return text


def _spot(study: Study, elsewhere: Elsewhere) -> Claim:
    prediction = elsewhere.predict(SINGLE, SAVED_GPUS)
    return Claim(
        f"Spot clusters save up to {percent(SAVED_SHARE)} at minimal performance cost; ${SAVED_USD:g} less for"
        f" {SAVED_GPUS} GPUs.",
        _saved(study),
        _predicted_saving(prediction) if isinstance(prediction, Predicted) else prediction,
        f"{_original_bill(elsewhere.region)} SageMaker's discount differs between jobs and is known when a job has"
        " ended; waiting for capacity, restarts and replayed steps are included here.",
    )


def _original_bill(region: str) -> str:
    """Derive the cost and the length of the original run from its saving, if its price is known."""
    whole_usd = SAVED_USD / SAVED_SHARE
    text = f"${SAVED_USD:g} at {percent(SAVED_SHARE)} are ${whole_usd:.2f} on demand"
    try:
        price = on_demand(SINGLE, region)
    except InputError:
        return f"{text}."
    hours = whole_usd / training_usd(3600, SAVED_GPUS, price.usd_per_hour)
    return f"{text}: {hours:.1f} h of {SAVED_GPUS} x {SINGLE} at {price.described()}."


def _returns(study: Study, elsewhere: Elsewhere) -> Claim:
    series = _best_series(study)
    measured: Inline = f"{NONE}: {NO_SERIES}"
    why = "It depends on the part of a step that grows, and so on network, model and batch."
    if series:
        shown = ", ".join(
            f"{each.world_size}: {percent(series.efficiency(each).mean)}" for each in series.configurations
        )
        measured = [f"{series.label}, % of linear by devices: {shown} (", series.configurations[-1].link, ")."]
        why += f" Here: {knee.explained(series, elsewhere.fitted)}"
    predictions = {n: elsewhere.predict(SINGLE, n) for n in (1, 4, 8, 12, 16)}
    rates = {n: each.samples_per_s for n, each in predictions.items() if isinstance(each, Predicted)}
    predicted = str(predictions[1])
    if len(rates) == len(predictions):
        shown = ", ".join(f"{n}: {percent(rate / rates[1] / n)}" for n, rate in rates.items())
        predicted = f"{SINGLE}, % of linear by GPUs: {shown}."
    return Claim(
        "Diminishing returns beyond 8 GPUs, because of the data pipeline and synchronisation.", measured, predicted, why
    )


def _find(study: Study, hardware: str, count: int) -> Configuration | None:
    return next(
        (each for each in study.physical if (each.cell["hardware"], each.cell["count"]) == (hardware, count)), None
    )


def _described(configuration: Configuration) -> str:
    parts = [f"{number(configuration.utterances_per_s)} samples/s"]
    if utilisation := configuration.gpu_utilisation:
        parts.append(f"GPU {percent(utilisation.mean)}")
    if latency := all_reduce("latency_ms")(configuration):
        parts.append(f"all-reduce of 4 KiB {number(latency.mean)} ms")
    return ", ".join(parts)


def _predicted(prediction: Predicted) -> str:
    count, kind = prediction.candidate.count, prediction.candidate.instance_type
    return f"{count} x {kind}: {number(prediction.samples_per_s)} samples/s, epoch {seconds(prediction.epoch_s)}."


def _best_series(study: Study) -> Scaling | None:
    """Return the series on the original machines if there is one; otherwise GPUs before processes, then the longest."""
    return max(
        scalings(study.physical),
        key=lambda series: (
            series.configurations[-1].cell["hardware"] in (SINGLE, MULTI),
            series.base.is_gpu,
            series.configurations[-1].world_size,
        ),
        default=None,
    )


def _on_four(series: Scaling) -> Configuration:
    """Return the configuration with 4 devices, as in the original study, or the largest."""
    return next((each for each in series.configurations if each.world_size == 4), series.configurations[-1])


def _latency(study: Study) -> list[Part]:
    """Compare the latency of four GPUs between hosts and within one."""
    hosts, host = _find(study, SINGLE, 4), _find(study, MULTI, 1)
    if not hosts or not host:
        return []
    between, within = (all_reduce("latency_ms")(configuration) for configuration in (hosts, host))
    if not between or not within:
        return []
    change = within.mean / between.mean - 1
    link = Link(f"{percent(abs(change))} {'less' if change < 0 else 'more'}", host.href)
    return [" All-reduce of 4 KiB takes ", link, f" within 1 x {MULTI} than between 4 x {SINGLE}."]


def _scaled(series: Scaling) -> list[Part]:
    first, last = series.base, _on_four(series)
    unit = "GPUs" if last.is_gpu else "processes"
    return [
        f"{series.label}, {first.world_size} to {last.world_size} {unit}: ",
        Link(number(first.utterances_per_s), first.href),
        " to ",
        Link(number(last.utterances_per_s), last.href),
        f" samples/s, {percent(series.efficiency(last).mean)} of linear; epoch"
        f" {signed_percent(last.epoch_s / first.epoch_s - 1)}.",
    ]


def _predicted_saving(prediction: Predicted) -> str:
    spot, paid = prediction.spot, prediction.on_demand
    if isinstance(spot, str):
        return f"{paid.candidate}: {usd(paid.usd)}; on spot {spot}."
    return (
        f"{prediction.candidate.count} x {prediction.candidate.instance_type}: on spot"
        f" {percent(1 - spot.usd / paid.usd)} less, {usd(spot.usd)} instead of {usd(paid.usd)}, in"
        f" {number(spot.hours)} h instead of {number(paid.hours)} h, with {number(spot.interruptions)} interruptions on"
        " average."
    )


def _where_it_goes(configuration: Configuration) -> str:
    terms = configuration.terms
    parts = {"compute": terms.compute_s, "waiting for data": terms.wait_s, "communication": terms.exposed_s}
    shown = ", ".join(f"{percent(part_s / terms.step_s)} {name}" for name, part_s in parts.items())
    return f"A step on {configuration.world_size} devices here: {shown}."


def _saved(study: Study) -> Inline:
    """Compare clusters that were paid for both on demand and on spot."""
    pairs = [
        (cluster[-1], spot, paid)
        for cluster in by_cluster(study.configurations)
        if len({configuration.cell["is_spot"] for configuration in cluster}) == 2
        and (spot := bill(cluster[-1]))
        and (paid := bill(cluster[0]))
    ]
    if not pairs:
        return f"{NONE}: this study has no cluster with a bill both on demand and on spot."
    shares = sorted(1 - spot.usd_per_run / paid.usd_per_run for _, spot, paid in pairs)
    largest, spot, paid = max(pairs, key=lambda pair: (pair[0].world_size == SAVED_GPUS, pair[0].world_size))
    return [
        f"{counted(len(pairs), 'cluster')}: {percent(shares[0])} to {percent(shares[-1])} less per run. ",
        largest.link,
        f": {usd(paid.usd_per_run - spot.usd_per_run)} less, with {spot.interruptions:.3g} interruptions and"
        f" {signed_percent(spot.training_s / paid.training_s - 1)} time.",
    ]
