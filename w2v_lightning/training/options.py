"""Typed hyper-parameters that fine-tuning and pre-training share."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self


@dataclass(frozen=True)
class TrainingOptions:
    """Options of both modules, under the names of their constructors' arguments; `model.*` on the command line.

    The constructors declare types, defaults and help, because both LightningCLI and checkpoints go by their signatures;
    the defaults of fine-tuning and pre-training differ. Everything computed from the options is here.
    """

    pretrained: str | None
    config: Mapping[str, Any] | None
    learning_rate: float
    warmup: float
    adam_betas: tuple[float, float]
    adam_eps: float
    weight_decay: float
    mask_time_prob: float
    mask_time_length: int
    mask_channel_prob: float
    mask_channel_length: int
    layerdrop: float
    activation_dropout: float
    attention_dropout: float
    hidden_dropout: float
    feat_proj_dropout: float
    seed: int

    @classmethod
    def from_arguments(cls, arguments: Mapping[str, Any]) -> Self:
        """Return the options among a constructor's arguments, given as its `locals()`."""
        return cls(**{field.name: arguments[field.name] for field in fields(cls)})

    def model_config(self) -> dict[str, Any]:
        """Return the changes to transformers' Wav2Vec2Config, where `config` has precedence."""
        return {**self._named_changes(), **(self.config or {})}

    def _named_changes(self) -> dict[str, Any]:
        """Return the options that Wav2Vec2Config has too, under its names."""
        return {
            "mask_time_prob": self.mask_time_prob,
            "mask_time_length": self.mask_time_length,
            "mask_time_min_masks": 2,
            "mask_feature_prob": self.mask_channel_prob,
            "mask_feature_length": self.mask_channel_length,
            "layerdrop": self.layerdrop,
            "activation_dropout": self.activation_dropout,
            "attention_dropout": self.attention_dropout,
            "hidden_dropout": self.hidden_dropout,
            "feat_proj_dropout": self.feat_proj_dropout,
        }
