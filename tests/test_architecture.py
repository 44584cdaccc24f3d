"""The rules of docs/architecture.md, as tests."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "w2v_lightning"
SOURCES = sorted(PACKAGE.rglob("*.py"))

# Data flows one way: a part may import from itself and from the layers before its own, not from its neighbours.
LAYERS = [
    {"errors"},
    {"command_line", "compat"},
    {"runtime"},
    {"text", "reporting", "evaluation"},
    {"data"},
    {"model", "optim", "prepare"},
    {"training"},
    {"module", "pretraining"},
    {"strategies"},
    {"telemetry"},
    {"checkpoints"},
    {"callbacks", "inference", "check"},
    {"bench", "init"},
    {"cli"},
    {"config"},
    {"catalog"},
    {"perf_model"},
    {"planner"},
    {"study"},
    {"sagemaker"},
    {"commands"},
    {"completion"},
    {"__main__"},
]
LAYER_OF = {part: number for number, parts in enumerate(LAYERS) for part in parts}


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def name_of(path: Path) -> str:
    """Dotted name of a module."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in SOURCES}


def imported(path: Path, is_lazy_counted: bool = True) -> Iterator[str]:
    """Modules of the package that a source file imports; those within functions only where they are counted."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    lazy = {id(inner) for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in lazy and not is_lazy_counted:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        assert not any(name.split(".")[0] == "launch" for name in names), f"{path} imports launch"
        for name in names:
            if name.startswith("w2v_lightning."):
                yield name if name in MODULES else name.rpartition(".")[0]


@pytest.mark.parametrize(
    "path", [p for p in SOURCES if part_of(p) != "__init__"], ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_imports_go_one_way(path):
    part = part_of(path)
    assert part in LAYER_OF, f"{part} has no layer"
    others = {name.split(".")[1] for name in imported(path) if name.count(".")} - {part}
    against = {other for other in others if LAYER_OF[other] >= LAYER_OF[part]}
    assert not against, f"{part} is in layer {LAYER_OF[part]} and imports {against}"


def test_no_modules_import_each_other_in_a_circle():
    """Within packages, too; between packages the layers forbid it."""
    graph = {name: set(imported(path)) for name, path in MODULES.items() if name != "w2v_lightning"}
    circles = circles_of({name: targets & graph.keys() - {name} for name, targets in graph.items()})
    assert not circles


def circles_of(graph: dict[str, set[str]]) -> list[str]:
    """What is left after modules that import nothing more are taken away, again and again."""
    left = dict(graph)
    while leaves := [name for name, targets in left.items() if not targets & left.keys()]:
        for name in leaves:
            del left[name]
    needed = defaultdict(set)
    for name, targets in left.items():
        for target in targets:
            needed[target].add(name)
    while roots := [name for name in left if not needed[name] & left.keys()]:
        for name in roots:
            del left[name]
    return sorted(left)


def test_a_circle_is_found():
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set(), "e": {"a"}}
    assert circles_of(graph) == ["b", "c"]


def test_no_package_is_more_than_a_sixth_of_the_lines():
    lines = defaultdict(int)
    for path in SOURCES:
        lines[part_of(path)] += len(path.read_text(encoding="utf-8").splitlines())
    largest = max(lines, key=lines.__getitem__)
    assert lines[largest] < sum(lines.values()) / 6, f"{largest} has {lines[largest]} of {sum(lines.values())} lines"


def test_the_packages_top_level_resolves_its_names_lazily():
    code = (PACKAGE / "__init__.py").read_text()
    # runtime/cores.py imports no torch: it is what must run before torch is loaded.
    heavy = r"^(import|from) (torch|lightning|transformers|w2v_lightning(?!\.runtime\.cores import))"
    assert not re.search(heavy, code, re.MULTILINE)


def test_evaluation_and_model_do_not_know_the_data_module():
    for path in SOURCES:
        if part_of(path) in ("model", "evaluation", "module"):
            assert "datamodule" not in path.read_text().replace("trainer.datamodule", "")
