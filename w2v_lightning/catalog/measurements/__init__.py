"""Measurements that ship with the package: run.json files, one folder per study (docs/study.md).

`plan` and `submit` use them unless W2V_LIGHTNING_STUDY, or --study of `plan`, names another folder.
"""

import os
from pathlib import Path

MEASUREMENTS = Path(__file__).parent
VARIABLE = "W2V_LIGHTNING_STUDY"


def study_folder() -> Path:
    """Return the folder of the measurements that `plan` uses by default."""
    return Path(os.environ.get(VARIABLE) or MEASUREMENTS)
