"""The result of a check as one HTML page that needs nothing else: no script, font, image or network."""

import html
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from w2v_lightning.check.findings import Corpus, Finding
from w2v_lightning.check.result import Result, counted, share
from w2v_lightning.reporting.bar_charts import bar_chart, histogram
from w2v_lightning.reporting.units import printable
from w2v_lightning.runtime.files import atomic_text_file

WORST = 20
MAX_BARS = 40  # more names do not fit under a chart

STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5b6675; --line: #dde2e8; --page: #f6f7f9; --card: #fff;
  --bar: #3b6fb6; --error: #b3261e; --warning: #8a5a00; --good: #1f7a4d; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --soft: #9aa5b4; --line: #303846; --page: #12161d;
  --card: #1a2029; --bar: #6d9fe0; --error: #ff8a80; --warning: #f0b95a; --good: #6fd0a0; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 1080px; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2rem 0 .75rem; }
h3 { font-size: .95rem; margin: 0; }
section, .card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 1rem 1.25rem; }
.verdict { border-left: 4px solid var(--good); margin: 1rem 0; font-weight: 600; }
.verdict.bad { border-left-color: var(--error); }
.soft, .note, .tick { color: var(--soft); } .note { font-size: .85rem; margin: .25rem 0 0; }
.facts { display: flex; flex-wrap: wrap; gap: .5rem 2.5rem; margin: 1rem 0 0; }
.facts div { display: flex; flex-direction: column; } .facts b { font-size: 1.3rem; font-weight: 600; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); gap: 1rem; }
svg { width: 100%; height: auto; display: block; margin-top: .5rem; }
.tick { font-size: 11px; fill: var(--soft); } .grid { stroke: var(--line); } .bar { fill: var(--bar); }
.bar.marked { fill: var(--error); }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { text-align: left; vertical-align: top; padding: .4rem .9rem .4rem 0; border-top: 1px solid var(--line);
  overflow-wrap: anywhere; }
th { color: var(--soft); font-weight: 500; border-top: 0; } .number { text-align: right; white-space: nowrap; }
.error { color: var(--error); } .warning { color: var(--warning); } .level { white-space: nowrap; }
td.id, td.detail { min-width: 11rem; } td.text { min-width: 16rem; }
details { border-top: 1px solid var(--line); padding: .6rem 0; } details:first-of-type { border-top: 0; }
summary { cursor: pointer; font-weight: 600; }
"""


def save_html(result: Result, path: Path) -> None:
    """Write the page whole or not at all."""
    with atomic_text_file(path) as file:
        file.writelines(f"{part}\n" for part in _page(result))


def _page(result: Result) -> Iterator[str]:
    yield '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>Check of {_shown(', '.join(result.sources))}</title>\n<style>{STYLE}</style>\n</head>\n<body>"
    yield f'<h1>Corpus check</h1>\n<p class="soft">{_shown(", ".join(result.sources))}</p>'
    yield f'<p class="card verdict{" bad" if result.would_hurt else ""}">{_shown(result.verdict)}</p>'
    yield from _facts(result.corpus)
    yield "<h2>Findings</h2>\n<section>"
    yield from _table(result)
    yield '</section>\n<h2>The corpus</h2>\n<div class="charts">'
    yield from _charts(result.corpus)
    yield "</div>"
    if result.found():
        yield f"<h2>The worst {WORST} of each finding</h2>\n<section>"
        for finding in result.found():
            yield from _worst(result.corpus, finding)
        yield "</section>"
    yield "</body>\n</html>"


def _facts(corpus: Corpus) -> Iterator[str]:
    durations_s_N, validation_N = corpus.manifest.durations_s_N, corpus.is_validation_N
    facts = {
        "utterances": f"{len(corpus):,}",
        "hours": f"{durations_s_N.sum() / 3600:,.2f}",
        "hours of validation": f"{durations_s_N[validation_N].sum() / 3600:,.2f}" if validation_N.any() else "",
        "speakers": f"{len(set(corpus.manifest.speakers) - {''}):,}",
        "median duration": f"{np.median(durations_s_N):.1f} s",
        "median rate": f"{np.median(corpus.characters_per_second):.1f} characters/s",
    }
    yield '<div class="facts">'
    yield from (f'<div><b>{value}</b><span class="soft">{name}</span></div>' for name, value in facts.items() if value)
    yield "</div>"


def _table(result: Result) -> Iterator[str]:
    if result.found():
        yield '<div class="scroll"><table>\n<tr><th>finding</th><th>level</th><th class="number">count</th>'
        yield '<th class="number">share</th><th>remedy</th></tr>'
        for finding in result.found():
            yield f'<tr><td>{_shown(finding.name)}</td><td class="level {finding.level}">{finding.level}</td>'
            yield f'<td class="number">{len(finding):,}</td><td class="number">{_shown(share(result, finding))}</td>'
            yield f"<td>{_shown(finding.remedy)}</td></tr>"
        yield "</table></div>"
    fine = ", ".join(finding.name for finding in result.findings if not finding)
    yield f'<p class="note">Checked, none found: {_shown(fine)}. {_shown(result.not_checked)}</p>'


def _charts(corpus: Corpus) -> Iterator[str]:
    charts = {
        "Duration (s)": histogram(corpus.manifest.durations_s_N, "s"),
        "Characters per second": histogram(corpus.characters_per_second, "characters/s"),
        "Hours per speaker": _speakers(corpus),
        "Alphabet (characters after normalisation)": _alphabet(corpus),
    }
    yield from (f'<div class="card"><h3>{title}</h3>\n{chart}\n</div>' for title, chart in charts.items())


def _speakers(corpus: Corpus) -> str:
    """A bar for each speaker, or how many have how much where the speakers are many."""
    hours: Counter[str] = Counter()
    for speaker, seconds in zip(corpus.manifest.speakers, corpus.manifest.durations_s_N.tolist(), strict=True):
        hours[printable(speaker) or "unknown"] += seconds / 3600
    if len(hours) > MAX_BARS:
        return histogram(np.array(list(hours.values())), "h", "speakers")
    names, values = zip(*hours.most_common(), strict=True)
    return bar_chart(names, values, "h")


def _alphabet(corpus: Corpus) -> str:
    """The most frequent characters; then those without a token, marked, and named below."""
    counts = Counter(c for text in corpus.manifest.texts for c in corpus.spec.vocabulary.normalise(text))
    unknown = corpus.unknown_counts()
    shown = dict(Counter({c: n for c, n in counts.items() if c not in unknown}).most_common(MAX_BARS - 8))
    shown |= dict(unknown.most_common(8))
    if not shown:
        return '<p class="note">There is no text.</p>'
    names = {c: "\u2423" if c == " " else printable(c) for c in shown}
    marked = frozenset(names[c] for c in shown if c in unknown)
    chart = bar_chart(list(names.values()), list(shown.values()), "times", marked)
    return chart + _unknown_note(unknown)


def _unknown_note(unknown: Counter[str]) -> str:
    if not unknown:
        return '<p class="note">Every character has a token.</p>'
    return f'<p class="note error">No token for {_shown(counted(unknown))}.</p>'


def _worst(corpus: Corpus, finding: Finding) -> Iterator[str]:
    manifest = corpus.manifest
    yield f'<details open>\n<summary class="{finding.level}">{_shown(finding.name)} ({len(finding):,})</summary>'
    yield '<div class="scroll"><table>\n<tr><th>utterance</th><th>what was found</th><th>text</th></tr>'
    for i in list(finding.details)[:WORST]:
        yield f'<tr><td class="id">{_shown(manifest.ids[i])}</td><td class="detail">{_shown(finding.details[i])}</td>'
        yield f'<td class="text">{_shown(manifest.texts[i])}</td></tr>'
    yield "</table></div>\n</details>"


def _shown(text: str) -> str:
    """Ids, texts and paths come from others: nothing in them may become markup."""
    return html.escape(printable(text))
