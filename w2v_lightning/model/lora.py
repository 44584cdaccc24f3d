"""LoRA: instead of the attention's weights W, train a low-rank change of each, W + (alpha / rank) B A; by peft.

Source: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models" (arXiv 2106.09685).
"""

import copy
from dataclasses import dataclass

from transformers import Wav2Vec2ForCTC

from w2v_lightning.errors import InputError

ATTENTION_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")


@dataclass(frozen=True)
class Lora:
    """What is trained in the place of the attention's projections.

    Args:
        rank: of the change; 8 is 0.6 million parameters for the base models, 1.6 million for the large.
        alpha: the change is scaled by alpha / rank.
        dropout: on its input.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0


def add_lora(model: Wav2Vec2ForCTC, lora: Lora) -> None:
    """Put LoRA beside each attention projection, in place. Only that and the CTC head are trained from then on.

    The new weights change nothing at first (B is zero). Of the old ones only the projections' change their names in
    the state dict, from `q_proj.weight` to `q_proj.base_layer.weight`.

    Raises:
        InputError: peft is not installed, or a value that cannot be.
    """
    if lora.rank < 1 or not 0 <= lora.dropout < 1:
        raise InputError(f"model.lora: rank must be at least 1 and dropout in [0, 1), found {lora}.")
    try:
        import peft
    except ImportError:
        raise InputError("model.lora needs peft: pip install 'w2v-lightning[peft]'.") from None
    settings = {"r": lora.rank, "lora_alpha": lora.alpha, "lora_dropout": lora.dropout}
    peft.inject_adapter_in_model(peft.LoraConfig(**settings, target_modules=list(ATTENTION_PROJECTIONS)), model)
    model.freeze_feature_encoder()  # otherwise backward would run through it for nothing
    model.lm_head.requires_grad_(True)


def merged(model: Wav2Vec2ForCTC) -> Wav2Vec2ForCTC:
    """A model without LoRA that puts out the same: `model` itself, or a copy with the changes added to its weights."""
    if not _has_lora(model):
        return model
    model = copy.deepcopy(model)
    for layer in model.wav2vec2.encoder.layers:
        for name in ATTENTION_PROJECTIONS:
            projection = getattr(layer.attention, name)
            projection.merge()
            setattr(layer.attention, name, projection.get_base_layer())
    return model


def _has_lora(model: Wav2Vec2ForCTC) -> bool:
    return hasattr(model.wav2vec2.encoder.layers[0].attention.q_proj, "base_layer")
