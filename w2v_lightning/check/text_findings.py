"""Findings in the writing of transcripts: what normalisation repairs, and what would become odd labels."""

import unicodedata
from collections.abc import Callable, Iterable

from w2v_lightning.check.alphabet import kind
from w2v_lightning.check.findings import Corpus, Finding, Level
from w2v_lightning.text.characters import described, is_invisible, script

MAX_NAMED = 5  # characters in the detail of an utterance


def in_texts(corpus: Corpus) -> list[Finding]:
    """Return every finding in the writing of texts, also those without utterances."""
    return [
        other_form(corpus),
        invisible(corpus),
        look_alikes(corpus),
        digits(corpus),
        brackets(corpus),
        other_script(corpus),
    ]


def other_form(corpus: Corpus) -> Finding:
    """Return utterances whose letters are in another normal form than NFC, as in file names of macOS."""
    details = {
        i: _names(set(text) - set(unicodedata.normalize("NFC", text)))
        for i, text in enumerate(corpus.manifest.texts)
        if not text.isascii() and not unicodedata.is_normalized("NFC", text)
    }
    remedy = "None needed here: texts are normalised. Other tools see two spellings of one letter."
    return Finding("letters not in NFC", Level.WARNING, remedy, details)


def invisible(corpus: Corpus) -> Finding:
    remedy = "None needed here: they are left out, except joiners that belong to the spelling, as in Persian."
    return _with_characters(corpus, "invisible characters", remedy, is_invisible)


def look_alikes(corpus: Corpus) -> Finding:
    """Return utterances with an apostrophe, quotation mark or hyphen that is another one elsewhere."""
    remedy = "Make them one with data.text.replace, or leave them out with data.text.drop."
    kind_of = corpus.alphabet.look_alikes
    return _with_characters(
        corpus, "several kinds of apostrophe, quotation mark or hyphen", remedy, kind_of.__contains__
    )


def digits(corpus: Corpus) -> Finding:
    remedy = "Spell them out as they are spoken: 2 may be two, second or February."
    return _with_characters(corpus, "digits", remedy, lambda character: kind(character) == "digit")


def brackets(corpus: Corpus) -> Finding:
    remedy = "Remove notes such as [laughter], and keep what is spoken: data.text.drop removes the brackets alone."
    return _with_characters(corpus, "brackets", remedy, lambda character: kind(character) == "bracket")


def other_script(corpus: Corpus) -> Finding:
    """Return utterances with letters of a script that is rare in the corpus, or with words in two scripts."""
    foreign = corpus.alphabet.foreign
    written = {c for c in set().union(*corpus.manifest.texts) if script(c)}
    has_several = len({script(c) for c in written}) > 1
    normalise = corpus.alphabet.normalise
    details = {}
    for i, text in enumerate(corpus.manifest.texts if has_several else ()):
        if letters := foreign.intersection(normalise(text)) or _mixed(text):
            details[i] = _names(letters)
    remedy = "Correct letters that only look right, such as a Cyrillic A in Latin text, with data.text.replace."
    return Finding("letters of another script", Level.WARNING, remedy, details)


def _mixed(text: str) -> set[str]:
    """Return the letters of the rarer script in words that have letters of several."""
    if text.isascii():
        return set()
    letters: set[str] = set()
    for word in text.split():
        scripts = [script(c) for c in word]
        if len(known := set(scripts) - {""}) > 1:
            commonest = max(sorted(known), key=scripts.count)
            letters |= {c for c, its_script in zip(word, scripts, strict=True) if its_script not in ("", commonest)}
    return letters


def _with_characters(corpus: Corpus, name: str, remedy: str, is_wanted: Callable[[str], bool]) -> Finding:
    texts = corpus.manifest.texts
    wanted = {character for character in set().union(*texts) if is_wanted(character)}
    details = {
        i: _names(present) for i, text in enumerate(texts if wanted else ()) if (present := wanted.intersection(text))
    }
    return Finding(name, Level.WARNING, remedy, details)


def _names(characters: Iterable[str]) -> str:
    names = [described(character) for character in sorted(set(characters))]
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + more
