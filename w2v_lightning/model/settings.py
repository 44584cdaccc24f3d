"""Settings of a model's config.json, and of `model.config`: which are applied, and which are refused by name.

The forward pass uses transformers' modules, so whatever shapes or parametrises a module applies by itself. Refused is
what transformers would heed and this package would not. tests/model/test_settings.py goes through every key.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from transformers import Wav2Vec2Config

from w2v_lightning.data.batch import SpecAugment
from w2v_lightning.errors import InputError, did_you_mean

# Value that a setting must have in the model and in `model.config`, and the remedy for another.
REQUIRED: dict[str, tuple[object, str]] = {
    "add_adapter": (
        False,
        "its convolutions after the transformer are not supported; use a model without them, or transformers itself",
    ),
    "quantization_config": (None, "quantised weights are not supported; use the model's original weights"),
}
# Settings of the run that `model.config` cannot change. A model may have any value: its training is over.
OF_THE_RUN: dict[str, tuple[object, str]] = {
    "ctc_loss_reduction": ("sum", "set model.loss_average to utterance or label instead"),
    "ctc_zero_infinity": (True, "leave it out: an utterance that cannot be aligned never counts"),
    "dtype": ("float32", "set trainer.precision instead"),
}
VOCABULARY_REMEDY = "leave it out: model.vocabulary decides"


def check_changes(changes: Mapping[str, object], head: Mapping[str, object] | None = None) -> None:
    """Check that `model.config` has only keys of Wav2Vec2Config, and no value that would have no effect.

    Args:
        changes: `model.config`.
        head: settings that follow from the vocabulary, if it is known.

    Raises:
        InputError: a key is unknown, or its value is not supported; the message has the remedy.
    """
    known = {*Wav2Vec2Config().to_dict(), *REQUIRED}
    of_vocabulary = {key: (value, VOCABULARY_REMEDY) for key, value in (head or {}).items() if key not in OF_THE_RUN}
    for key, value in changes.items():
        if key not in known:
            hint = did_you_mean(key, sorted(known)) or "; its documentation lists the keys."
            raise InputError(f"model.config: transformers' Wav2Vec2Config has no {key!r}{hint}")
        required, remedy = (REQUIRED | OF_THE_RUN | of_vocabulary).get(key, (value, ""))
        if value not in (required, None):
            raise InputError(f"model.config: {key} is {value!r}, only {required!r} is supported: {remedy}.")


def check_stored(name: str, stored: Wav2Vec2Config) -> None:
    """Check the settings of a model before anything else is read of it.

    Raises:
        InputError: a setting would change the output and is not supported; the message names it.
    """
    for key, (required, remedy) in REQUIRED.items():
        if (value := getattr(stored, key, required)) not in (required, None):
            raise InputError(f"model.pretrained: {name}: {key} in config.json is {str(value)[:80]}: {remedy}.")


def check_shapes(
    name: str, stored: Wav2Vec2Config, changes: Mapping[str, object], mismatched: Iterable[tuple[Any, ...]]
) -> None:
    """Check that the weights have the shapes of the model that was built for them.

    Args:
        name: model folder, or name on the Hugging Face Hub.
        stored: the model's own settings.
        changes: `model.config`.
        mismatched: name, shape in the file and shape in the model of each weight that was not loaded.

    Raises:
        InputError: a shape differs; the message names the setting that `model.config` changes, or config.json.
    """
    weights = sorted((key, tuple(in_file), tuple(in_model)) for key, in_file, in_model in mismatched)
    if not weights:
        return
    key, in_file, in_model = weights[0]
    what = f"{key} has shape {in_file} in its weights, {in_model} by its settings"
    own = stored.to_dict()
    shaping = [f"{k}={v!r} (the model's own is {own[k]!r})" for k, v in changes.items() if shapes(k) and own[k] != v]
    if not shaping:
        raise InputError(
            f"model.pretrained: {name}: config.json contradicts the weights: {what}; restore the config.json that"
            " belongs to them."
        )
    raise InputError(
        f"model.config: {', '.join(shaping)} contradicts the weights of {name}: {what}. Leave it out, or start from"
        " random weights with model.pretrained=null."
    )


def shapes(key: str) -> bool:
    """Return True if a setting may change the shape of a weight."""
    return not key.startswith("mask_") and "drop" not in key


def masks_time(config: Wav2Vec2Config) -> bool:
    """Return True if training replaces frames by the mask embedding."""
    return config.apply_spec_augment and config.mask_time_prob > 0


def spec_augment(config: Wav2Vec2Config) -> SpecAugment:
    """Return the masks of training; none if the model switches them off."""
    return SpecAugment(
        time_prob=config.mask_time_prob if config.apply_spec_augment else 0.0,
        time_length=config.mask_time_length,
        time_min_spans=config.mask_time_min_masks,
        channel_prob=config.mask_feature_prob if config.apply_spec_augment else 0.0,
        channel_length=config.mask_feature_length,
        channel_min_spans=config.mask_feature_min_masks,
    )
