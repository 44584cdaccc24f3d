"""LoRA by peft: train a low-rank change of each attention weight W, W + (alpha / rank) B A, instead of W itself.

Source: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models" (arXiv 2106.09685).
"""

import copy
from dataclasses import dataclass
from typing import cast

from torch import nn
from transformers import Wav2Vec2ForCTC

from w2v_lightning.errors import InputError
from w2v_lightning.model.layers import EncoderLayer

ATTENTION_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")


@dataclass(frozen=True)
class Lora:
    """Settings of LoRA for the attention projections.

    Args:
        rank: rank of the change; 8 has 0.6 million parameters for the base models, 1.6 million for the large ones.
        alpha: scale of the change, which is multiplied by alpha / rank.
        dropout: dropout on the input of the change.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0


def add_lora(model: Wav2Vec2ForCTC, lora: Lora) -> None:
    """Add LoRA to each attention projection, in place. Only LoRA and the CTC head are trained from then on.

    The new weights do not change the output at first (B is zero). In the state dict, only the names of the projections
    change, from `q_proj.weight` to `q_proj.base_layer.weight`.

    Raises:
        InputError: peft is not installed, or a value is invalid.
    """
    if lora.rank < 1 or not 0 <= lora.dropout < 1:
        raise InputError(f"model.lora: rank must be at least 1 and dropout in [0, 1), found {lora}.")
    try:
        import peft
    except ImportError:
        raise InputError("model.lora needs peft: pip install 'w2v-lightning[peft]'.") from None
    config = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # annotated int, but only used as a factor
        lora_dropout=lora.dropout,
        target_modules=list(ATTENTION_PROJECTIONS),
    )
    peft.inject_adapter_in_model(config, model)
    model.freeze_feature_encoder()  # otherwise backward would run through it although nothing there is trained
    model.lm_head.requires_grad_(True)


def merged(model: Wav2Vec2ForCTC) -> Wav2Vec2ForCTC:
    """Return a model with the same output but no LoRA: `model`, or a copy with the changes added to the weights."""
    if not _has_lora(model):
        return model
    model = copy.deepcopy(model)
    for layer in model.wav2vec2.encoder.layers:
        for name in ATTENTION_PROJECTIONS:
            projection = getattr(_attention(layer), name)
            projection.merge()
            setattr(_attention(layer), name, projection.get_base_layer())
    return model


def _has_lora(model: Wav2Vec2ForCTC) -> bool:
    return hasattr(_attention(model.wav2vec2.encoder.layers[0]).q_proj, "base_layer")


def _attention(layer: nn.Module) -> nn.Module:
    return cast(EncoderLayer, layer).attention
