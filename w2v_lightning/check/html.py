"""The result of a check as one HTML page."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from w2v_lightning.check.findings import Corpus, Finding, Level
from w2v_lightning.check.result import Result, counted, share
from w2v_lightning.reporting import charts, document
from w2v_lightning.reporting.document import Block, Document, Figure, Inline, Paragraph, Section, Table
from w2v_lightning.reporting.html import save_html as save_page
from w2v_lightning.reporting.units import printable
from w2v_lightning.text.characters import described

WORST = 20
MAX_COLUMNS = 40  # more names do not fit under a chart


def save_html(result: Result, path: Path) -> None:
    """Write the page complete or not at all."""
    sections = [Section("Findings", list(_findings(result))), Section("The corpus", list(_figures(result.corpus)))]
    if result.found():
        worst = [_worst(result.corpus, finding) for finding in result.found()]
        sections.append(Section(f"The worst {WORST} of each finding", worst))
    save_page(Document("Corpus check", ", ".join(result.sources), _facts(result.corpus), sections), path)


def _facts(corpus: Corpus) -> dict[str, str]:
    durations_s_N, validation_N = corpus.manifest.durations_s_N, corpus.is_validation_N
    facts = {
        "utterances": f"{len(corpus):,}",
        "hours": f"{durations_s_N.sum() / 3600:,.2f}",
        "hours of validation": f"{durations_s_N[validation_N].sum() / 3600:,.2f}" if validation_N.any() else "",
        "speakers": f"{len(set(corpus.manifest.speakers) - {''}):,}",
        "median duration": f"{np.median(durations_s_N):.1f} s",
        "median rate": f"{np.median(corpus.characters_per_second):.1f} characters/s",
    }
    return {name: value for name, value in facts.items() if value}


def _findings(result: Result) -> Iterator[Block]:
    yield Paragraph(result.verdict, "problem" if result.would_hurt else "finding")
    if result.found():
        rows: list[list[Inline]] = [
            [finding.name, _level(finding, finding.level), finding.remedy, f"{len(finding):,}", share(result, finding)]
            for finding in result.found()
        ]
        yield Table(["finding", "level", "remedy", "count", "share"], rows, num_text=3)
    fine = ", ".join(finding.name for finding in result.findings if not finding)
    yield Paragraph(f"Checked, none found: {fine}. {result.not_checked}", "note")


def _level(finding: Finding, text: str) -> document.Level:
    return document.Level(text, "bad" if finding.level is Level.ERROR else "warning")


def _figures(corpus: Corpus) -> Iterator[Block]:
    durations = charts.histogram(corpus.manifest.durations_s_N, "s")
    yield Figure("duration", "Duration (s)", *durations)
    yield Figure("rate", "Characters per second", *charts.histogram(corpus.characters_per_second, "characters/s"))
    yield Figure("speakers", "Hours per speaker", *_speakers(corpus))
    yield from _alphabet(corpus)


def _speakers(corpus: Corpus) -> tuple[charts.Chart, str]:
    """Draw a column for each speaker, or a histogram of their hours where there are many."""
    hours: Counter[str] = Counter()
    for speaker, seconds in zip(corpus.manifest.speakers, corpus.manifest.durations_s_N.tolist(), strict=True):
        hours[printable(speaker) or "unknown"] += seconds / 3600
    if len(hours) > MAX_COLUMNS:
        return charts.histogram(np.array(list(hours.values())), "h", "speakers")
    names, values = zip(*hours.most_common(), strict=True)
    return charts.columns(names, values, "h"), ""


def _alphabet(corpus: Corpus) -> Iterator[Block]:
    """Draw the most frequent characters, then those without a token, which are marked and named below."""
    counts = Counter(c for text in corpus.manifest.texts for c in corpus.spec.vocabulary.normalise(text))
    unknown = corpus.unknown_counts()
    shown = dict(Counter({c: n for c, n in counts.items() if c not in unknown}).most_common(MAX_COLUMNS - 8))
    shown |= dict(unknown.most_common(8))
    if not shown:
        yield Paragraph("There is no text.", "note")
        return
    names = {c: "\N{OPEN BOX}" if c == " " else printable(c) for c in shown}
    marked = frozenset(names[c] for c in shown if c in unknown)
    chart = charts.columns(list(names.values()), list(shown.values()), "times", marked)
    note = f"No token for {counted(unknown)}." if unknown else "Every character has a token."
    yield Figure("alphabet", "Alphabet (characters after normalisation)", chart, note)
    yield _built(corpus)


def _built(corpus: Corpus) -> Table:
    """Return the characters that `model.vocabulary=build` would make labels, those to look at first."""
    alphabet = corpus.alphabet
    rows: list[list[Inline]] = [
        [
            described(each.character),
            document.Level(each.remark, "warning") if each.remark else "",
            corpus.manifest.ids[each.example],
            f"{each.count:,}",
            f"{each.num_utterances:,}",
        ]
        for each in [*alphabet.odd, *(each for each in alphabet.characters if not each.remark)]
    ]
    title = f"The {len(rows):,} labels that model.vocabulary=build would make ({len(alphabet.odd):,} to look at)"
    return Table(["character", "remark", "first utterance", "times", "utterances"], rows, num_text=3, title=title)


def _worst(corpus: Corpus, finding: Finding) -> Table:
    manifest = corpus.manifest
    rows = [[manifest.ids[i], finding.details[i], manifest.texts[i]] for i in list(finding.details)[:WORST]]
    title = _level(finding, f"{finding.name} ({len(finding):,})")
    return Table(["utterance", "what was found", "text"], rows, is_prose=True, title=title)
