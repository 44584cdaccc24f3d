"""What was run, and what did not get through."""

from collections.abc import Sequence
from statistics import fmean

from w2v_lightning.perf_model.fitted import Fitted
from w2v_lightning.perf_model.runs import Run
from w2v_lightning.perf_model.step_time import LAUNCHING
from w2v_lightning.reporting.document import Inline, Link, Paragraph, Section, Table
from w2v_lightning.reporting.units import UNKNOWN, counted, number, percent, seconds, spread
from w2v_lightning.study.collect import FINISHED
from w2v_lightning.study.report.configurations import Configuration, Study

COLUMNS = (
    "configuration", "run.json", "devices", "audio-s/s", "samples/s", "step", "epoch", "waiting for data", "bottleneck",
    "WER",
)  # fmt: skip
NOTE = (
    "Audio-s/s are seconds of speech that all devices train on in a second; samples/s are the utterances of the same,"
    " as the original study counts. All rates are of the steps behind the warm-up. ± is half of what lies between the"
    " slowest and the fastest repetition; of a single run it is 1.645 standard errors (90 %) of its logged windows."
    " An epoch is at the measured pace, without start-up and validation. The bottleneck is the part without which the"
    " step would be shortest, with its share of the step."
)
LAUNCHING_NOTE = (
    f"{LAUNCHING}: measured it looks like computing, but by the model below the host takes longer to hand a micro-batch"
    " to the GPU than the GPU to compute it. Larger micro-batches help, and so do longer steps (data.batch_seconds)."
)


def section(study: Study, fitted: Fitted | str) -> Section:
    """Each configuration with its figures and where they lie."""
    if not study.configurations:
        return Section("What was run", [Paragraph("No run trained for long enough to be measured.", "finding")])
    bottlenecks = [one.bottleneck(fitted) for one in study.configurations]
    rows = [_row(one, named) for one, named in zip(study.configurations, bottlenecks, strict=True)]
    notes = [NOTE, *([LAUNCHING_NOTE] if LAUNCHING in bottlenecks else []), _made_with(study)]
    return Section("What was run", [Table(COLUMNS, rows, num_text=2), *(Paragraph(note, "note") for note in notes)])


def failures(study: Study) -> Section | None:
    """Those that ended in another way, with what ended them; None where all have finished."""
    blocks: list[Table | Paragraph] = []
    if study.failed:
        blocks.append(_reasons(study))
    if study.running:
        blocks.append(Paragraph(f"Started, and not done as this report was made: {', '.join(study.running)}."))
    return Section("What did not finish", blocks) if blocks else None


def last_wer(runs: Sequence[Run]) -> float | None:
    """Of the runs that were validated, the mean of what they ended with."""
    found = [run.wer[-1]["wer"] for run in runs if run.wer]
    return fmean(found) if found else None


def _reasons(study: Study) -> Table:
    rows: list[list[Inline]] = [
        [Link(one.run.name, one.href), _reason(one.run), "yes" if one.run.is_measured else "no"] for one in study.failed
    ]
    return Table(["run", "what ended it", "are its steps in this report?"], rows, is_prose=True)


def _row(one: Configuration, bottleneck: str) -> list[Inline]:
    wer = last_wer(one.runs)
    return [
        Link(one.name, one.href),
        one.links,
        str(one.world_size),
        spread(one.audio_s_per_s),
        number(one.utterances_per_s),
        seconds(one.terms.step_s),
        seconds(one.epoch_s),
        percent(one.terms.wait_s / one.terms.step_s),
        f"{bottleneck}, {percent(one.terms.gains_s()[one.terms.bottleneck] / one.terms.step_s)}",
        UNKNOWN if wer is None else percent(wer, 1),
    ]


def _reason(run: Run) -> str:
    if run.outcome == FINISHED:
        return "It finished, but trained for too few steps: nothing is left behind the warm-up."
    return run.outcome


def _machine(run: Run) -> str:
    cores = run.environment.get("cores")
    return run.throughput["device"] + (f" (a host of {counted(cores, 'core')})" if cores else "")


def _made_with(study: Study) -> str:
    """Machines, software and dates."""
    runs = [one.run for one in study.recorded]
    versions = sorted({f"{name} {v}" for run in runs for name, v in run.throughput.get("versions", {}).items()})
    devices = sorted({_machine(run) for run in runs})
    days = sorted(run.date[:10] for run in runs)
    period = days[0] if days[0] == days[-1] else f"{days[0]} to {days[-1]}"
    return f"Measured {period} on {', '.join(devices)}; {', '.join(versions)}."
