"""Folder of the user's cache, for what is expensive to make and may be deleted at any time."""

import os
from pathlib import Path


def cache_root() -> Path:
    """Folder of cached manifests, models, prices and the demo corpus: $W2V_LIGHTNING_CACHE, or in the user's cache."""
    if folder := os.environ.get("W2V_LIGHTNING_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "w2v_lightning"
