"""How large a wav2vec2 is, by what a config says of it: a pretrained one is not fetched, its name has to tell."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Size:
    """One of the sizes that wav2vec2 has been trained in.

    Args:
        name: such as "large".
        named: a pattern of what names of such models contain.
        parameters: how many.
        hidden_size, num_hidden_layers, num_attention_heads, intermediate_size: as of transformers' Wav2Vec2Config.
    """

    name: str
    named: str
    parameters: float
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int

    @property
    def config(self) -> dict[str, int]:
        """For Wav2Vec2Config."""
        names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
        return {name: getattr(self, name) for name in names}


BASE = Size("base", "base", 95e6, 768, 12, 12, 3072)
LARGE = Size("large", "large|lv60|300m", 317e6, 1024, 24, 16, 4096)
SIZES = (
    Size("2B", r"(?<![a-z\d])2b(?![a-z\d])", 2159e6, 1920, 48, 16, 7680),
    Size("1B", r"(?<![a-z\d])1b(?![a-z\d])", 963e6, 1280, 48, 16, 5120),
    LARGE,
    BASE,
)


def size_of(model: Mapping[str, Any]) -> Size:
    """By the model's width where the config gives one, else by what its name says; base's where that says nothing."""
    if width := (model.get("config") or {}).get("hidden_size"):
        return min(SIZES, key=lambda size: abs(size.hidden_size - width))
    return _by_name(model) or BASE


def layers_of(model: Mapping[str, Any]) -> int:
    return (model.get("config") or {}).get("num_hidden_layers") or size_of(model).num_hidden_layers


def width_of(model: Mapping[str, Any]) -> int:
    return (model.get("config") or {}).get("hidden_size") or size_of(model).hidden_size


def like(parameters: float) -> Size:
    """The size of a model of so many parameters."""
    return min(SIZES, key=lambda size: abs(math.log(size.parameters / parameters)))


def doubt(model: Mapping[str, Any]) -> str | None:
    """What has to be said where nothing tells the size of a pretrained model."""
    pretrained, has_width = model.get("pretrained"), (model.get("config") or {}).get("hidden_size")
    if pretrained is None or has_width or _by_name(model):
        return None
    names = ", ".join(size.name for size in reversed(SIZES))
    taken = f"{pretrained} is taken for a base model, since its name has none of {names}"
    return f"{taken}; a larger one takes longer and more memory"


def _by_name(model: Mapping[str, Any]) -> Size | None:
    name = str(model.get("pretrained") or "")
    return next((size for size in SIZES if re.search(size.named, name, re.IGNORECASE)), None)
