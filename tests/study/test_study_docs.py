"""The commands of docs/study.md can be typed, the studies beside it can be run, and their reports are complete."""

import re
import shlex
from importlib import import_module
from pathlib import Path
from urllib.parse import unquote

import pytest

from w2v_lightning.command_line import dashed
from w2v_lightning.sagemaker import command, study_command
from w2v_lightning.study.spec import load

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
G4DN = ROOT / "configs" / "study_g4dn.yaml"
STUDIES = [path for path in sorted((DOCS / "study").glob("*.yaml")) if "cells:" in path.read_text()]
REPORTS = sorted((DOCS / "study").glob("*.md"))
COMMAND = re.compile(r"^(?:#\s+)?python -m w2v_lightning ((?:study|plan|submit) .*?)(?:\s+#.*)?$", re.MULTILINE)


def parsed(name, *args):
    """Options of a command line."""
    if name == "study":
        module, args = import_module(study_command.COMMANDS[args[0]][0]), args[1:]
    else:
        module = import_module(command.COMMANDS[name][0])
    if name in ("plan", "submit"):  # the others are options of `fit`
        return module.parse_options(args)[0]
    return module.parser().parse_args(dashed(args))


@pytest.mark.parametrize("path", [DOCS / "study.md", *STUDIES, G4DN], ids=lambda p: p.name)
def test_its_commands_are_commands(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    commands = COMMAND.findall(path.read_text())
    assert commands
    for line in commands:
        options = parsed(*shlex.split(line))
        for file in [getattr(options, "study", None), *(getattr(options, "config", None) or [])]:
            if isinstance(file, str | Path) and str(file).endswith(".yaml"):
                assert Path(file).is_file(), line


@pytest.mark.parametrize("path", REPORTS, ids=lambda path: path.name)
def test_links_and_charts_of_the_reports_exist(path):
    targets = re.findall(r"(?<!\\)\]\((.*?)\)", path.read_text())
    assert targets
    assert not [target for target in targets if not (path.parent / unquote(target)).is_file()]


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.name)
def test_the_studies_are_studies_of_this_host(path):
    study = load(path)
    assert study.where == "local"
    assert len({(cell.name, cell.repetition) for cell in study.cells}) == len(study.cells) >= 6
