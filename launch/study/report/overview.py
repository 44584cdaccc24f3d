"""What was run, and what did not get through."""

from collections.abc import Sequence
from statistics import fmean

from launch.study.report.configurations import Configuration, Study
from launch.study.report.document import Inline, Link, Paragraph, Section, Table
from launch.study.running.collect import FINISHED
from launch.study.runs import Run
from launch.study.units import UNKNOWN, number, percent, seconds, spread

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


def section(study: Study) -> Section:
    """Each configuration with its figures and where they lie."""
    if not study.configurations:
        return Section("What was run", [Paragraph("No run trained for long enough to be measured.", "finding")])
    table = Table(COLUMNS, [_row(one) for one in study.configurations], num_text=2)
    return Section("What was run", [table, Paragraph(NOTE, "note"), Paragraph(_made_with(study), "note")])


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


def _row(one: Configuration) -> list[Inline]:
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
        _bottleneck(one),
        UNKNOWN if wer is None else percent(wer, 1),
    ]


def _bottleneck(one: Configuration) -> str:
    gains = one.terms.gains_s()
    name = one.terms.bottleneck
    return f"{name}, {percent(gains[name] / one.terms.step_s)}"


def _reason(run: Run) -> str:
    if run.outcome == FINISHED:
        return "It finished, but trained for too few steps: nothing is left behind the warm-up."
    return run.outcome


def _made_with(study: Study) -> str:
    """Machines, software and dates."""
    runs = [one.run for one in study.recorded]
    versions = sorted({f"{name} {v}" for run in runs for name, v in run.throughput.get("versions", {}).items()})
    devices = sorted({run.throughput["device"] for run in runs})
    days = sorted(run.date[:10] for run in runs)
    period = days[0] if days[0] == days[-1] else f"{days[0]} to {days[-1]}"
    return f"Measured {period} on {', '.join(devices)}; {', '.join(versions)}."
