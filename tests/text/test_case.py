"""Letter case by language and script, held against all of Unicode."""

import sys
import unicodedata
from collections import defaultdict

import pytest

from w2v_lightning.text.case import folded, looks_turkic, with_final_sigmas

EVERYTHING = [chr(code) for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code)) != "Cs"]
SIGMAS = {"\u03a3", "\u03c3", "\u03c2"}
TURKISH = "Il\u0131k \u0130zmir, \u0131s\u0131rgan isim, \u015fi\u015fe"


@pytest.mark.parametrize("language", [None, "tr"])
@pytest.mark.parametrize("case", ["upper", "lower"])
def test_no_two_letters_become_one(case, language):
    merged = defaultdict(set)
    for character in EVERYTHING:
        result = folded(character, case, language)
        assert len(result) == 1
        assert folded(result, case, language) == result
        merged[result].add(character)
    for result, characters in merged.items():
        if len(characters) == 1 or characters == SIGMAS or (language and result in "i\u0130\u0131I"):
            continue
        assert len({character.lower() for character in characters}) == 1, characters


@pytest.mark.parametrize(
    ("character", "case", "language", "expected"),
    [
        ("\u00df", "upper", None, "\u00df"),  # sharp s, not SS
        ("\u1e9e", "upper", None, "\u00df"),
        ("\u0131", "upper", None, "\u0131"),
        ("\u0131", "upper", "tr-TR", "I"),
        ("i", "upper", "az_Latn", "\u0130"),
        ("I", "lower", "tr", "\u0131"),
        ("\u0130", "lower", "tr", "i"),
        ("\u0130", "lower", None, "\u0130"),  # Python makes two characters
        ("i", "upper", "de", "I"),
        ("\u10d0", "upper", None, "\u10d0"),  # Georgian without capitals
        ("\u1c90", "upper", None, "\u10d0"),
        ("\u13a0", "lower", None, "\u13a0"),  # Cherokee without small letters
        ("\u01c5", "upper", None, "\u01c4"),  # titlecase digraph
        ("\u03c2", "upper", None, "\u03a3"),
        ("\u0587", "upper", None, "\u0587"),  # Armenian ligature
        ("\u00e9", "upper", None, "\u00c9"),
        ("\u0451", "upper", None, "\u0401"),
    ],
)
def test_letter_case_of_a_character(character, case, language, expected):
    assert folded(character, case, language) == expected


def test_capital_sigma_becomes_final_at_the_end_of_a_word():
    assert (
        with_final_sigmas("\u039a\u039f\u03a3\u039c\u039f\u03a3 \u03a3")
        == "\u039a\u039f\u03c3\u039c\u039f\u03c2 \u03c3"
    )


def test_turkish_is_recognised_by_its_own_letters_and_not_by_a_name():
    assert looks_turkic([TURKISH])
    assert not looks_turkic(["K\u0131l\u0131\u00e7 is his name in this sentence, " + "which is English" * 20])
    assert not looks_turkic([])
