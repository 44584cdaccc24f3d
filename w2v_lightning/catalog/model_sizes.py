"""Size of a wav2vec2 model, estimated from its config or the name of its checkpoint, without downloading it."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Size:
    """Published size of wav2vec2.

    Args:
        name: name of the size, such as "large".
        name_pattern: regular expression that matches names of such checkpoints.
        parameters: number of parameters.
        hidden_size, num_hidden_layers, num_attention_heads, intermediate_size: options of transformers' Wav2Vec2Config.
    """

    name: str
    name_pattern: str
    parameters: float
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int

    @property
    def config(self) -> dict[str, int]:
        """Options of Wav2Vec2Config for a model of this size."""
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
    """Return the size nearest to the configured hidden size, else the size in the checkpoint's name, else base."""
    if width := (model.get("config") or {}).get("hidden_size"):
        return min(SIZES, key=lambda size: abs(size.hidden_size - width))
    return _by_name(model) or BASE


def layers_of(model: Mapping[str, Any]) -> int:
    """Return the number of transformer layers."""
    return (model.get("config") or {}).get("num_hidden_layers") or size_of(model).num_hidden_layers


def width_of(model: Mapping[str, Any]) -> int:
    """Return the hidden size."""
    return (model.get("config") or {}).get("hidden_size") or size_of(model).hidden_size


def nearest_size(parameters: float) -> Size:
    """Return the size whose number of parameters is nearest, by ratio."""
    return min(SIZES, key=lambda size: abs(math.log(size.parameters / parameters)))


def size_warning(model: Mapping[str, Any]) -> str | None:
    """Return a warning if neither config nor name tells the size of a pretrained model, else None."""
    pretrained, has_width = model.get("pretrained"), (model.get("config") or {}).get("hidden_size")
    if pretrained is None or has_width or _by_name(model):
        return None
    names = ", ".join(size.name for size in reversed(SIZES))
    return (
        f"{pretrained} is assumed to be a base model, because its name contains none of {names}; a larger model needs"
        " more time and memory"
    )


def _by_name(model: Mapping[str, Any]) -> Size | None:
    name = str(model.get("pretrained") or "")
    return next((size for size in SIZES if re.search(size.name_pattern, name, re.IGNORECASE)), None)
