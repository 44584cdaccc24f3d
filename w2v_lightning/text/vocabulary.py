"""Conversion between transcripts and label ids: vocabulary, normalisation, encoding, greedy CTC decoding.

The default vocabulary is that of facebook/wav2vec2-base-960h and its siblings: 32 tokens, with ``<pad>`` (id 0) as the
CTC blank and ``|`` as the space between words.
"""

import logging
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

from w2v_lightning.errors import InputError
from w2v_lightning.text import case as letter_case
from w2v_lightning.text import tokenizer
from w2v_lightning.text.case import Case
from w2v_lightning.text.characters import is_mark
from w2v_lightning.text.normaliser import Normaliser
from w2v_lightning.text.rules import TextRules

log = logging.getLogger(__name__)

BLANK = "<pad>"
UNKNOWN, BEGIN, END = "<unk>", "<s>", "</s>"
WORD_DELIMITER = "|"
SPECIAL_TOKENS = (BLANK, BEGIN, END, UNKNOWN, WORD_DELIMITER)
LIBRISPEECH_TOKENS = (*SPECIAL_TOKENS, *"ETAONIHSRDLUMWCFGYPBVK'XJQZ")

# Values of model.vocabulary that build one from the training texts, with the `mixed_case` of Vocabulary.build.
BUILT_VOCABULARIES = {"build": False, "build-mixed": True}


@dataclass(frozen=True)
class Vocabulary:
    """Output tokens of a CTC model. The id of a token is its position; "" is an output without a token.

    Args:
        tokens: characters, multi-character tokens, or phonemes.
        blank: the CTC blank.
        word_delimiter: the token for the space between words; "" if there is none, also for `unknown`, `begin`, `end`.
        unknown, begin, end: special tokens, never encoded and dropped when decoding.
        space: text of the word delimiter; "" if words are not separated.
        lowercase: whether texts are in lower case, though the tokens are in upper case.
        separator: text between tokens: a space between phonemes.
        rules: rules for the writing of texts; None: none are known, and the defaults apply.
    """

    tokens: tuple[str, ...] = LIBRISPEECH_TOKENS
    blank: str = BLANK
    word_delimiter: str = WORD_DELIMITER
    unknown: str = UNKNOWN
    begin: str = BEGIN
    end: str = END
    space: str = " "
    lowercase: bool = False
    separator: str = ""
    rules: TextRules | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if self.blank not in self.tokens:
            raise InputError(f"The vocabulary has no token {self.blank!r} to serve as CTC blank; add it to vocab.json.")
        for role in ("word_delimiter", "unknown", "begin", "end"):
            if getattr(self, role) not in self.tokens:
                object.__setattr__(self, role, "")

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def blank_id(self) -> int:
        """Id of the CTC blank."""
        return self.tokens.index(self.blank)

    @property
    def silent(self) -> frozenset[str]:
        """Tokens that stand for no text."""
        return frozenset((self.blank, self.unknown, self.begin, self.end, ""))

    @cached_property
    def _id_of_piece(self) -> dict[str, int]:
        not_text = self.silent | {self.word_delimiter}
        ids = {token: i for i, token in enumerate(self.tokens) if token not in not_text}
        has_spaces = self.word_delimiter and self.space and not self.separator
        return ids | {self.space: self.tokens.index(self.word_delimiter)} if has_spaces else ids

    @cached_property
    def _text_of_id(self) -> tuple[str, ...]:
        text_of = dict.fromkeys(self.silent, "") | {self.word_delimiter: "" if self.separator else self.space}
        return tuple(text_of.get(token, token) for token in self.tokens)

    @cached_property
    def _longest_piece(self) -> re.Pattern | None:
        """Pattern of the longest token at a position, or else one character; None if every token is one character."""
        longest_first = sorted(self._id_of_piece, key=len, reverse=True)
        if not longest_first or len(longest_first[0]) == 1:
            return None
        return re.compile("|".join([*map(re.escape, longest_first), "."]), re.DOTALL)

    @cached_property
    def _letters(self) -> frozenset[str]:
        """Characters of the tokens, as texts have them."""
        characters = frozenset("".join(self._id_of_piece))
        return frozenset("".join(characters).lower()) if self.lowercase else characters

    @cached_property
    def case(self) -> Case:
        """Letter case of texts: that of the tokens, unless the rules give another."""
        if self.rules and self.rules.case != "auto":
            return self.rules.case
        cases = set(map(letter_case.case_of, self._letters)) - {"keep"}
        return "upper" if not cases else cases.pop() if len(cases) == 1 else "keep"

    @cached_property
    def _normaliser(self) -> Normaliser:
        return Normaliser(self.rules or TextRules(), self.case, self._letters, self.separator or self.space)

    @cached_property
    def _token_case(self) -> Normaliser:
        """Function that writes a normalised text in upper case, for tokens that are, though texts are in lower case."""
        characters = frozenset("".join(self._id_of_piece))
        return Normaliser(replace(self.rules or TextRules(), drop="", replace={}), "upper", characters, self.space)

    def normalise(self, text: str) -> str:
        """Convert a transcript to the normal form and letter case of this vocabulary, as its rules say.

        No letter is removed, unless the rules say so: `unknown_characters` finds those that the vocabulary lacks.
        """
        return self._normaliser(text)

    def pieces(self, text: str) -> Sequence[str]:
        """Split a normalised `text` into the pieces that have one label each: its characters, tokens or phonemes.

        Multi-character tokens match greedily, the longest first, as in transformers (which, however, loses spaces).
        """
        if self.separator:
            return text.split()
        if self.lowercase:
            text = self._token_case(text)
        return text if self._longest_piece is None else self._longest_piece.findall(text)

    def unknown_characters(self, text: str) -> set[str]:
        """Return the characters (or phonemes) of a normalised `text` that have no token."""
        return set(self.pieces(text)) - self._id_of_piece.keys()

    def encode(self, text: str) -> list[int]:
        """Return the label ids of a normalised `text`.

        Raises:
            KeyError: a character has no token. Silently training on ``<unk>`` would leave the WER stuck at 1.0.
        """
        return [self._id_of_piece[piece] for piece in self.pieces(text)]

    def decode(self, ids: Iterable[int]) -> str:
        """Decode the best id per frame of one utterance (greedy CTC): merge repeats, drop blanks and special tokens."""
        text = self.separator.join(filter(None, (self._text_of_id[i] for i, _ in groupby(ids))))
        if self.lowercase:
            text = letter_case.lowered(text, self.rules.language if self.rules else None)
        return " ".join(text.split())

    @property
    def remark(self) -> str:
        """Sentence on tokens that are written in another normal form than texts usually are; "" if none are."""
        marks = [letter for letter in self._letters if is_mark(letter)]
        composed = sorted(
            letter
            for base in (self._letters if marks else ())
            for mark in marks
            if len(letter := unicodedata.normalize("NFC", base + mark)) == 1
        )
        if not composed:
            return ""
        if both := [letter for letter in composed if letter in self._letters]:
            return (
                f"The vocabulary has letters in two spellings, such as {both[0]} as one character and as two"
                " (NFC and NFD): texts are written in the first. A newly built vocabulary has one spelling."
            )
        return (
            f"The vocabulary is in normal form NFD ({composed[0]} is written as two characters): texts are converted to"
            " it, and what is transcribed is in it."
        )

    def values(self) -> dict[str, Any]:
        """Return the fields as plain values for a checkpoint; without rules if they are the default ones.

        So they equal those of a checkpoint from before there were rules, and runs can be resumed from it.
        """
        values = asdict(self)
        if self.rules in (None, TextRules()):
            del values["rules"]
        return values

    def with_rules(self, rules: TextRules | None) -> "Vocabulary":
        """Return this vocabulary with other rules for the writing of texts; with its own if `rules` is None."""
        return self if rules is None else replace(self, rules=rules)

    @classmethod
    def build(cls, texts: Iterable[str], mixed_case: bool = False, rules: TextRules | None = None) -> "Vocabulary":
        """Build a vocabulary of the special tokens and the characters of `texts`, in upper case unless `mixed_case`.

        Characters are sorted by code point, so more texts of the same alphabet give the same ids (sorting by frequency
        would not). The apostrophe is a character like any other. A ``|`` in the texts is left out: it is the space.
        Invisible characters and control characters are never tokens.

        Args:
            texts: the transcripts.
            mixed_case: keep the letter case of the texts.
            rules: rules for the writing of texts, which the vocabulary keeps. Without a language, that of Turkish is
                assumed for texts that have the dotless i as often as it has.

        Raises:
            InputError: the texts have no character, or `mixed_case` contradicts the rules.
        """
        texts, rules = list(texts), rules or TextRules()
        if mixed_case and rules.case not in ("auto", "keep"):
            raise InputError(f"data.text.case={rules.case} contradicts model.vocabulary=build-mixed; use build.")
        case: Case = "keep" if mixed_case else "upper" if rules.case == "auto" else rules.case
        if rules.language is None and case != "keep" and letter_case.looks_turkic(texts):
            rules = replace(rules, language="tr")
            log.info("The texts have the dotless i of Turkish, whose letter case is used (data.text.language=tr).")
        letters = set().union(*map(Normaliser(rules, case), texts)) - {WORD_DELIMITER, " "}
        if not letters:
            raise InputError("Cannot build a vocabulary: the transcripts have no characters.")
        return cls(SPECIAL_TOKENS + tuple(sorted(letters)), rules=rules)

    @classmethod
    def load(cls, folder: str | Path, num_outputs: int | None = None, target_lang: str | None = None) -> "Vocabulary":
        """Read a Hugging Face tokenizer folder as transformers does.

        Args:
            folder: the folder of ``vocab.json``, and of the files that hold added tokens and the roles of tokens.
            num_outputs: number of outputs of an existing CTC head, which may or may not cover the tokens that a user or
                transformers added after those of vocab.json. None: a new head, without outputs for silent added tokens.
            target_lang: language of a vocab.json with several; default: that of tokenizer_config.json.

        Raises:
            InputError: vocab.json is missing or not a table of tokens and ids, or transformers cannot read the folder.
        """
        return cls(**tokenizer.read(Path(folder), num_outputs, target_lang))

    def save(self, folder: str | Path) -> None:
        """Write a tokenizer folder for `load` and for transformers; existing tokenizer files are replaced."""
        table = {token: i for i, token in enumerate(self.tokens) if token}
        roles = {
            "pad_token": self.blank,
            "word_delimiter_token": self.word_delimiter,
            "unk_token": self.unknown,
            "bos_token": self.begin,
            "eos_token": self.end,
        }
        rules = asdict(self.rules or TextRules())
        tokenizer.write(Path(folder), table, roles, self.space, self.lowercase, self.separator, rules)


def count_repeats(labels: Iterable[object]) -> int:
    """Count pairs of adjacent equal labels; CTC needs one extra frame (a blank) between the two of each pair."""
    return sum(a == b for a, b in pairwise(labels))
