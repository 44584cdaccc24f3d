"""What the step-time model says of what was measured: how well it predicts what it was not shown, and from what."""

from collections.abc import Sequence
from statistics import median

from w2v_lightning.perf_model.fitted import Fitted, LeftOut
from w2v_lightning.reporting.document import Figure, Link, Paragraph, Section, Table
from w2v_lightning.reporting.rows import Mark, mark_rows
from w2v_lightning.reporting.units import percent, prefixed, seconds, signed_percent
from w2v_lightning.study.report.configurations import Study

KINDS = (("measured", False), ("predicted from all others, with its 90 % interval", True))
NOTE = (
    "Each configuration is left out in turn, the model is fitted to the others and predicts it. On the right the error"
    " of the prediction: +10 % is a step predicted too long by a tenth."
)
# Parameters of w2v_lightning/perf_model/step_time.py, and their units.
MEANINGS = {
    "flops_per_s": ("Computing in training", "FLOP/s"),
    "contention": ("Slowdown by each other busy process", ""),
    "launch_s": ("Handing a micro-batch to the GPU", "s"),
    "overhead_s": ("Overhead of a step", "s"),
    "decode_audio_s_per_s": ("Loading by one worker", "audio-s/s"),
    "storage_audio_s_per_s": ("Storage of a host", "audio-s/s"),
    "audio_s_per_byte": ("Audio in a byte of storage", "s/B"),
    "imbalance": ("Spread of the devices' times, of their mean", ""),
    "overlap": ("Of the last micro-batch, what hides communication", ""),
    "hop_s": ("Latency within a host", "s"),
    "bytes_per_s": ("Rate within a host", "B/s"),
    "link_hop_s": ("Latency between hosts", "s"),
    "link_efficiency": ("Reached of the link's rate", ""),
}


def section(study: Study, fitted: Fitted | str) -> Section:
    """Measured against predicted; instead of a model there may be the reason why there is none."""
    title = "The model against the measurements"
    if isinstance(fitted, str):
        return Section(title, [Paragraph(f"There is no model: {fitted}", "finding")])
    hrefs = {one.name: one.href for one in study.configurations}
    blocks: list = [Paragraph(summary(fitted), "finding"), *(Paragraph(note) for note in fitted.notes)]
    tested = {name: left for name, left in fitted.leave_one_out.items() if left.predicted_s}
    if tested:
        rows = [(name, _marks(left, hrefs[name]), signed_percent(left.error)) for name, left in tested.items()]
        drawing = mark_rows(rows, KINDS, "seconds per step, logarithmic")
        blocks.append(Figure("left-out", "Measured and predicted from all others", drawing, NOTE))
    if untold := [(name, left.why) for name, left in fitted.leave_one_out.items() if not left.predicted_s]:
        rows = [[Link(name, hrefs[name]), why] for name, why in untold]
        blocks.append(Table(["not predicted from the others", "why"], rows, is_prose=True))
    return Section(title, [*blocks, _parameters(fitted)])


def summary(fitted: Fitted) -> str:
    """How far off predictions of configurations are that the model was not shown."""
    errors = {name: abs(left.error) for name, left in fitted.leave_one_out.items() if left.error is not None}
    if not errors:
        return "No configuration can be predicted from the others: how well the model predicts was not tested."
    worst = max(errors, key=errors.__getitem__)
    middle = median(errors.values())
    return (
        f"Predicted from all others, the step times of {len(errors)} configurations are off"
        f" by {percent(middle, 1)} in the median and by {percent(errors[worst], 1)} at most ({worst})."
    )


def _marks(left: LeftOut, href: str) -> Sequence[Mark]:
    predicted = f"predicted {seconds(left.predicted_s)} ({seconds(left.low_s)} to {seconds(left.high_s)})"
    return [
        Mark(1, left.predicted_s, left.low_s, left.high_s, is_predicted=True, title=predicted),
        Mark(0, left.measured_s, href=href, title=f"measured {seconds(left.measured_s)}"),
    ]


def _parameters(fitted: Fitted) -> Table:
    rows = []
    for name, found in sorted(fitted.parameters.items()):
        what, _, whose = name.partition(" of ")
        meaning, unit = MEANINGS.get(what, (what, ""))
        value, low, high = (prefixed(v, unit) for v in (found.value, found.low, found.high))
        rows.append([f"{meaning}: {whose}", found.basis, found.source, value, f"{low} to {high}"])
    return Table(["parameter", "is", "known before the runs", "value", "90 % interval"], rows, num_text=3)
