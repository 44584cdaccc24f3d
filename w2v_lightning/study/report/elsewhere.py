"""Predictions for the machines of the original study: 100 h of speech, in steps like those of this study.

A study of a small model, as on CPUs, does not show how a model keeps a GPU busy; then wav2vec2-base is predicted.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from w2v_lightning.catalog import model_sizes
from w2v_lightning.catalog.defaults import defaults
from w2v_lightning.errors import InputError
from w2v_lightning.perf_model.fitted import Fitted
from w2v_lightning.perf_model.runs import Run
from w2v_lightning.planner import planner, workload
from w2v_lightning.planner.assumptions import Assumptions, assumptions
from w2v_lightning.planner.candidates import Candidate, Task, setup_of
from w2v_lightning.planner.planner import Estimate
from w2v_lightning.reporting.charts import Bar, bar_rows
from w2v_lightning.reporting.document import Figure, Inline, Paragraph, Section, Table
from w2v_lightning.reporting.units import number, percent, seconds, usd
from w2v_lightning.study.report.configurations import Study

HOURS = 100.0  # of speech: train-clean-100
EPOCHS = 10  # of the run whose cost is predicted; an example, because the original study does not name a number
REGION = "us-east-1"  # default if no run has a region
SINGLE, MULTI = "ml.g4dn.2xlarge", "ml.g4dn.12xlarge"
MATRIX = (*((SINGLE, n) for n in (1, 2, 4, 8, 12, 16)), *((MULTI, n) for n in (1, 2, 3)))
BATCH = 6  # utterances per device; the original study had 4 to 8
BASE_BATCH_SECONDS = 1600.0  # of our configs
COLUMNS = (
    "instances", "GPUs", "samples/s", "step", "communication", "epoch", "USD on demand", "USD on spot", "interruptions",
)  # fmt: skip


@dataclass(frozen=True)
class Predicted:
    """Prediction for one cluster; `spot` may be the reason why spot instances cannot be used."""

    on_demand: Estimate
    spot: Estimate | str
    samples_per_s: float
    epoch_s: float

    @property
    def candidate(self) -> Candidate:
        return self.on_demand.candidate


class Elsewhere:
    """Predictions for clusters that need not be in the study.

    Args:
        study: measurements; the run with the most computation per step decides what is trained.
        fitted: fitted model, or the reason why there is none.
    """

    def __init__(self, study: Study, fitted: Fitted | str) -> None:
        self.fitted = fitted
        runs = [recorded.run for recorded in study.recorded]
        regions = [run.price["region"] for run in runs if run.price]
        self.region: str = regions[0] if regions else REGION
        self.assumed: Assumptions = assumptions(runs, defaults())
        self.trained = ""
        self._basis: tuple[Fitted, Task] | str
        if isinstance(fitted, str):
            self._basis = fitted
        else:
            try:
                task, self.trained = _task(runs)
                self._basis = fitted, task
            except InputError as error:
                self._basis = str(error)

    def predict(self, instance_type: str, count: int) -> Predicted | str:
        """Predict `count` instances; return the reason if that is impossible."""
        if isinstance(self._basis, str):
            return self._basis
        fitted, task = self._basis
        on_demand, spot = (
            self._estimate(Candidate(instance_type, count, is_spot, "16-mixed"), task, fitted)
            for is_spot in (False, True)
        )
        if isinstance(on_demand, str):
            return on_demand
        epoch, step_s = task.epoch, on_demand.terms.step_s
        utterances = HOURS * 3600 / epoch.utterance_s
        return Predicted(on_demand, spot, utterances / (epoch.steps * step_s), epoch.steps * step_s)

    def original_efficiency(self, micro_batches: int) -> float | None:
        """Return the efficiency of 4 GPUs in one host relative to one GPU, with the original study's batch per GPU.

        Args:
            micro_batches: number of micro-batches after which gradients are exchanged.

        Returns:
            None if nothing can be predicted.
        """
        if isinstance(self._basis, str):
            return None
        try:
            single_s, multi_s = (_step_s(kind, micro_batches, *self._basis) for kind in (SINGLE, MULTI))
        except InputError:
            return None
        return single_s / multi_s  # each GPU has the same work in both

    @property
    def task_basis(self) -> str:
        """Description of the epoch that is predicted; empty if nothing can be predicted."""
        return "" if isinstance(self._basis, str) else self._basis[1].epoch.basis

    def _estimate(self, candidate: Candidate, task: Task, fitted: Fitted) -> Estimate | str:
        try:
            return planner.estimate(candidate, task, fitted, self.assumed, self.region)
        except InputError as error:
            return str(error)


def section(elsewhere: Elsewhere) -> Section:
    """Show predictions for the clusters of the original study."""
    predictions = [elsewhere.predict(*cluster) for cluster in MATRIX]
    known = [prediction for prediction in predictions if isinstance(prediction, Predicted)]
    title = "Predictions for the original study's machines"
    if not known:
        return Section(title, [Paragraph(f"They cannot be predicted from these runs: {predictions[0]}", "finding")])
    rows = [(str(each.candidate).split(",")[0], _bars(each)) for each in known]
    chart = bar_rows(rows, ("on demand", "spot, with interruptions"), f"USD for {EPOCHS} epochs of {HOURS:g} h")
    note = "Means and 90 % bounds; start-up, interruptions and replayed steps are included."
    basis = (
        f"Predicted, not measured: {EPOCHS} epochs of {HOURS:g} h in {elsewhere.region}, with {elsewhere.trained}"
        f" ({elsewhere.task_basis}). The number of epochs of the original study is not known."
    )
    return Section(title, [
        Paragraph(basis),
        Figure("usd-predicted", "Cost of a run, predicted", chart, note),
        Table(COLUMNS, [_row(each) for each in known]),
        *(Paragraph(text, "note") for text in _rests_on(elsewhere, known)),
    ])  # fmt: skip


def _task(runs: Sequence[Run]) -> tuple[Task, str]:
    """Return the training task for the predictions, and a description of the model."""
    largest = max(runs, key=lambda run: run.setup.computed_s * run.setup.flops_per_audio_s)
    work = largest.throughput["workload"]
    model = workload.Model(largest.setup.flops_per_audio_s, work["gradient_bytes"], work["gradient_buckets"])
    batch_seconds, width = work["batch_seconds"], model_sizes.nearest_size(work["parameters"]).hidden_size
    trained = "the model and the steps of this study"
    if model.flops_per_audio_s < workload.BASE.flops_per_audio_s / 2:
        model, batch_seconds, width = workload.BASE, BASE_BATCH_SECONDS, model_sizes.BASE.hidden_size
        trained = "wav2vec2-base, because this study's model is too small to keep a GPU busy"
    if not batch_seconds:
        raise InputError("its runs do not record how much audio their steps were planned to have.")
    data = {"num_workers": None, "device_seconds": "auto", "batch_seconds": batch_seconds}
    epoch = workload.assumed_epoch(HOURS, batch_seconds, runs)
    config = {"data": data, "model": {"config": {"hidden_size": width}}, "trainer": {}, "checkpoint_every": "15m"}
    task = Task(
        config=config,
        model=model,
        epoch=epoch,
        steps=EPOCHS * epoch.steps,
        device_seconds=partial(workload.device_seconds, config=config, runs=runs),
        input_mode="FastFile",
    )
    return task, trained


def _step_s(instance_type: str, micro_batches: int, fitted: Fitted, task: Task) -> float:
    """Predict a step with the original study's batch on each GPU."""
    setup = setup_of(Candidate(instance_type, 1, False, "16-mixed"), task)
    audio_s = setup.world_size * micro_batches * BATCH * task.epoch.utterance_s
    computed_s = audio_s * setup.computed_s / setup.audio_s
    setup = replace(setup, audio_s=audio_s, computed_s=computed_s, micro_batches=micro_batches)
    return fitted.predict(setup).terms.step_s


def _bars(predicted: Predicted) -> list[Bar]:
    return [
        Bar([(kind, each.usd)], usd(each.usd), high=each.usd_p90, low=each.usd, title=str(each.candidate))
        for kind, each in enumerate((predicted.on_demand, predicted.spot))
        if not isinstance(each, str)
    ]


def _row(predicted: Predicted) -> list[Inline]:
    terms, spot = predicted.on_demand.terms, predicted.spot
    return [
        f"{predicted.candidate.count} x {predicted.candidate.instance_type}",
        str(predicted.candidate.world_size),
        number(predicted.samples_per_s),
        seconds(terms.step_s),
        percent(terms.exposed_s / terms.step_s),
        seconds(predicted.epoch_s),
        usd(predicted.on_demand.usd),
        *([spot, "-"] if isinstance(spot, str) else [usd(spot.usd), number(spot.interruptions)]),
    ]


def _rests_on(elsewhere: Elsewhere, known: Sequence[Predicted]) -> list[str]:
    """Name the parameters that none of the runs measured, the assumptions, and the age of the prices."""
    reasons = list(dict.fromkeys(reason for each in known for reason in each.on_demand.reasons))
    prices = dict.fromkeys(f"{each.candidate.instance_type}: {_price(each)}" for each in known)
    return [
        f"Based on: {'; '.join(reasons)}." if reasons else "All its parameters were measured here.",
        f"Assumed: {'; '.join(elsewhere.assumed.described(is_spot=True))}.",
        f"Prices in {elsewhere.region}: {'; '.join(prices)}.",
    ]


def _price(predicted: Predicted) -> str:
    spot = "" if isinstance(predicted.spot, str) else f"; spot saves {predicted.spot.saving}"
    return f"{predicted.on_demand.price.described()}{spot}"
