"""Result of a check, and its output as a table on the terminal and as JSON; html.py writes the page."""

import json
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from w2v_lightning.check.alphabet import Character
from w2v_lightning.check.findings import Corpus, Finding, Level
from w2v_lightning.errors import listed
from w2v_lightning.reporting.units import printable
from w2v_lightning.runtime.files import atomic_text_file
from w2v_lightning.text.characters import described

COLOURS = {Level.ERROR: "red", Level.WARNING: "yellow"}
MAX_LETTERS = 200  # of the vocabulary that could be built, on the terminal
MAX_CHARACTERS = 20  # listed in a message; a text in another script may have thousands without a token


@dataclass(frozen=True)
class Result:
    """Corpus that was checked, all findings (also those without utterances), and the extent of the check."""

    corpus: Corpus
    findings: list[Finding]
    sources: list[str]  # paths or URLs of the manifests
    is_decoded: bool

    def found(self, level: Level | None = None) -> list[Finding]:
        """Return the findings with utterances, errors first; of one level if it is given."""
        ordered = sorted(self.findings, key=lambda finding: finding.level is not Level.ERROR)
        return [finding for finding in ordered if finding and level in (None, finding.level)]

    @property
    def hours(self) -> float:
        """Duration of all utterances, in hours."""
        return float(self.corpus.manifest.durations_s_N.sum()) / 3600

    @property
    def would_hurt(self) -> bool:
        """True if there are errors, not only warnings."""
        return bool(self.found(Level.ERROR))

    @property
    def verdict(self) -> str:
        """Summary in one line."""
        num_bad, num_odd = (len(set().union(*(f.details for f in self.found(level)))) for level in Level)
        total = f"of {len(self.corpus):,} utterances ({self.hours:.2f} h)"
        if self.would_hurt:
            return f"{num_bad:,} {total} would hurt training; warnings for {num_odd:,}."
        return f"None {total} would hurt training; warnings for {num_odd:,}."

    @property
    def not_checked(self) -> str:
        """Note on faults that this run could not find; empty if every sample was decoded."""
        if self.is_decoded:
            return ""
        return "Only headers were read: --decode also finds damaged audio, NaN, clipping and silence."


def counted(characters: Counter[str]) -> str:
    """Return characters with their code points and counts, the most frequent first."""
    descriptions = [f"{printable(c)} (U+{ord(c):04X}) {n:,} times" for c, n in characters.most_common(MAX_CHARACTERS)]
    more = f" and {len(characters) - MAX_CHARACTERS:,} more" if len(characters) > MAX_CHARACTERS else ""
    return ", ".join(descriptions) + more


def print_result(result: Result, console: Console) -> None:
    """Print a table of the findings, the names of those without utterances, and the verdict."""
    if result.found():
        console.print(_table(result))
    if unknown := result.corpus.unknown_counts():
        console.print(Text(f"Characters without a token: {counted(unknown)}."))
    if lines := _alphabet(result.corpus):
        console.print(Text(lines))
    console.print(Text(f"Checked, none found: {', '.join(f.name for f in result.findings if not f)}."))
    if result.not_checked:
        console.print(Text(result.not_checked))
    console.print(Text(result.verdict, style="bold red" if result.would_hurt else "bold green"))


def _alphabet(corpus: Corpus) -> str:
    """Describe the vocabulary that `build` would make, with the characters to look at and an example of each."""
    alphabet = corpus.alphabet
    if not alphabet.characters:
        return ""
    letters = sorted(each.character for each in alphabet.characters)
    rest = f" and {len(letters) - MAX_LETTERS:,} more" if len(letters) > MAX_LETTERS else ""
    language = f", with the letter case of the language {alphabet.language}" if alphabet.language else ""
    lines = [
        f"model.vocabulary=build would make {len(letters):,} labels{language}:",
        f"  {printable(' '.join(letters[:MAX_LETTERS]))}{rest}",
        *(f"  {_described(corpus, each)}" for each in alphabet.odd[:MAX_CHARACTERS]),
    ]
    if len(alphabet.odd) > MAX_CHARACTERS:
        lines.append(f"  and {len(alphabet.odd) - MAX_CHARACTERS:,} more to look at; --json and --report list all")
    return "\n".join(lines)


def _described(corpus: Corpus, each: Character) -> str:
    times = "once" if each.count == 1 else f"{each.count:,} times"
    return f"{described(each.character)}: {each.remark}, {times}, in {printable(corpus.manifest.ids[each.example])}"


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
    """Return the first ids, the worst one with its detail."""
    worst, *others = [corpus.manifest.ids[i] for i in finding.details]
    detail = next(iter(finding.details.values()))
    return printable(listed([f"{worst} ({detail})" if detail else worst, *others]))


def share(result: Result, finding: Finding) -> str:
    """Return the share of all utterances, in per cent."""
    per_cent = 100 * len(finding) / len(result.corpus)
    return f"{per_cent:.1f} %" if per_cent >= 0.1 else "< 0.1 %"


def save_json(result: Result, path: Path) -> None:
    """Write all findings with all ids as one JSON object, completely or not at all."""
    content = {
        "manifests": result.sources,
        "utterances": len(result.corpus),
        "hours": result.hours,
        "decoded": result.is_decoded,
        "would_hurt_training": result.would_hurt,
        "unknown_characters": dict(result.corpus.unknown_counts().most_common()),
        "built_vocabulary": [
            {
                "character": each.character,
                "code_point": f"U+{ord(each.character):04X}",
                "name": unicodedata.name(each.character, ""),
                "count": each.count,
                "utterances": each.num_utterances,
                "example": result.corpus.manifest.ids[each.example],
                "remark": each.remark,
            }
            for each in result.corpus.alphabet.characters
        ],
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
        json.dump(content, file, indent=1)  # as ASCII, because a text may contain a lone surrogate


def _rows(corpus: Corpus, finding: Finding) -> Iterator[dict[str, str]]:
    for i, detail in finding.details.items():
        yield {"id": corpus.manifest.ids[i], "audio": str(corpus.manifest.audio(i)), "detail": detail}
