"""Table of all runs, and the runs that did not finish."""

from collections.abc import Sequence
from statistics import fmean

from w2v_lightning.perf_model.fitted import Fitted
from w2v_lightning.perf_model.runs import Run
from w2v_lightning.perf_model.step_time import LAUNCHING
from w2v_lightning.reporting.document import Block, Inline, Link, Paragraph, Section, Table
from w2v_lightning.reporting.units import UNKNOWN, counted, number, percent, seconds, spread
from w2v_lightning.study.collect import FINISHED
from w2v_lightning.study.report.configurations import Configuration, Study

COLUMNS = (
    "configuration", "run.json", "devices", "audio-s/s", "samples/s", "step", "epoch", "waiting for data", "bottleneck",
    "WER",
)  # fmt: skip
NOTE = (
    "Audio-s/s: seconds of speech that all devices together train on per second. Samples/s: the same in utterances, the"
    " unit of the original study. All rates are after warm-up. ±: half of the range from the slowest to the fastest"
    " repetition; for a single run 1.645 standard errors (90 %) of its logged windows. Epoch: at the measured"
    " throughput, without start-up and validation. Bottleneck: the part of a step without which it would be shortest,"
    " with its share of the step."
)
LAUNCHING_NOTE = (
    f"{LAUNCHING}: it is measured as computing, but according to the model below the host takes longer to launch the"
    " kernels of a micro-batch than the GPU takes to compute it. Larger micro-batches help, and so do longer steps"
    " (data.batch_seconds)."
)


def section(study: Study, fitted: Fitted | str) -> Section:
    """List each configuration with its figures and links to its runs."""
    title = "Runs"
    if not study.configurations:
        return Section(title, [Paragraph("No run trained for long enough to be measured.", "finding")])
    bottlenecks = [configuration.bottleneck(fitted) for configuration in study.configurations]
    rows = [_row(*pair) for pair in zip(study.configurations, bottlenecks, strict=True)]
    notes = [NOTE, *([LAUNCHING_NOTE] if LAUNCHING in bottlenecks else []), _made_with(study)]
    return Section(title, [Table(COLUMNS, rows, num_text=2), *(Paragraph(note, "note") for note in notes)])


def failures(study: Study) -> Section | None:
    """List the runs that did not finish and why; None if all have finished."""
    blocks: list[Block] = []
    if study.failed:
        blocks.append(_reasons(study))
    if study.running:
        blocks.append(Paragraph(f"Still running when this report was made: {', '.join(study.running)}."))
    return Section("Unfinished runs", blocks) if blocks else None


def last_wer(runs: Sequence[Run]) -> float | None:
    """Return the mean of the runs' last word error rates; None if no run was validated."""
    rates = [run.wer[-1]["wer"] for run in runs if run.wer]
    return fmean(rates) if rates else None


def _reasons(study: Study) -> Table:
    rows: list[list[Inline]] = [
        [Link(each.run.name, each.href), _reason(each.run), "yes" if each.run.is_measured else "no"]
        for each in study.failed
    ]
    return Table(["run", "reason", "steps included in this report"], rows, is_prose=True)


def _row(configuration: Configuration, bottleneck: str) -> list[Inline]:
    terms, wer = configuration.terms, last_wer(configuration.runs)
    return [
        configuration.link,
        configuration.links,
        str(configuration.world_size),
        spread(configuration.audio_s_per_s),
        number(configuration.utterances_per_s),
        seconds(terms.step_s),
        seconds(configuration.epoch_s),
        percent(terms.wait_s / terms.step_s),
        f"{bottleneck}, {percent(terms.gains_s()[terms.bottleneck] / terms.step_s)}",
        UNKNOWN if wer is None else percent(wer, 1),
    ]


def _reason(run: Run) -> str:
    if run.outcome == FINISHED:
        return "It finished, but trained for too few steps: no step is left after warm-up."
    return run.outcome


def _machine(run: Run) -> str:
    cores = run.environment.get("cores")
    return run.throughput["device"] + (f" (a host of {counted(cores, 'core')})" if cores else "")


def _made_with(study: Study) -> str:
    """Describe machines, software and dates."""
    runs = [recorded.run for recorded in study.recorded]
    versions = sorted({f"{name} {v}" for run in runs for name, v in run.throughput.get("versions", {}).items()})
    devices = sorted({_machine(run) for run in runs})
    days = sorted(run.date[:10] for run in runs)
    period = days[0] if days[0] == days[-1] else f"{days[0]} to {days[-1]}"
    return f"Measured {period} on {', '.join(devices)}; {', '.join(versions)}."
