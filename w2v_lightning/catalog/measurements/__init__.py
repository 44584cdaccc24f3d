"""Measurements that ship with the package: the run.json of studies, a folder for each study (docs/study.md).

`plan` and `submit` use them unless W2V_LIGHTNING_STUDY or --study names others.
"""

import os
from pathlib import Path

MEASUREMENTS = Path(__file__).parent
VARIABLE = "W2V_LIGHTNING_STUDY"


def study_folder() -> Path:
    """Where the runs are that are planned by, if nobody says otherwise."""
    return Path(os.environ.get(VARIABLE) or MEASUREMENTS)
