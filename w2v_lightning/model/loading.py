"""Wav2Vec2ForCTC with random weights, or loaded from a folder or the Hugging Face Hub, in the form of transformers."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

from w2v_lightning.compat import transformers as compat
from w2v_lightning.errors import InputError
from w2v_lightning.model import adapters, settings
from w2v_lightning.model.stored import (
    WaveformFormat,
    fits_head,
    has_head,
    model_config,
    reason_of,
    vocabulary_of,
    waveform_format,
)
from w2v_lightning.text.vocabulary import Vocabulary

log = logging.getLogger(__name__)


def from_scratch(config: Mapping[str, Any], vocabulary: Vocabulary) -> Wav2Vec2ForCTC:
    """Return a model with random weights; `config` holds changes to transformers' Wav2Vec2Config."""
    settings.check_changes(config, _head_config(vocabulary))
    return Wav2Vec2ForCTC(Wav2Vec2Config(**{**_head_config(vocabulary), **config}))


def from_pretrained(
    name_or_folder: str,
    config: Mapping[str, Any],
    vocabulary: Vocabulary | None = None,
    target_lang: str | None = None,
) -> tuple[Wav2Vec2ForCTC, Vocabulary, WaveformFormat]:
    """Load a model from the Hugging Face Hub or a local folder; return it, its vocabulary and its input.

    A model without a CTC head (pre-trained only), or with one for other tokens than those of `vocabulary`, gets a new
    head. The vocabulary is `vocabulary`, otherwise that of the model, otherwise the default one. `target_lang` chooses
    the adapter, head and vocabulary of a language; given with `vocabulary`, it may be new.

    Raises:
        InputError: the model does not exist, is not a wav2vec2 model or lacks weights, or its vocabulary does not fit
            its head.
    """
    settings.check_changes(config)
    stored = model_config(name_or_folder)
    adapter = adapters.read(name_or_folder, stored, target_lang, vocabulary is not None) if target_lang else {}
    if "lm_head.weight" in adapter:
        stored.vocab_size = len(adapter["lm_head.weight"])
    is_new_language = bool(target_lang) and not adapter
    fits = not is_new_language and fits_head(vocabulary, name_or_folder, stored, target_lang)
    keeps_head = has_head(stored) and fits
    if keeps_head:
        vocabulary = vocabulary_of(name_or_folder, stored.vocab_size, target_lang)
        _check_vocabulary_fits(name_or_folder, stored, vocabulary)
    vocabulary = vocabulary or vocabulary_of(name_or_folder) or Vocabulary()
    settings.check_changes(config, _head_config(vocabulary))
    # The default dtype is that of the file: weights stored in half precision would be trained in half precision.
    with loading_errors_named(name_or_folder):
        loaded: Any = Wav2Vec2ForCTC.from_pretrained(  # returns a pair because of output_loading_info
            name_or_folder,
            config=Wav2Vec2Config.from_dict({**stored.to_dict(), **_head_config(vocabulary), **config}),
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # ours are the errors that name the cause
        )
    model: Wav2Vec2ForCTC
    loading: dict[str, Any]
    model, loading = loaded
    mismatched = [
        entry for entry in loading["mismatched_keys"] if (keeps_head and not adapter) or "lm_head" not in entry[0]
    ]
    settings.check_shapes(name_or_folder, stored, config, mismatched)
    _check_nothing_missing(name_or_folder, set(loading["missing_keys"]) - adapter.keys(), keeps_head)
    adapters.apply(name_or_folder, model, {k: w for k, w in adapter.items() if keeps_head or "lm_head" not in k})
    if not keeps_head:
        old = f"has a CTC head for {stored.vocab_size} tokens" if has_head(stored) else "is a pre-trained encoder"
        log.info(
            "%s %s: adding a new CTC head for the %d tokens of the vocabulary.", name_or_folder, old, len(vocabulary)
        )
        _renew_head(model)
    if is_new_language:
        log.info("%s has no language %s: adding a new adapter for it.", name_or_folder, target_lang)
        model.init_adapter_layers()
    return model, vocabulary, waveform_format(name_or_folder)


def check_head(
    option: str, name_or_folder: str, remedy: str, vocabulary: Vocabulary | None = None, target_lang: str | None = None
) -> None:
    """Check that a model can be used without training: a new head would produce random text.

    Raises:
        InputError: the model has no CTC head, or one for other tokens than those of `vocabulary`.
    """
    stored = model_config(name_or_folder)
    if not has_head(stored):
        problem = f"{name_or_folder} is an encoder without a CTC head ({', '.join(stored.architectures or ['bare'])})"
    elif not fits_head(vocabulary, name_or_folder, stored, target_lang):
        problem = f"the CTC head of {name_or_folder} is for other tokens than model.vocabulary"
    else:
        return
    raise InputError(f"{option}: {problem}, so the output would be random text; {remedy}.")


def _head_config(vocabulary: Vocabulary) -> dict[str, object]:
    return {"vocab_size": len(vocabulary), "pad_token_id": vocabulary.blank_id, "ctc_zero_infinity": True}


def _renew_head(model: Wav2Vec2ForCTC) -> None:
    """Initialise the head again: an old head with the same number of tokens has been loaded."""
    model.lm_head = torch.nn.Linear(model.lm_head.in_features, model.lm_head.out_features)
    compat.initialise(model, model.lm_head)


@contextmanager
def loading_errors_named(name_or_folder: str) -> Iterator[None]:
    """Turn what transformers raises for a model that it cannot load into an InputError that names it.

    With torch before 2.6 it refuses to unpickle weights (CVE-2025-32434).
    """
    try:
        yield
    except ValueError as error:
        if "torch.load" not in str(error):
            raise _cannot_be_built(name_or_folder, error) from error
        raise InputError(
            f"model.pretrained: {name_or_folder} has its weights in pytorch_model.bin, which transformers does not load"
            f" with torch {torch.__version__}; give a model with model.safetensors (docs/smddp.md), or use torch 2.6 or"
            " later."
        ) from error
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError) as error:
        raise _cannot_be_built(name_or_folder, error) from error


def _cannot_be_built(name_or_folder: str, error: Exception) -> InputError:
    return InputError(
        f"model.pretrained: {name_or_folder}: transformers cannot build the model that config.json and model.config"
        f" describe: {type(error).__name__}: {reason_of(error)}. Correct the value, or restore config.json."
    )


def _check_vocabulary_fits(name: str, stored: Wav2Vec2Config, vocabulary: Vocabulary | None) -> None:
    if vocabulary is None:
        raise InputError(f"model.pretrained: {name} has a CTC head but no vocab.json with its tokens; add that file.")
    if len(vocabulary) != stored.vocab_size:
        raise InputError(
            f"model.pretrained: {name}: the tokenizer has {len(vocabulary)} tokens, but the CTC head has"
            f" {stored.vocab_size}; restore the vocab.json that the model was trained with."
        )
    if vocabulary.blank_id != stored.pad_token_id:
        raise InputError(
            f"model.pretrained: {name}: the CTC blank {vocabulary.blank!r} is token {vocabulary.blank_id} of the"
            f" tokenizer, but pad_token_id in config.json is {stored.pad_token_id}; make them equal."
        )


def _check_nothing_missing(name: str, missing: Iterable[str], has_head: bool) -> None:
    optional = ("masked_spec_embed",) if has_head else ("masked_spec_embed", "lm_head")
    required = sorted(key for key in missing if not any(part in key for part in optional))
    if required:
        raise InputError(
            f"model.pretrained: {name} lacks {len(required)} weights of a wav2vec2 model, such as {required[0]}; use a"
            " complete checkpoint."
        )
