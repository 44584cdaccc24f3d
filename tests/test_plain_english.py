"""The package speaks plain English: the field's terms, and docstrings that begin with a verb or a noun."""

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*(ROOT / "w2v_lightning").rglob("*.py"), *(ROOT / "launch").rglob("*.py")])

# Private vocabulary, and what to write instead.
INSTEAD = {
    r"\bhear(s|d|ing)?\b|\bunheard\b": "transcribe, receive, input",
    r"\bgo(es|ing|ne)? on\b|\bwent on\b": "resume, continue",
    r"\banew\b": "again, from scratch",
    r"\bbehind the warm-?up\b": "after the warm-up",
    r"\b(be|was|were|is|are) had\b": "available",
    r"\bin vain\b": "cannot continue, without effect",
    r"\bshared out\b": "sharded",
    r"\bcut off\b": "truncated",
    r"(?<!\bthere )\b(is|are) no\b(?! longer| more| earlier| cell)": "is not a ..., has no ...",
    r"(?<!\bthere )\b(is|are) (?-i:none)\b": "nothing is ...",
    r"\bcome(s)? after\b": "follows",
    r"\bof which\b": "a sentence of its own",
    r"\bas far as\b": "where, if, up to",
    r"\bso many\b": "the number of",
    r"\bin the place of\b": "instead of",
}
# A summary that begins with one of these is a fragment.
FRAGMENT = re.compile(
    r"^(Of|As|For|With|Without|By|Such|So|What|All|Where|Those|These|That|One|None|Whether|How|Which|From|In|On(?!-demand)|At|To|When"
    r"|Not|Also|Only|Because|If|Is|Are|Has|Does|Do not|Says|Returns|Makes|Beside|Before|After|Around|Between|Here|There"
    r"|It)\b"
)


def texts(source: str) -> list[tuple[int, str]]:
    """(line, text) of comments, docstrings and other strings of a source file."""
    found = [
        (token.start[0], token.string)
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT and not token.string.startswith("# noqa")
    ]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            found.append((node.lineno, node.value))
    return found


def faults(source: str) -> list[str]:
    """Where a text uses private vocabulary, and what to write instead."""
    return [
        f"line {line}: {match[0]!r}: write {instead!r} in: {' '.join(text.split())[:100]}"
        for line, text in texts(source)
        for pattern, instead in INSTEAD.items()
        if (match := re.search(pattern, text, re.IGNORECASE))
    ]


def fragments(source: str) -> list[str]:
    """Summaries of docstrings that begin with neither a verb nor a noun."""
    nodes = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = [ast.get_docstring(node) for node in ast.walk(ast.parse(source)) if isinstance(node, nodes)]
    return [text.splitlines()[0] for text in docstrings if text and FRAGMENT.match(text)]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_texts_use_the_terms_of_the_field(path):
    found = faults(path.read_text(encoding="utf-8"))
    assert not found, "\n".join(found)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_docstrings_begin_with_a_verb_or_a_noun(path):
    assert not fragments(path.read_text(encoding="utf-8"))


def test_faults_are_found():
    source = '"""Of a run."""\n\nx = 1  # it goes on from there\nlog("The run is heard anew.")\n'
    assert fragments(source) == ["Of a run."]
    assert len(faults(source)) == 3
    assert not faults('"""Return the run."""\n\nmessage = "no longer heard-of"\n'.replace("heard-of", "valid"))
