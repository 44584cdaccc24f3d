"""Characters that a text may hold and no label should: invisible ones, unusual spaces, typographic apostrophes."""

import re
import unicodedata

# Word processors and web pages use these instead of the plain apostrophe; the last two are what is left of them where
# Windows-1252 was read as Latin-1.
APOSTROPHES = dict.fromkeys("\u2018\u2019\u02bc\x91\x92", "'")
BLANK_SYMBOL = "\u2800"  # Braille without dots, shown as a space; Unicode does not count it as one

# Zero width non-joiner and joiner. They belong to the spelling of Persian, Sinhala, Malayalam and others, between two
# letters of a joining script or beside a virama; elsewhere they are left over from an editor.
NON_JOINER, JOINER = "\u200c", "\u200d"
JOINERS = NON_JOINER + JOINER
VIRAMA_CLASS = 9  # canonical combining class of the marks that join Indic consonants
_JOINING_LETTERS = re.compile(
    r"[\u0620-\u065f\u066e-\u06d3\u06d5-\u06ff\u0700-\u08ff\u1800-\u18af\ufb50-\ufdff\ufe70-\ufefc]"
)
_JOINERS = re.compile(f"[{JOINERS}]+")

# Characters of the category Cf that are visible: signs that enclose a number or a year, and end a verse.
_VISIBLE_FORMATS = frozenset("\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd")
# Characters of other categories that are invisible by themselves (Default_Ignorable_Code_Point of Unicode).
_INVISIBLE_OTHERS = re.compile(
    r"[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)


def is_invisible(character: str) -> bool:
    """Return True for what has no shape of its own: control and format characters, variation selectors, fillers."""
    if character.isspace() or character in _VISIBLE_FORMATS:
        return False
    return unicodedata.category(character) in ("Cc", "Cf") or bool(_INVISIBLE_OTHERS.match(character))


def without_stray_joiners(text: str) -> str:
    """Remove zero width joiners and non-joiners where they change no spelling."""
    if NON_JOINER not in text and JOINER not in text:
        return text
    return _JOINERS.sub(_kept_joiner, text)


def _kept_joiner(match: re.Match[str]) -> str:
    text, start, end = match.string, match.start(), match.end()
    before, after = text[max(0, start - 1) : start], text[end : end + 1]
    is_indic = any(character and unicodedata.combining(character) == VIRAMA_CLASS for character in (before, after))
    is_between_letters = all(_JOINING_LETTERS.match(character) for character in (before, after))
    return match[0][0] if is_indic or is_between_letters else ""


def is_mark(character: str) -> bool:
    """Return True for what may combine with the character before it: marks, and the vowels and finals of Hangul."""
    return unicodedata.category(character).startswith("M") or "\u1160" <= character <= "\u11ff"


def depends_on_neighbours(character: str) -> bool:
    """Return True if what a text is normalised to at this character may depend on the ones beside it."""
    return is_mark(character) or character in "Σ" + JOINERS


def script(character: str) -> str:
    """Return the script of a letter, as a word such as LATIN; "" for other characters, and letters of several scripts.

    Chinese, Japanese and Korean characters are one script here, because texts mix them.
    """
    if not character.isalpha() or unicodedata.category(character) == "Lm":
        return ""
    word = unicodedata.name(character, "").partition(" ")[0].partition("-")[0]
    return {"HIRAGANA": "CJK", "KATAKANA": "CJK", "HANGUL": "CJK", "BOPOMOFO": "CJK", "IDEOGRAPHIC": "CJK"}.get(
        word, word
    )


def described(character: str) -> str:
    """Return a character as a message shows it, with its code point and name: A (U+0041 LATIN CAPITAL LETTER A)."""
    name = unicodedata.name(character, "")
    shape = "" if not character.isprintable() or is_invisible(character) else f"{_on_circle(character)} "
    return f"{shape}(U+{ord(character):04X}{' ' if name else ''}{name})"


def _on_circle(character: str) -> str:
    """Return a combining mark on a dotted circle, so that it does not join what stands before it."""
    return f"\u25cc{character}" if unicodedata.category(character).startswith("M") else character
