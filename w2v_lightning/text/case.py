"""Letter case by language and script: two letters never become one, and no letter is made that nobody writes.

Python's `upper` and `lower` do both: they turn the German sharp s into SS, the dotless i of Turkish into I, its dotted
capital into i and a combining dot, and Georgian letters into capitals that no text has. Here, a letter changes case if
it has one counterpart, which leads back to it.
"""

from collections.abc import Iterable
from typing import Literal

Case = Literal["upper", "lower", "keep"]

DOTTED_CAPITAL, DOTLESS_SMALL = "\u0130", "\u0131"
TURKIC = frozenset({"az", "aze", "azj", "crh", "gag", "tr", "tur"})  # languages that have both, as the partners of i, I
LITHUANIAN = frozenset({"lit", "lt"})  # writes a dot below the accent of a small i
_TURKIC_CAPITALS = {"i": DOTTED_CAPITAL, DOTLESS_SMALL: "I"}
_TURKIC_SMALL_LETTERS = {capital: small for small, capital in _TURKIC_CAPITALS.items()}
_TURKIC_LETTERS = _TURKIC_CAPITALS.keys() | _TURKIC_SMALL_LETTERS.keys()
MIN_TURKIC_SHARE = 0.05  # of the two among all i: a third in Turkish, a quarter in Azeri, next to none elsewhere

FINAL_SIGMA, CAPITAL_SIGMA = "\u03c2", "\u03a3"
GEORGIAN = ("\u10d0", "\u10ff")  # written without capitals; Unicode has some for headings since 2018
CHEROKEE = ("\u13a0", "\u13f5")  # usually written without the small letters, which Unicode has since 2015


def primary(language: str | None) -> str:
    """Return the language of a tag such as tr-TR or az_Latn, in lower case; "" for None."""
    return (language or "").replace("_", "-").partition("-")[0].lower()


def folded(character: str, case: Case, language: str | None = None) -> str:
    """Return a character in upper or lower case; itself if it has no counterpart of its own there.

    A final sigma becomes a sigma in upper case; `with_final_sigmas` brings it back in lower case.
    """
    if case == "keep":
        return character
    if primary(language) in TURKIC and character in _TURKIC_LETTERS:
        return (_TURKIC_CAPITALS if case == "upper" else _TURKIC_SMALL_LETTERS).get(character, character)
    if CHEROKEE[0] <= character.upper() <= CHEROKEE[1]:
        return character.upper()
    small = _small(character)
    capital = small.upper()
    is_pair = len(capital) == 1 and (capital.lower() == small or small == FINAL_SIGMA)
    return capital if case == "upper" and is_pair and not _is_georgian(small) else small


def case_of(character: str) -> Case:
    """Return the case that a letter is in; "keep" for what is in neither."""
    capital, small = folded(character, "upper"), folded(character, "lower")
    if capital == small:
        return "keep"
    return "upper" if character == capital else "lower" if character == small else "keep"


def _small(character: str) -> str:
    """Return the small letter of a capital or titlecase letter, if that is the one that leads back to it."""
    small = character.lower()
    if len(small) > 1:
        return character  # the dotted capital I, without a language
    leads_back = character in (small.upper(), small.title()) or len(small.upper()) > 1  # or it is a capital sharp s
    return small if leads_back else character


def _is_georgian(character: str) -> bool:
    return GEORGIAN[0] <= character <= GEORGIAN[1]


def with_final_sigmas(text: str) -> str:
    """Return a text with the small sigmas of its capital ones, by their place in the word; other letters are kept."""
    if CAPITAL_SIGMA not in text:
        return text
    in_lower_case = text.replace(DOTTED_CAPITAL, "I").lower()  # as long as the text: nothing else becomes longer
    pairs = zip(text, in_lower_case, strict=True)
    return "".join(small if given == CAPITAL_SIGMA else given for given, small in pairs)


def lowered(text: str, language: str | None) -> str:
    """Return a text in Python's lower case, after the language's own pairs of letters."""
    if primary(language) in TURKIC:
        text = text.translate({ord(capital): small for capital, small in _TURKIC_SMALL_LETTERS.items()})
    return text.lower()


def looks_turkic(texts: Iterable[str]) -> bool:
    """Return True if the texts use the dotless i, or the dotted capital I, about as often as Turkish or Azeri does."""
    num_turkic = num_plain = 0
    for text in texts:
        num_plain += text.count("i") + text.count("I")
        if not text.isascii():
            num_turkic += text.count(DOTLESS_SMALL) + text.count(DOTTED_CAPITAL)
    return num_turkic > MIN_TURKIC_SHARE * (num_turkic + num_plain)
