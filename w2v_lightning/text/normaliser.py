"""Application of the rules for the writing of transcripts, in the letters of a vocabulary."""

import re
import unicodedata
from collections.abc import Callable

from w2v_lightning.text import case as letter_case
from w2v_lightning.text.case import LITHUANIAN, TURKIC, Case
from w2v_lightning.text.characters import (
    APOSTROPHES,
    BLANK_SYMBOL,
    JOINERS,
    is_invisible,
    is_mark,
    without_stray_joiners,
)
from w2v_lightning.text.rules import TextRules

_DOT_ABOVE = re.compile("(?<=[ij\u012f])\u0307")
_OTHER_CASES: tuple[Case, ...] = ("lower", "upper")
_OF_ASCII: dict[Case, Callable[[str], str]] = {"upper": str.upper, "lower": str.lower, "keep": str}


class Normaliser:
    """Function that writes a text by the rules.

    A character that is not among `letters` is written as its parts (é as e and an accent) or, at last, in Python's case
    (ß as SS), where these are letters: so old and foreign models, whatever they were made with, get what they know.

    Args:
        rules: the rules.
        case: letter case, in place of that of the rules, which may be "auto".
        letters: characters of all tokens, in this case; None: a vocabulary is to be built.
        space: text between words.
    """

    def __init__(self, rules: TextRules, case: Case, letters: frozenset[str] | None = None, space: str = " ") -> None:
        language = letter_case.primary(rules.language)
        self._form, self._space = rules.normal_form, space
        self._table = _Table(rules, case, letters or frozenset())
        has_parts = letters and (rules.normal_form in ("NFD", "NFKD") or any(map(is_mark, letters)))
        self._parts = _Parts(letters, rules.normal_form) if letters and has_parts else None
        self._compositions = _compositions(letters or frozenset())
        self._keeps_joiners = not rules.changed.isdisjoint(JOINERS)
        self._is_lower, self._drops_dots = case == "lower", language in TURKIC | LITHUANIAN
        is_plain = language not in TURKIC and not any(map(str.isascii, rules.changed))
        self._of_ascii = _OF_ASCII[case] if is_plain else None

    def __call__(self, text: str) -> str:
        """Return the text in the normal form and case, without invisible characters and with single spaces."""
        if self._of_ascii and text.isascii() and text.isprintable():  # most texts of English: ten times as fast
            return self._space.join(self._of_ascii(text).split())
        text = unicodedata.normalize(self._form, text)
        if not self._keeps_joiners:
            text = without_stray_joiners(text)
        if self._drops_dots:  # what lower() makes of a dotted capital I, and the dot of an accented i in Lithuanian
            text = _DOT_ABOVE.sub("", text)
        if self._is_lower:
            text = letter_case.with_final_sigmas(text)
        text = unicodedata.normalize(self._form, text.translate(self._table))
        if self._parts is not None:
            text = unicodedata.normalize("NFC", text).translate(self._parts)
        for parts, letter in self._compositions.items():
            text = text.replace(parts, letter)
        return self._space.join(text.split())


class _Table(dict[int, str]):
    """Table for `str.translate`: replacements, and characters in the letter case; filled as characters occur."""

    def __init__(self, rules: TextRules, case: Case, letters: frozenset[str]) -> None:
        super().__init__()
        self.case, self.letters, self.language = case, letters, rules.language
        self.replaced = {c: plain for c, plain in APOSTROPHES.items() if c not in letters} | {BLANK_SYMBOL: " "}
        self.replaced |= rules.replace | dict.fromkeys(rules.drop, "")

    def __missing__(self, code: int) -> str:
        character = chr(code)
        is_kept = character in JOINERS or character in self.letters or not is_invisible(character)
        text = self._replacement(character)
        if text is None:
            text = character if is_kept else ""
        self[code] = result = "".join(map(self._in_case, text))
        return result

    def _replacement(self, character: str) -> str | None:
        """Return what replaces a character, or the same letter in the other case; None if nothing does."""
        others = () if self.case == "keep" else _OTHER_CASES
        spellings = (character, *(letter_case.folded(character, other, self.language) for other in others))
        return next((self.replaced[spelling] for spelling in spellings if spelling in self.replaced), None)

    def _in_case(self, character: str) -> str:
        result = letter_case.folded(character, self.case, self.language)
        if self.case == "keep" or not self.letters or result in self.letters:
            return result
        pythons = character.upper() if self.case == "upper" else character.lower()
        return pythons if self.letters.issuperset(pythons) else result


class _Parts(dict[int, str]):
    """Table for `str.translate` that takes apart composed characters without a token whose parts have one."""

    def __init__(self, letters: frozenset[str], form: str) -> None:
        super().__init__()
        self.letters, self.prefers_parts = letters, form in ("NFD", "NFKD")

    def __missing__(self, code: int) -> str:
        self[code] = result = self._in_letters(chr(code)) or chr(code)
        return result

    def _in_letters(self, character: str) -> str:
        """Return the character in as few letters as possible; "" if it cannot be written in them."""
        if character in self.letters and not self.prefers_parts:
            return character
        parts = list(map(self._in_letters, _canonical_parts(character)))
        return "".join(parts) if parts and all(parts) else character if character in self.letters else ""


def _canonical_parts(character: str) -> list[str]:
    """Return the two parts of a composed character, or those of a Hangul syllable; [] if it has none."""
    decomposition = unicodedata.decomposition(character)
    if decomposition:  # "<...>" marks compatibility decompositions, which change the letter
        return [] if decomposition.startswith("<") else [chr(int(part, 16)) for part in decomposition.split()]
    parts = unicodedata.normalize("NFD", character)
    return list(parts) if parts != character else []


def _compositions(letters: frozenset[str]) -> dict[str, str]:
    """Return the letters that no normal form has, such as the Devanagari QA (U+0958), by what NFC makes of them."""
    composed = {unicodedata.normalize("NFC", letter): letter for letter in letters}
    return {parts: letter for parts, letter in composed.items() if parts != letter and parts not in letters}
