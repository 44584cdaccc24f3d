"""Languages of MMS models: per language a small adapter in each transformer layer, a CTC head, and a vocabulary.

A folder of transformers has adapter.LANGUAGE.safetensors (or .bin) for each, and a vocab.json with a table for each.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

from w2v_lightning.compat import transformers as compat
from w2v_lightning.errors import InputError, did_you_mean, listed

OPTION = "target_lang (model.target_lang, --target-lang)"


def languages(name_or_folder: str) -> list[str]:
    """Return the languages of a model's vocab.json, sorted; none if the model has a single vocabulary."""
    path = compat.stored_file(name_or_folder, "vocab.json")
    if path is None:
        return []
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON: {error}.") from None
    return sorted(key for key, value in table.items() if isinstance(value, dict)) if isinstance(table, dict) else []


def read(name_or_folder: str, stored: Wav2Vec2Config, language: str, may_be_new: bool) -> dict[str, Tensor]:
    """Return the weights of a language's adapter and CTC head, in float32; empty for a new language.

    Args:
        name_or_folder: the model.
        stored: its settings.
        language: code of the language, such as "eng".
        may_be_new: whether the model may lack the language, because a vocabulary for it was given.

    Raises:
        InputError: the model has no adapters, or none for the language; the message names those that exist.
    """
    if stored.adapter_attn_dim is None:
        raise InputError(
            f"{OPTION} is {language!r}, but {name_or_folder} has no language adapters (adapter_attn_dim in its"
            " config.json is null); leave the option out."
        )
    for suffix in ("safetensors", "bin"):
        if path := compat.stored_file(name_or_folder, f"adapter.{language}.{suffix}"):
            return _load(path)
    if may_be_new:
        return {}
    known = languages(name_or_folder)
    hint = did_you_mean(language, known) or ""
    raise InputError(
        f"{OPTION}: {name_or_folder} has no adapter.{language}.safetensors{hint}. Its languages are"
        f" {listed(known) if known else 'not listed in its vocab.json'}. For a new language give model.vocabulary, too."
    )


def _load(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            weights = load_file(path)
        else:
            weights = torch.load(path, map_location="cpu", weights_only=True)
        return {name: weight.float() for name, weight in weights.items()}
    except Exception as error:  # safetensors and pickle raise many types of exception for a damaged file
        raise InputError(f"{path} cannot be read ({error}); download it again.") from error


def apply(name: str, model: Wav2Vec2ForCTC, weights: Mapping[str, Tensor]) -> None:
    """Put a language's weights into the model.

    Raises:
        InputError: they are of another model.
    """
    own = model.state_dict()
    for key, weight in weights.items():
        if key not in own or own[key].shape != weight.shape:
            expected = tuple(own[key].shape) if key in own else "no such weight"
            raise InputError(
                f"{name}: its adapter has {key} of shape {tuple(weight.shape)}, the model {expected}; use the adapter"
                " that was published with the model."
            )
    model.load_state_dict(dict(weights), strict=False)


def train_adapter_only(model: Wav2Vec2ForCTC) -> None:
    """Freeze everything but the adapters and the CTC head.

    Raises:
        InputError: the model has no adapters.
    """
    if model.config.adapter_attn_dim is None:
        raise InputError(
            "model.adapter_only is true, but the model has no language adapters (adapter_attn_dim in its config.json is"
            " null); leave the option out, or set model.config.adapter_attn_dim, such as 16."
        )
    model.requires_grad_(False)
    for parameter in compat.adapter_parameters(model).values():
        parameter.requires_grad_(True)


def save(folder: Path, model: Wav2Vec2ForCTC, language: str) -> None:
    """Add a language's adapter to a model folder, and name the language in its tokenizer files."""
    weights = {name: weight.detach().cpu().contiguous() for name, weight in compat.adapter_parameters(model).items()}
    save_file(weights, folder / f"adapter.{language}.safetensors", metadata={"format": "pt"})
    _rewrite(folder / "vocab.json", lambda table: {language: table})
    _rewrite(folder / "tokenizer_config.json", lambda settings: settings | {"target_lang": language})


def _rewrite(path: Path, change: Callable[[dict], dict]) -> None:
    content = change(json.loads(path.read_text(encoding="utf-8")))
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
