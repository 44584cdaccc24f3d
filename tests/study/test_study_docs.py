"""What docs/study.md says can be typed, and the studies beside it can be run."""

import re
import shlex
from pathlib import Path

import pytest

from w2v_lightning.sagemaker.command import parse
from w2v_lightning.study.matrix import load

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
G4DN = ROOT / "configs" / "study_g4dn.yaml"
STUDIES = [path for path in sorted((DOCS / "study").glob("*.yaml")) if "cells:" in path.read_text()]
COMMAND = re.compile(r"^(?:#\s+)?python -m w2v_lightning ((?:study|plan|submit) .*?)(?:\s+#.*)?$", re.MULTILINE)


@pytest.mark.parametrize("path", [DOCS / "study.md", *STUDIES, G4DN], ids=lambda p: p.name)
def test_its_commands_are_commands(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    commands = COMMAND.findall(path.read_text())
    assert commands
    for command in commands:
        options = parse(shlex.split(command))
        for file in [getattr(options, "study", None), *(getattr(options, "config", None) or [])]:
            if isinstance(file, str | Path) and str(file).endswith(".yaml"):
                assert Path(file).is_file(), command


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.name)
def test_the_studies_are_studies_of_this_host(path):
    study = load(path)
    assert study.where == "local"
    assert len({(cell.name, cell.repetition) for cell in study.cells}) == len(study.cells) >= 6
