"""Hugging Face tokenizer folders of CTC models: read as transformers reads them, written so that it reads them back."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from w2v_lightning.errors import InputError, listed

if TYPE_CHECKING:  # it takes seconds to import
    from transformers import Wav2Vec2CTCTokenizer

ROLES = ("pad_token", "unk_token", "bos_token", "eos_token")  # that transformers does not take as objects
CHARACTERS, PHONEMES = "Wav2Vec2CTCTokenizer", "Wav2Vec2PhonemeCTCTokenizer"  # transformers' classes


def read(folder: Path, num_outputs: int | None) -> dict[str, Any]:
    """The arguments of a Vocabulary; see `Vocabulary.load`."""
    settings_path = folder / "tokenizer_config.json"
    settings = _read_json_object(settings_path) if settings_path.exists() else {}
    table = _read_table(folder / "vocab.json", settings.get("target_lang"))
    is_phonemes = settings.get("tokenizer_class") == PHONEMES
    try:
        tokenizer = _tokenizer(folder, settings, PHONEMES if is_phonemes else CHARACTERS)
        # Not first the tokenizer's own: transformers 5.24 does not heed what tokenizer_config.json says.
        word_delimiter = _content(settings.get("word_delimiter_token", tokenizer._word_delimiter_token)) or ""
    except Exception as error:  # whatever strange files make it do
        raise InputError(f"{folder}: transformers cannot read this tokenizer: {error!r}.") from error
    return {
        "tokens": _tokens(table, tokenizer, word_delimiter, num_outputs),
        "blank": tokenizer.pad_token or "<pad>",
        "word_delimiter": word_delimiter,
        "unknown": tokenizer.unk_token or "",
        "begin": tokenizer.bos_token or "",
        "end": tokenizer.eos_token or "",
        "space": " " if is_phonemes else tokenizer.replace_word_delimiter_char,
        "lowercase": not is_phonemes and tokenizer.do_lower_case,
        "separator": " " if is_phonemes else "",
    }


def write(
    folder: Path, table: Mapping[str, int], roles: Mapping[str, str], space: str, lowercase: bool, separator: str
) -> None:
    """In the place of what is there.

    Args:
        folder: is there.
        table: tokens and their ids.
        roles: tokens by the names of their roles in transformers; "" where no token has it.
        space, lowercase, separator: see `Vocabulary`.
    """
    if separator:
        settings = {"tokenizer_class": PHONEMES, "do_phonemize": False, "phone_delimiter_token": separator}
    else:
        settings = {"tokenizer_class": CHARACTERS, "replace_word_delimiter_char": space, "do_lower_case": lowercase}
    contents = {  # transformers 5.24 heeds a word delimiter in the last one only
        "vocab.json": table,
        "tokenizer_config.json": settings | {role: token or None for role, token in roles.items()},
        "special_tokens_map.json": {role: token for role, token in roles.items() if token},
    }
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
    (folder / "added_tokens.json").unlink(missing_ok=True)


def _tokenizer(folder: Path, settings: Mapping[str, Any], kind: str) -> "Wav2Vec2CTCTokenizer":
    import transformers

    objects = {role: settings[role]["content"] for role in ROLES if isinstance(settings.get(role), dict)}
    return getattr(transformers, kind).from_pretrained(folder, **objects)


def _content(token: Any) -> Any:
    """Of a token that is saved as an object, as some are."""
    return token["content"] if isinstance(token, dict) else token


def _tokens(
    table: Mapping[str, int], tokenizer: "Wav2Vec2CTCTokenizer", word_delimiter: str, num_outputs: int | None
) -> tuple[str, ...]:
    """By id. Behind those of vocab.json come those that were added, as far as the head has outputs for them.

    transformers adds the tokens of all roles. A new head needs no outputs for those that stand for no text.
    """
    added = tokenizer.added_tokens_encoder
    token_of_id = {i: token for token, i in added.items()} | {i: token for token, i in table.items()}
    if num_outputs is None:
        spare = set(tokenizer.all_special_tokens) - {tokenizer.pad_token, word_delimiter}
    else:
        spare = added.keys() - {tokenizer.pad_token}
    needed = 1 + max(i for i, token in token_of_id.items() if token in table or token not in spare)
    size = min(max(needed, num_outputs or 0), 1 + max(token_of_id))
    return tuple(token_of_id.get(i, "") for i in range(size))


def _read_table(path: Path, target_lang: str | None) -> dict[str, int]:
    table = _read_json_object(path)
    if target_lang in table:  # one of several
        table = table[target_lang]
    ids = list(table.values())
    if not all(isinstance(i, int) and i >= 0 for i in ids) or len(set(ids)) < len(ids):
        found = listed([f"{token}: {i}" for token, i in table.items()])
        raise InputError(f"{path}: the ids must be whole numbers, each once; found {found}.")
    return table


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
