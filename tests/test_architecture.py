"""The rules of docs/architecture.md, as tests."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "w2v_lightning"
SOURCES = sorted(PACKAGE.rglob("*.py"))

# Data flows one way: a part may import from its own layer and from those before it.
LAYERS = [
    {"errors", "hardware", "precision", "sigterm"},
    {"text", "tokenizer"},
    {"data", "evaluation"},
    {"model", "optim", "prepare", "recordings"},
    {"monitors", "planned", "recogniser"},
    {"module", "pretraining"},
    {"callbacks", "checkpoints", "strategies", "transcribe", "check", "bench", "recovery"},
    {"cli"},
    {"__main__"},
]
LAYER_OF = {part: number for number, parts in enumerate(LAYERS) for part in parts}


def part_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_parts(path):
    """Parts of the package that a source file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            is_package = node.module == "w2v_lightning"
            names = [f"{node.module}.{alias.name}" for alias in node.names] if is_package else [node.module]
        yield from (name.split(".")[1] for name in names if name.startswith("w2v_lightning."))
        assert not any(name.split(".")[0] == "launch" for name in names), f"{path} imports launch"


@pytest.mark.parametrize(
    "path", [p for p in SOURCES if part_of(p) != "__init__"], ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_imports_go_one_way(path):
    own = LAYER_OF[part_of(path)]
    against = {part for part in imported_parts(path) if part in LAYER_OF and LAYER_OF[part] > own}
    assert not against, f"{part_of(path)} is layer {own} and imports {against}"


def test_the_packages_top_level_resolves_its_names_lazily():
    code = (PACKAGE / "__init__.py").read_text()
    assert not re.search(r"^(import|from) (torch|lightning|transformers|w2v_lightning)", code, re.MULTILINE)


def test_evaluation_and_model_do_not_know_the_data_module():
    for path in SOURCES:
        if part_of(path) in ("model", "evaluation", "module"):
            assert "datamodule" not in path.read_text().replace("trainer.datamodule", "")
