"""Rules by which transcripts are written: an option of the data, saved with the exported model."""

import re
from dataclasses import asdict, dataclass, field
from typing import Literal

from w2v_lightning.errors import InputError

_LANGUAGE = re.compile(r"[A-Za-z]{2,3}([-_][A-Za-z0-9]+)*")


@dataclass(frozen=True)
class TextRules:
    """Rules for the writing of transcripts, the same in training, in scoring and for the exported model.

    The defaults change no letter: equal letters are encoded equally, invisible characters are left out, words have
    single spaces between them, typographic apostrophes become plain, and letters have the case of the vocabulary.

    Args:
        normal_form: Unicode normal form. A character that the vocabulary has in another form is written in that one.
            NFKC and NFKD also replace ligatures, full-width letters and superscripts by plain ones.
        case: letter case; auto is that of the vocabulary, and upper case for one that is built.
        drop: characters to leave out, such as "?!.,"; of a letter both cases, unless `case` is keep.
        replace: texts by the single characters that they replace, such as {"&": " and "}, likewise.
        language: language tag such as tr or az-Latn, for the case of its letters; default: as in most languages.

    Raises:
        InputError: a rule is invalid, or contradicts another one.
    """

    normal_form: Literal["NFC", "NFD", "NFKC", "NFKD"] = "NFC"
    case: Literal["auto", "upper", "lower", "keep"] = "auto"
    drop: str = ""
    replace: dict[str, str] = field(default_factory=dict)
    language: str | None = None

    def __post_init__(self) -> None:
        for key in self.replace:
            if len(key) != 1:
                raise InputError(f"data.text.replace: {key!r} must be a single character; write an entry for each.")
        if both := set(self.replace) & set(self.drop):
            raise InputError(f"data.text: {min(both)!r} is both in drop and in replace; leave it out of one of them.")
        if self.language is not None and not _LANGUAGE.fullmatch(self.language):
            raise InputError(f"data.text.language must be a language tag such as tr or de-AT, found {self.language!r}.")

    @property
    def changed(self) -> frozenset[str]:
        """Characters that are dropped or replaced."""
        return frozenset(self.replace) | frozenset(self.drop)

    def differences(self, other: "TextRules") -> str:
        """Describe where these rules differ from other ones: "case is 'keep' instead of 'auto'"; "" if nowhere."""
        mine, others = asdict(self), asdict(other)
        return ", ".join(
            f"{name} is {value!r} instead of {others[name]!r}" for name, value in mine.items() if value != others[name]
        )
