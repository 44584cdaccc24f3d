"""What the model says of the original study's machines, for 100 h of speech in steps like those of this study.

A study of a small model, as on CPUs, says nothing of how one keeps a GPU busy: then it is for wav2vec2-base.
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
from w2v_lightning.reporting.document import Figure, Inline, Paragraph, Section, Table
from w2v_lightning.reporting.rows import Bar, bar_rows
from w2v_lightning.reporting.units import number, percent, seconds, usd
from w2v_lightning.study.report.configurations import Study

HOURS = 100.0  # of speech: train-clean-100
EPOCHS = 10  # of the run whose cost is predicted: an example, the original study does not say how many it had
REGION = "us-east-1"  # where no run says another
SINGLE, MULTI = "ml.g4dn.2xlarge", "ml.g4dn.12xlarge"
MATRIX = (*((SINGLE, n) for n in (1, 2, 4, 8, 12, 16)), *((MULTI, n) for n in (1, 2, 3)))
BATCH = 6  # utterances on a device: theirs had 4 to 8
BASE_BATCH_SECONDS = 1600.0  # of our configs
COLUMNS = (
    "instances", "GPUs", "samples/s", "step", "of it communication", "epoch", "USD on demand", "USD on spot",
    "interruptions",
)  # fmt: skip


@dataclass(frozen=True)
class Predicted:
    """One cluster; `spot` may be the reason why that is no way to train there."""

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
        study: what was measured; its run with the most computing in a step says what is trained.
        fitted: the model; or the reason why there is none.
    """

    def __init__(self, study: Study, fitted: Fitted | str) -> None:
        self.fitted = fitted
        runs = [one.run for one in study.recorded]
        regions = [run.price["region"] for run in runs if run.price]
        self.region = regions[0] if regions else REGION
        self.assumed: Assumptions = assumptions(runs, defaults())
        self.task, self.trained, self._why_not = None, "", fitted if isinstance(fitted, str) else ""
        if not self._why_not:
            try:
                self.task, self.trained = _task(runs)
            except InputError as error:
                self._why_not = str(error)

    def predict(self, instance_type: str, count: int) -> Predicted | str:
        """Of so many instances; or, in words, why it cannot be predicted."""
        if self.task is None:
            return self._why_not
        on_demand, spot = (self._estimate(instance_type, count, is_spot) for is_spot in (False, True))
        if isinstance(on_demand, str):
            return on_demand
        epoch, step_s = self.task.epoch, on_demand.terms.step_s
        utterances = HOURS * 3600 / epoch.utterance_s
        return Predicted(on_demand, spot, utterances / (epoch.steps * step_s), epoch.steps * step_s)

    def their_efficiency(self, micro_batches: int) -> float | None:
        """Of linear, of 4 GPUs in one host against one alone, with their batch on each GPU.

        Args:
            micro_batches: after so many gradients are exchanged.

        Returns:
            None where nothing can be predicted.
        """
        if self.task is None:
            return None
        try:
            one, four = (self._step_s(kind, micro_batches) for kind in (SINGLE, MULTI))
        except InputError:
            return None
        return one / four  # each GPU has as much to do in both

    def _step_s(self, instance_type: str, micro_batches: int) -> float:
        setup = setup_of(Candidate(instance_type, 1, False, "16-mixed"), self.task)
        audio_s = setup.world_size * micro_batches * BATCH * self.task.epoch.utterance_s
        computed_s = audio_s * setup.computed_s / setup.audio_s
        setup = replace(setup, audio_s=audio_s, computed_s=computed_s, micro_batches=micro_batches)
        return self.fitted.predict(setup).terms.step_s

    def _estimate(self, instance_type: str, count: int, is_spot: bool) -> Estimate | str:
        candidate = Candidate(instance_type, count, is_spot, "16-mixed")
        try:
            return planner.estimate(candidate, self.task, self.fitted, self.assumed, self.region)
        except InputError as error:
            return str(error)


def section(elsewhere: Elsewhere) -> Section:
    """The original study's matrix, as far as it can be predicted."""
    found = [elsewhere.predict(*cluster) for cluster in MATRIX]
    known = [one for one in found if isinstance(one, Predicted)]
    title = "The original study's machines, predicted"
    if not known:
        return Section(title, [Paragraph(f"They cannot be predicted from these runs: {found[0]}", "finding")])
    rows = [(str(one.candidate).split(",")[0], _bars(one)) for one in known]
    drawing = bar_rows(rows, ("on demand", "spot, with interruptions"), f"USD for {EPOCHS} epochs of {HOURS:g} h")
    note = "Means, with 90 % bounds; start-up, interruptions and replays are in it."
    return Section(title, [
        Paragraph(_what(elsewhere)),
        Figure("usd-predicted", "Cost of a run, predicted", drawing, note),
        Table(COLUMNS, [_row(one) for one in known]),
        *(Paragraph(text, "note") for text in _rests_on(elsewhere, known)),
    ])  # fmt: skip


def _task(runs: Sequence[Run]) -> tuple[Task, str]:
    """What is trained there, and in words."""
    largest = max(runs, key=lambda run: run.setup.computed_s * run.setup.flops_per_audio_s)
    work = largest.throughput["workload"]
    model = workload.Model(largest.setup.flops_per_audio_s, work["gradient_bytes"], work["gradient_buckets"])
    batch_seconds, width = work["batch_seconds"], model_sizes.like(work["parameters"]).hidden_size
    trained = "the model and the steps of this study"
    if model.flops_per_audio_s < workload.BASE.flops_per_audio_s / 2:
        model, batch_seconds, width = workload.BASE, BASE_BATCH_SECONDS, model_sizes.BASE.hidden_size
        trained = "wav2vec2-base, because this study's model is too small to keep a GPU busy"
    if not batch_seconds:
        raise InputError("its runs do not say how much audio their steps were planned to have.")
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


def _bars(one: Predicted) -> list[Bar]:
    return [
        Bar([(kind, found.usd)], usd(found.usd), high=found.usd_p90, low=found.usd, title=str(found.candidate))
        for kind, found in enumerate((one.on_demand, one.spot))
        if not isinstance(found, str)
    ]


def _row(one: Predicted) -> list[Inline]:
    terms = one.on_demand.terms
    return [
        f"{one.candidate.count} x {one.candidate.instance_type}",
        str(one.candidate.world_size),
        number(one.samples_per_s),
        seconds(terms.step_s),
        percent(terms.exposed_s / terms.step_s),
        seconds(one.epoch_s),
        usd(one.on_demand.usd),
        *([one.spot, "-"] if isinstance(one.spot, str) else [usd(one.spot.usd), number(one.spot.interruptions)]),
    ]


def _what(elsewhere: Elsewhere) -> str:
    task = elsewhere.task
    return (
        f"Predicted, not measured: {EPOCHS} epochs of {HOURS:g} h in {elsewhere.region}, with {elsewhere.trained}"
        f" ({task.epoch.basis}). How many epochs the original study trained is not known."
    )


def _rests_on(elsewhere: Elsewhere, known: Sequence[Predicted]) -> list[str]:
    """What none of these runs has shown, and how old the prices are."""
    reasons = list(dict.fromkeys(reason for one in known for reason in one.on_demand.reasons))
    prices = dict.fromkeys(f"{one.candidate.instance_type}: {_price(one)}" for one in known)
    return [
        f"Rests on: {'; '.join(reasons)}." if reasons else "All its parameters were measured here.",
        f"Assumed: {'; '.join(elsewhere.assumed.described(is_spot=True))}.",
        f"Prices in {elsewhere.region}: {'; '.join(prices)}.",
    ]


def _price(one: Predicted) -> str:
    spot = "" if isinstance(one.spot, str) else f"; spot's saving {one.spot.saving}"
    return f"{one.on_demand.price.described()}{spot}"
