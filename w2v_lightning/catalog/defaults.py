"""Defaults of jobs and plans where neither an option nor the environment says otherwise (defaults.yaml)."""

from functools import cache
from pathlib import Path
from typing import Any

import yaml

MAX_HOURS = 28 * 24  # limit of SageMaker's MaxRuntimeInSeconds for a training job


@cache
def defaults() -> dict[str, Any]:
    """Return the content of defaults.yaml."""
    return yaml.safe_load(Path(__file__).with_name("defaults.yaml").read_text(encoding="utf-8"))
