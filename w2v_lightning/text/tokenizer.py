"""Hugging Face tokenizer folders of CTC models, read and written so that transformers reads the same tokens."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from w2v_lightning.errors import InputError, listed
from w2v_lightning.runtime.schema import check_content, shown
from w2v_lightning.text.rules import TextRules

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import Wav2Vec2CTCTokenizer

ROLES = ("pad_token", "unk_token", "bos_token", "eos_token")  # transformers rejects these as JSON objects
CHARACTERS, PHONEMES = "Wav2Vec2CTCTokenizer", "Wav2Vec2PhonemeCTCTokenizer"  # transformers' classes
RULES_KEY = "text_rules"  # key of tokenizer_config.json that transformers keeps and ignores


class _WithRules(TypedDict):
    text_rules: TextRules


def read(folder: Path, num_outputs: int | None, target_lang: str | None = None) -> dict[str, Any]:
    """Return the arguments of a Vocabulary; see `Vocabulary.load`."""
    settings_path = folder / "tokenizer_config.json"
    settings = _read_json_object(settings_path) if settings_path.exists() else {}
    settings = settings | ({"target_lang": target_lang} if target_lang else {})
    table = _read_table(folder / "vocab.json", settings.get("target_lang"))
    is_phonemes = settings.get("tokenizer_class") == PHONEMES
    try:
        tokenizer = _tokenizer(folder, settings, PHONEMES if is_phonemes else CHARACTERS)
        # The settings come first, not the tokenizer: transformers 5.24 ignores this entry of tokenizer_config.json.
        word_delimiter = _content(settings.get("word_delimiter_token", tokenizer.word_delimiter_token)) or ""
        if not isinstance(word_delimiter, str):
            raise TypeError(f"word_delimiter_token is {shown(word_delimiter)}")
    except Exception as error:  # transformers raises many types of exception for invalid files
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
        "rules": _rules(settings.get(RULES_KEY), settings_path),
    }


def write(
    folder: Path,
    table: Mapping[str, int],
    roles: Mapping[str, str],
    space: str,
    lowercase: bool,
    separator: str,
    rules: Mapping[str, Any],
) -> None:
    """Write a tokenizer folder; existing tokenizer files are replaced.

    Args:
        folder: an existing folder.
        table: ids by token.
        roles: tokens by the names of their roles in transformers; "" if no token has the role.
        space, lowercase, separator: see `Vocabulary`.
        rules: the values of its TextRules.
    """
    if separator:
        settings = {"tokenizer_class": PHONEMES, "do_phonemize": False, "phone_delimiter_token": separator}
    else:
        settings = {"tokenizer_class": CHARACTERS, "replace_word_delimiter_char": space, "do_lower_case": lowercase}
    contents = {  # transformers 5.24 reads the word delimiter from the last file only
        "vocab.json": table,
        "tokenizer_config.json": settings | {role: token or None for role, token in roles.items()} | {RULES_KEY: rules},
        "special_tokens_map.json": {role: token for role, token in roles.items() if token},
    }
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
    (folder / "added_tokens.json").unlink(missing_ok=True)


def _rules(saved: Any, path: Path) -> TextRules | None:
    """Return the rules that tokenizer_config.json holds; None if it has none, as in the folders of others."""
    if saved is None:
        return None
    check_content(
        {RULES_KEY: saved},
        _WithRules,
        path,
        "restore the file, or remove the entry text_rules for the default rules.",
    )
    return TextRules(**saved)


def _tokenizer(folder: Path, settings: Mapping[str, Any], kind: str) -> "Wav2Vec2CTCTokenizer":
    import transformers

    objects = {role: settings[role]["content"] for role in ROLES if isinstance(settings.get(role), dict)}
    # Texts are phonemes already; transformers 5.18 would require the library phonemizer to load the tokenizer.
    options = {"do_phonemize": False} if kind == PHONEMES else {}
    if settings.get("target_lang"):
        options["target_lang"] = settings["target_lang"]
    return getattr(transformers, kind).from_pretrained(folder, **objects, **options)


def _content(token: Any) -> Any:
    """Return the text of a token, which may be saved as a JSON object."""
    return token["content"] if isinstance(token, dict) else token


def _tokens(
    table: Mapping[str, int], tokenizer: "Wav2Vec2CTCTokenizer", word_delimiter: str, num_outputs: int | None
) -> tuple[str, ...]:
    """Return the tokens by id: those of vocab.json, then added tokens if the head has outputs for them.

    transformers adds the tokens of all roles. A new head needs no outputs for added tokens that stand for no text.
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
    if isinstance(target_lang, str) and target_lang in table:  # the file holds one table per language
        table = table[target_lang]
    elif table and all(isinstance(entry, dict) for entry in table.values()):
        raise InputError(
            f"{path} has a table for each of the languages {listed(sorted(table))}, but no {target_lang or 'language'}"
            " is chosen among them: set model.target_lang (fit) or --target-lang (transcribe)."
        )
    ids = list(table.values())
    if not all(isinstance(i, int) and i >= 0 for i in ids) or len(set(ids)) < len(ids):
        entries = listed([f"{token}: {str(i)[:80]}" for token, i in table.items()])
        raise InputError(f"{path}: the ids must be unique whole numbers, found {entries}.")
    return table


def _read_json_object(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} is missing: a CTC model folder needs it to define its tokens.") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON: {error}.") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold a JSON object, found {type(content).__name__}.")
    return content
