"""Between transcripts and label ids: vocabulary, normalisation, encoding, greedy CTC collapse.

The default vocabulary is that of facebook/wav2vec2-base-960h and its siblings: 32 tokens, ``<pad>`` (id 0) doubles as
the CTC blank, ``|`` stands for the space between words.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, pairwise
from pathlib import Path

from w2v_lightning.errors import InputError
from w2v_lightning.text import tokenizer

BLANK = "<pad>"
UNKNOWN, BEGIN, END = "<unk>", "<s>", "</s>"
WORD_DELIMITER = "|"
NO_LETTERS = (BLANK, BEGIN, END, UNKNOWN, WORD_DELIMITER)
LIBRISPEECH_TOKENS = (*NO_LETTERS, *"ETAONIHSRDLUMWCFGYPBVK'XJQZ")

BUILT_VOCABULARIES = {"build": False, "build-mixed": True}  # words for Vocabulary.build, and its `mixed_case`

# Typographic apostrophes, which word processors and web pages put where transcripts mean the plain one.
_APOSTROPHES = str.maketrans("\u2018\u2019\u02bc", "'''")


@dataclass(frozen=True)
class Vocabulary:
    """The output tokens of a CTC model; a token's id is its position, and "" an output without a token.

    Args:
        tokens: characters, or several of them that are written together, or phonemes.
        blank: of CTC.
        word_delimiter: stands for the space between words; "" where there is none, as of `unknown`, `begin` and `end`.
        unknown, begin, end: are neither read nor written.
        space: what is written for the word delimiter; "" where words run together.
        lowercase: tokens are in upper case, texts in lower case.
        separator: what is written between tokens: a space between phonemes.
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
        return self.tokens.index(self.blank)

    @property
    def silent(self) -> frozenset[str]:
        """The tokens that stand for no text."""
        return frozenset((self.blank, self.unknown, self.begin, self.end, ""))

    @cached_property
    def _id_of_piece(self) -> dict[str, int]:
        no_letters = self.silent | {self.word_delimiter}
        ids = {token: i for i, token in enumerate(self.tokens) if token not in no_letters}
        has_spaces = self.word_delimiter and self.space and not self.separator
        return ids | {self.space: self.tokens.index(self.word_delimiter)} if has_spaces else ids

    @cached_property
    def _text_of_id(self) -> tuple[str, ...]:
        text_of = dict.fromkeys(self.silent, "") | {self.word_delimiter: "" if self.separator else self.space}
        return tuple(text_of.get(token, token) for token in self.tokens)

    @cached_property
    def _longest_piece(self) -> re.Pattern | None:
        """The longest token that stands next, or a character without one; None: every token is one character."""
        longest_first = sorted(self._id_of_piece, key=len, reverse=True)
        if not longest_first or len(longest_first[0]) == 1:
            return None
        return re.compile("|".join([*map(re.escape, longest_first), "."]), re.DOTALL)

    @cached_property
    def _fold_case(self):
        characters = "".join(self._id_of_piece)
        if self.lowercase or characters.lower() == characters != characters.upper():
            return str.lower
        return str.upper if characters.upper() == characters else str

    @cached_property
    def _apostrophes(self) -> dict[int, str]:
        """Without those that are letters here."""
        letters = set("".join(self._id_of_piece))
        return {code: plain for code, plain in _APOSTROPHES.items() if chr(code) not in letters}

    def normalise(self, text: str) -> str:
        """Fit a transcript to this vocabulary's writing: its letter case, plain apostrophes, single spaces.

        Nothing is removed: a character that the vocabulary lacks is for `unknown_characters` to find.
        """
        plain = text if text.isascii() else text.translate(self._apostrophes)  # translate is the slow part
        return (self.separator or self.space).join(self._fold_case(plain).split())

    def pieces(self, text: str) -> Sequence[str]:
        """What of a normalised `text` has a label each: its characters, or its phonemes.

        Where tokens have several characters, the longest that fits: so has transformers, which however loses spaces.
        """
        if self.separator:
            return text.split()
        if self.lowercase:
            text = text.upper()
        return text if self._longest_piece is None else self._longest_piece.findall(text)

    def unknown_characters(self, text: str) -> set[str]:
        """The characters, or phonemes, of a normalised `text` that have no token."""
        return set(self.pieces(text)) - self._id_of_piece.keys()

    def encode(self, text: str) -> list[int]:
        """Label ids of a normalised `text`.

        Raises:
            KeyError: a character has no token. Training on ``<unk>`` silently is how WER gets stuck at 1.0.
        """
        return [self._id_of_piece[piece] for piece in self.pieces(text)]

    def decode(self, ids: Iterable[int]) -> str:
        """Greedy CTC decoding of one utterance's best id per frame: merge repeats, drop blanks and specials."""
        text = self.separator.join(filter(None, (self._text_of_id[i] for i, _ in groupby(ids))))
        return " ".join((text.lower() if self.lowercase else text).split())

    @classmethod
    def build(cls, texts: Iterable[str], mixed_case: bool = False) -> "Vocabulary":
        """The characters of `texts`, in upper case unless `mixed_case`, after the usual special tokens.

        They are in the order of their code points, which more texts of the same alphabet do not change (frequencies
        would). The apostrophe is a character like others. An existing ``|`` in the texts is left out: it is the space.

        Raises:
            InputError: there is no character.
        """
        found = "".join(sorted(set().union(*texts))).translate(_APOSTROPHES)
        characters = sorted(set(found if mixed_case else found.upper()) - {WORD_DELIMITER})
        letters = tuple(character for character in characters if not character.isspace())
        if not letters:
            raise InputError("A vocabulary cannot be built: the transcripts hold no character.")
        return cls(NO_LETTERS + letters)

    @classmethod
    def load(cls, folder: str | Path, num_outputs: int | None = None) -> "Vocabulary":
        """Read a Hugging Face tokenizer folder as transformers does: ``vocab.json``, and beside it the files that name
        added tokens, and which token has which role.

        Args:
            folder: holds them.
            num_outputs: of the CTC head that these tokens are for. It has outputs for those that were added behind
                vocab.json's, by a user or by transformers itself, or not; a new head needs none for the silent ones.

        Raises:
            InputError: the file is missing, is no table of tokens and ids, or transformers cannot read the others.
        """
        return cls(**tokenizer.read(Path(folder), num_outputs))

    def save(self, folder: str | Path) -> None:
        """Write a folder that transformers' tokenizer and `load` read, in the place of another one's files."""
        table = {token: i for i, token in enumerate(self.tokens) if token}
        roles = {
            "pad_token": self.blank,
            "word_delimiter_token": self.word_delimiter,
            "unk_token": self.unknown,
            "bos_token": self.begin,
            "eos_token": self.end,
        }
        tokenizer.write(Path(folder), table, roles, self.space, self.lowercase, self.separator)


def count_repeats(labels: Sequence[int]) -> int:
    """Adjacent equal labels; CTC needs one extra frame (a blank) between the two of each pair."""
    return sum(a == b for a, b in pairwise(labels))
