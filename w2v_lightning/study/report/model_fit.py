"""The step-time model against the measurements: how well it predicts configurations that it was not fitted to."""

from statistics import median

from w2v_lightning.perf_model.fitted import Fitted, LeftOut
from w2v_lightning.reporting.charts import Bar, bar_rows
from w2v_lightning.reporting.document import Block, Figure, Inline, Link, Paragraph, Section, Table
from w2v_lightning.reporting.units import percent, prefixed, seconds, signed_percent
from w2v_lightning.study.report.configurations import Study

NOTE = (
    "Each configuration is left out in turn, and the model fitted to the others predicts its step time. Zero is the"
    " measured time; +10 % means predicted 10 % too long. The line is the 90 % interval of the prediction."
)
# Parameters of w2v_lightning/perf_model/step_time.py, and their units.
MEANINGS = {
    "flops_per_s": ("Computing rate in training", "FLOP/s"),
    "contention": ("Slowdown by each other busy process", ""),
    "launch_s": ("Launch time of a micro-batch", "s"),
    "overhead_s": ("Overhead of a step", "s"),
    "decode_audio_s_per_s": ("Loading rate of one worker", "audio-s/s"),
    "storage_audio_s_per_s": ("Storage rate of a host", "audio-s/s"),
    "audio_s_per_byte": ("Audio per byte of storage", "s/B"),
    "imbalance": ("Spread of the devices' times, relative to the mean", ""),
    "overlap": ("Share of the last micro-batch that hides communication", ""),
    "hop_s": ("Latency within a host", "s"),
    "bytes_per_s": ("Rate within a host", "B/s"),
    "link_hop_s": ("Latency between hosts", "s"),
    "link_efficiency": ("Share of the link's rate that is reached", ""),
}


def section(study: Study, fitted: Fitted | str) -> Section:
    """Compare measurements and predictions; `fitted` may be the reason why there is no model."""
    title = "The model against the measurements"
    if isinstance(fitted, str):
        return Section(title, [Paragraph(f"There is no model: {fitted}", "finding")])
    hrefs = {configuration.name: configuration.href for configuration in study.configurations}
    blocks: list[Block] = [Paragraph(summary(fitted), "finding"), *(Paragraph(note) for note in fitted.notes)]
    bars = {name: bar for name, left_out in fitted.leave_one_out.items() if (bar := _bar(left_out, hrefs[name]))}
    if bars:
        chart = bar_rows([(name, [bar]) for name, bar in bars.items()], ("error",), "error in % of the measured step")
        blocks.append(Figure("left-out", "Step times predicted from all other configurations", chart, NOTE))
    rows: list[list[Inline]] = [
        [Link(name, hrefs[name]), left_out.why] for name, left_out in fitted.leave_one_out.items() if name not in bars
    ]
    if rows:
        blocks.append(Table(["not predicted from the others", "reason"], rows, is_prose=True))
    return Section(title, [*blocks, _parameters(fitted)])


def summary(fitted: Fitted) -> str:
    """Say how far predictions are off for configurations that the model was not fitted to."""
    left_out = fitted.leave_one_out.items()
    errors = {name: abs(prediction.error) for name, prediction in left_out if prediction.error is not None}
    if not errors:
        return "No configuration can be predicted from the others: the accuracy of predictions was not tested."
    worst = max(errors, key=errors.__getitem__)
    middle = median(errors.values())
    return (
        f"Step times of {len(errors)} configurations, each predicted from all others, are off by {percent(middle, 1)}"
        f" (median) and by at most {percent(errors[worst], 1)} ({worst})."
    )


def _bar(left_out: LeftOut, href: str) -> Bar | None:
    """Return the error of a prediction with its interval; None if it could not be predicted."""
    predicted_s, low_s, high_s, error = left_out.predicted_s, left_out.low_s, left_out.high_s, left_out.error
    if predicted_s is None or low_s is None or high_s is None or error is None:
        return None
    low, high = (100 * (bound_s / left_out.measured_s - 1) for bound_s in (low_s, high_s))
    measured = seconds(left_out.measured_s)
    title = f"predicted {seconds(predicted_s)} ({seconds(low_s)} to {seconds(high_s)}), measured {measured}"
    return Bar([(0, 100 * error)], f"{signed_percent(error)} of {measured}", low, high, title, href)


def _parameters(fitted: Fitted) -> Table:
    rows = []
    for name, parameter in sorted(fitted.parameters.items()):
        kind, _, owner = name.partition(" of ")
        meaning, unit = MEANINGS.get(kind, (kind, ""))
        value, low, high = (prefixed(v, unit) for v in (parameter.value, parameter.low, parameter.high))
        rows.append([f"{meaning}: {owner}", parameter.basis, parameter.source, value, f"{low} to {high}"])
    return Table(["parameter", "basis", "prior", "value", "90 % interval"], rows, num_text=3)
