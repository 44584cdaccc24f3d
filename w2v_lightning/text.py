"""Between transcripts and label ids: vocabulary, normalisation, encoding, greedy CTC collapse.

The default vocabulary is that of facebook/wav2vec2-base-960h and its siblings: 32 tokens, ``<pad>`` (id 0) doubles as
the CTC blank, ``|`` stands for the space between words.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, pairwise
from pathlib import Path

from w2v_lightning.errors import InputError

BLANK = "<pad>"
UNKNOWN = "<unk>"
WORD_DELIMITER = "|"
NO_LETTERS = (BLANK, "<s>", "</s>", UNKNOWN, WORD_DELIMITER)
LIBRISPEECH_TOKENS = (*NO_LETTERS, *"ETAONIHSRDLUMWCFGYPBVK'XJQZ")

BUILT_VOCABULARIES = {"build": False, "build-mixed": True}  # words for Vocabulary.build, and its `mixed_case`

# Typographic apostrophes, which word processors and web pages put where transcripts mean the plain one.
_APOSTROPHES = str.maketrans("\u2018\u2019\u02bc", "'''")


@dataclass(frozen=True)
class Vocabulary:
    """The output tokens of a CTC model; a token's id is its position."""

    tokens: tuple[str, ...] = LIBRISPEECH_TOKENS
    blank: str = BLANK
    word_delimiter: str = WORD_DELIMITER

    def __post_init__(self) -> None:
        for role, token in (("CTC blank", self.blank), ("word delimiter", self.word_delimiter)):
            if token not in self.tokens:
                raise InputError(f"The vocabulary has no token {token!r} to serve as {role}; add it to vocab.json.")

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def blank_id(self) -> int:
        return self.tokens.index(self.blank)

    @cached_property
    def _id_of_character(self) -> dict[str, int]:
        no_letters = (self.blank, self.word_delimiter)
        ids = {token: i for i, token in enumerate(self.tokens) if len(token) == 1 and token not in no_letters}
        return ids | {" ": self.tokens.index(self.word_delimiter)}

    @cached_property
    def _character_of_id(self) -> tuple[str, ...]:
        characters = {i: character for character, i in self._id_of_character.items()}
        return tuple(characters.get(i, "") for i in range(len(self)))

    @cached_property
    def _fold_case(self):
        characters = "".join(self._id_of_character)
        if characters.upper() == characters:
            return str.upper
        if characters.lower() == characters:
            return str.lower
        return str

    def normalise(self, text: str) -> str:
        """Fit a transcript to this vocabulary's writing: its letter case, plain apostrophes, single spaces.

        Nothing is removed: a character that the vocabulary lacks is for `unknown_characters` to find.
        """
        plain = text if text.isascii() else text.translate(_APOSTROPHES)  # translate is the slow part
        return " ".join(self._fold_case(plain).split())

    def unknown_characters(self, text: str) -> set[str]:
        """The characters of a normalised `text` that have no token."""
        return set(text) - self._id_of_character.keys()

    def encode(self, text: str) -> list[int]:
        """Label ids of a normalised `text`.

        Raises:
            KeyError: a character has no token. Training on ``<unk>`` silently is how WER gets stuck at 1.0.
        """
        return [self._id_of_character[character] for character in text]

    def decode(self, ids: Iterable[int]) -> str:
        """Greedy CTC decoding of one utterance's best id per frame: merge repeats, drop blanks and specials."""
        text = "".join(self._character_of_id[i] for i, _ in groupby(ids))
        return " ".join(text.split())

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
    def load(cls, folder: str | Path) -> "Vocabulary":
        """Read a Hugging Face tokenizer folder (``vocab.json``, and ``tokenizer_config.json`` where there is one).

        Raises:
            InputError: the file is missing, is no token-to-id table, or leaves ids out.
        """
        path = Path(folder) / "vocab.json"
        table = _read_json_object(path)
        token_of_id = {i: token for token, i in table.items() if isinstance(i, int)}
        if sorted(token_of_id) != list(range(len(table))):
            raise InputError(f"{path}: the ids must be 0 to {len(table) - 1}, each once; found {list(table.values())}.")
        settings_path = path.with_name("tokenizer_config.json")
        settings = _read_json_object(settings_path) if settings_path.exists() else {}
        return cls(
            tuple(token_of_id[i] for i in range(len(token_of_id))),
            _token_text(settings, "pad_token", BLANK),
            _token_text(settings, "word_delimiter_token", WORD_DELIMITER),
        )

    def save(self, folder: str | Path) -> Path:
        """Write ``vocab.json`` as Hugging Face's Wav2Vec2CTCTokenizer reads it; returns its path."""
        path = Path(folder) / "vocab.json"
        table = {token: i for i, token in enumerate(self.tokens)}
        path.write_text(json.dumps(table, ensure_ascii=False, indent=1), encoding="utf-8")
        return path


def count_repeats(labels: Sequence[int]) -> int:
    """Adjacent equal labels; CTC needs one extra frame (a blank) between the two of each pair."""
    return sum(a == b for a, b in pairwise(labels))


def _read_json_object(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} is missing; a CTC model folder needs it to name its tokens.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid JSON: {error}.") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold a JSON object, found {type(content).__name__}.")
    return content


def _token_text(settings: dict, key: str, default: str) -> str:
    value = settings.get(key) or default
    return value["content"] if isinstance(value, dict) else value  # older tokenizers save an AddedToken as an object
