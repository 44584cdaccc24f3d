"""The result of a check, and its three forms: a table on the terminal, JSON, and (in html.py) a page."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from w2v_lightning.check.findings import Corpus, Finding, Level
from w2v_lightning.data.checks import named
from w2v_lightning.errors import listed
from w2v_lightning.reporting.units import printable
from w2v_lightning.runtime.files import atomic_text_file

COLOURS = {Level.ERROR: "red", Level.WARNING: "yellow"}
MAX_CHARACTERS = 20  # named without a token; a text in another script lacks thousands


@dataclass(frozen=True)
class Result:
    """What was checked, with which findings (those without utterances too), and what was left out."""

    corpus: Corpus
    findings: list[Finding]
    sources: list[str]  # the manifests
    is_decoded: bool

    def found(self, level: Level | None = None) -> list[Finding]:
        """Findings with utterances, errors first."""
        ordered = sorted(self.findings, key=lambda finding: finding.level is not Level.ERROR)
        return [finding for finding in ordered if finding and level in (None, finding.level)]

    @property
    def hours(self) -> float:
        return float(self.corpus.manifest.durations_s_N.sum()) / 3600

    @property
    def would_hurt(self) -> bool:
        return bool(self.found(Level.ERROR))

    @property
    def verdict(self) -> str:
        """One line."""
        bad, odd = (len(set().union(*(f.details for f in self.found(level)))) for level in Level)
        of = f"of {len(self.corpus):,} utterances ({self.hours:.2f} h)"
        if self.would_hurt:
            return f"{bad:,} {of} would hurt training; warnings for {odd:,}."
        return f"Nothing {of} would hurt training; warnings for {odd:,}."

    @property
    def not_checked(self) -> str:
        """What this run could not see; empty where it saw everything."""
        if self.is_decoded:
            return ""
        return "Only headers were read: --decode also finds damaged audio, NaN, clipping and silence."


def counted(characters: Counter[str]) -> str:
    """Characters with their code points and counts, the most frequent first."""
    named = [f"{printable(c)} (U+{ord(c):04X}) {n:,} times" for c, n in characters.most_common(MAX_CHARACTERS)]
    more = f" and {len(characters) - MAX_CHARACTERS:,} more" if len(characters) > MAX_CHARACTERS else ""
    return ", ".join(named) + more


def print_result(result: Result, console: Console) -> None:
    """A table of the findings, what was fine, and the verdict."""
    if result.found():
        console.print(_table(result))
    if unknown := result.corpus.unknown_counts():
        console.print(Text(f"Characters without a token: {counted(unknown)}."))
    console.print(Text(f"Checked, none found: {', '.join(f.name for f in result.findings if not f)}."))
    if result.not_checked:
        console.print(Text(result.not_checked))
    console.print(Text(result.verdict, style="bold red" if result.would_hurt else "bold green"))


def _table(result: Result) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for name in ("finding", "level", "count", "share", "examples", "remedy"):
        right = name in ("count", "share")
        table.add_column(name, justify="right" if right else "left", no_wrap=right or name == "level", overflow="fold")
    for finding in result.found():
        level = Text(finding.level, style=COLOURS[finding.level])
        cells = (f"{len(finding):,}", share(result, finding), _examples(result.corpus, finding), finding.remedy)
        table.add_row(finding.name, level, *map(Text, cells))
    return table


def _examples(corpus: Corpus, finding: Finding) -> str:
    """The worst with what is wrong, the next by their ids."""
    first, *others = finding.details
    names = [named(corpus.manifest, first, finding.details[first]), *(corpus.manifest.ids[i] for i in others)]
    return printable(listed(names))


def share(result: Result, finding: Finding) -> str:
    """Per cent of all utterances."""
    per_cent = 100 * len(finding) / len(result.corpus)
    return f"{per_cent:.1f} %" if per_cent >= 0.1 else "< 0.1 %"


def save_json(result: Result, path: Path) -> None:
    """Everything that was found, with all ids, as one JSON object; written whole or not at all."""
    content = {
        "manifests": result.sources,
        "utterances": len(result.corpus),
        "hours": result.hours,
        "decoded": result.is_decoded,
        "would_hurt_training": result.would_hurt,
        "unknown_characters": dict(result.corpus.unknown_counts().most_common()),
        "findings": [
            {
                "name": finding.name,
                "level": finding.level,
                "count": len(finding),
                "remedy": finding.remedy,
                "utterances": list(_rows(result.corpus, finding)),
            }
            for finding in result.findings
        ],
    }
    with atomic_text_file(path) as file:
        json.dump(content, file, indent=1)  # ASCII: half a surrogate pair in a text must not stop the report


def _rows(corpus: Corpus, finding: Finding) -> Iterator[dict[str, str]]:
    for i, detail in finding.details.items():
        yield {"id": corpus.manifest.ids[i], "audio": str(corpus.manifest.audio(i)), "detail": detail}
