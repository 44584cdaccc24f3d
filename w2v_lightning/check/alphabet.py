"""Alphabet of a corpus: the labels that `model.vocabulary=build` would make, and which of them look odd."""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from w2v_lightning.errors import InputError
from w2v_lightning.text.characters import script
from w2v_lightning.text.rules import TextRules
from w2v_lightning.text.vocabulary import SPECIAL_TOKENS, Vocabulary

RARE = "rare"
RARE_SHARE = 1e-4  # of utterances; a label that is rarer is hardly learnt
ALWAYS_RARE = 2  # utterances, however small the corpus
FOREIGN_SHARE = 0.05  # of letters; a script that is more frequent belongs to the language

# Characters that look alike, or do the same; a corpus should have one of each group.
LOOK_ALIKES = {
    "apostrophe": "'`\u00b4\u02b9\u02bb\u02bc\u02bd\u2018\u2019\u201b\u2032\uff07",
    "quotation mark": '"\u00ab\u00bb\u201c\u201d\u201e\u201f\u2033\uff02',
    "hyphen": "-\u2010\u2011\u2012\u2013\u2014\u2015\u2212\uff0d",
}


@dataclass(frozen=True)
class Character:
    """Character of the alphabet."""

    character: str
    count: int
    num_utterances: int
    example: int  # position of the first utterance that has it
    remark: str  # what is odd about it; "" if nothing is


@dataclass(frozen=True)
class Alphabet:
    """Characters of normalised transcripts.

    Args:
        texts: the transcripts.
        rules: rules for their writing; None: the default ones.
    """

    texts: Sequence[str]
    rules: TextRules | None = None

    @cached_property
    def characters(self) -> list[Character]:
        """Characters that would be tokens, the most frequent first."""
        return [
            Character(c, n, self._num_utterances[c], self._first[c], self._remark(c))
            for c, n in self._counts.most_common()
        ]

    @cached_property
    def odd(self) -> list[Character]:
        """Characters with a remark: the rarest first, those that are only rare at the end."""
        return sorted((c for c in reversed(self.characters) if c.remark), key=lambda each: each.remark == RARE)

    @cached_property
    def language(self) -> str | None:
        """Language whose letter case is used: that of the rules, or the one that `build` recognises."""
        return self._vocabulary.rules.language if self._vocabulary and self._vocabulary.rules else None

    def normalise(self, text: str) -> str:
        """Return a text as the built vocabulary would have it."""
        return self._vocabulary.normalise(text) if self._vocabulary else ""

    @cached_property
    def foreign(self) -> frozenset[str]:
        """Letters of scripts that few letters of the corpus belong to."""
        count_of: Counter[str] = Counter()
        for character, count in self._counts.items():
            count_of[script(character)] += count
        del count_of[""]
        total = count_of.total()
        return frozenset(c for c in self._counts if script(c) and count_of[script(c)] < FOREIGN_SHARE * total)

    @cached_property
    def look_alikes(self) -> dict[str, str]:
        """Kind of the characters that stand for what another, more frequent, character also stands for."""
        kind_of: dict[str, str] = {}
        for kind, members in LOOK_ALIKES.items():
            present = sorted(filter(self._counts.__contains__, members), key=lambda c: -self._counts[c])
            kind_of |= dict.fromkeys(present[1:], kind)
        return kind_of

    @cached_property
    def _vocabulary(self) -> Vocabulary | None:
        try:
            return Vocabulary.build(self.texts, rules=self.rules)
        except InputError:  # no characters
            return None

    @cached_property
    def _occurrences(self) -> tuple[Counter[str], Counter[str], dict[str, int]]:
        counts: Counter[str] = Counter()
        num_utterances: Counter[str] = Counter()
        first: dict[str, int] = {}
        tokens = set(self._vocabulary.tokens).difference(SPECIAL_TOKENS) if self._vocabulary else set()
        for i, text in enumerate(self.texts):
            normal = self.normalise(text)
            counts.update(normal)
            present = tokens.intersection(normal)
            num_utterances.update(present)
            for character in present - first.keys():
                first[character] = i
        return Counter({c: n for c, n in counts.items() if c in tokens}), num_utterances, first

    @property
    def _counts(self) -> Counter[str]:
        return self._occurrences[0]

    @property
    def _num_utterances(self) -> Counter[str]:
        return self._occurrences[1]

    @property
    def _first(self) -> dict[str, int]:
        return self._occurrences[2]

    def _remark(self, character: str) -> str:
        if character in self.foreign:
            return f"letter of another script ({script(character).title()})"
        if character in self.look_alikes:
            return f"one of several kinds of {self.look_alikes[character]}"
        is_rare = self._num_utterances[character] <= max(ALWAYS_RARE, RARE_SHARE * len(self.texts))
        return kind(character) or (RARE if is_rare else "")


def kind(character: str) -> str:
    """Return what a character is if it is not a letter, a mark or an apostrophe: digit, bracket ..., else ""."""
    category = unicodedata.category(character)
    if character.isdigit():
        return "digit"
    if category in ("Ps", "Pe") or character in "<>":
        return "bracket"
    if character in "'-" or category[0] in "LMCN":
        return "" if category not in ("Cn", "Co", "Cs") else "character without a meaning in Unicode"
    return "replacement of an undecodable character" if character == "\ufffd" else "punctuation or symbol"
