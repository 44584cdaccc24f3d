"""Fuzzing of readers: damaged copies of a good file, and what a reader makes of each.

The readers run in a child process, because a damaged file may end it, or keep it busy for ever. The i-th copy depends
on the good file and on i alone, so a failure is repeated with `mutated(case, i)`.
"""

import copy
import io
import json
import multiprocessing
import os
import random
import resource
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from w2v_lightning.errors import InputError

LIMIT_S = 10.0  # a reader takes milliseconds
MEMORY_BYTES = 4 * 2**30
ODD_VALUES: list[Any] = [
    *(None, True, False, 0, -1, 7, 1.5, -0.5, 1e308, 10**25, 10**400, float("nan"), float("inf")),
    *("", "x", "0", "é", "\ud800", "a\0b", "../x", "x" * 300),
    *([], [1], ["x"], [[]], {}, {"a": 1}, {"a": {"b": []}}),
]


@dataclass
class Reported(Exception):  # noqa: N818  an outcome, raised to leave a reader
    """Fault that a reader reports before it continues without the damaged part."""

    how: str


@dataclass(frozen=True)
class Case:
    """Good file, and its reader.

    Args:
        path: the file; what else the reader needs is beside it.
        read: returns what the file holds, in plain values; raises InputError, or Reported.
        copies: number of damaged copies to try.
        json_lines: the file is JSON, line by line, or as a whole; None: another format.
        is_protected: a checksum tells every change of the content.
    """

    path: Path
    read: Callable[[Path], Any]
    copies: int
    json_lines: bool | None = None
    is_protected: bool = False


@dataclass
class Outcomes:
    """Counts of outcomes, and descriptions of the failures."""

    counts: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


def mutated(case: Case, i: int) -> bytes:
    """Return the i-th damaged copy."""
    rng = random.Random(f"{case.path.name} {i}")
    content = case.path.read_bytes()
    if case.json_lines is not None and rng.random() < 0.7:
        return _with_other_values(content, case.json_lines, rng)
    for _ in range(rng.choice([1, 1, 2, 8])):
        content = rng.choice([_flipped, _flipped, _truncated, _inserted, _repeated, _zeroed])(content, rng)
    return content


def outcomes(case: Case) -> Outcomes:
    """Read the good file, and each damaged copy under its name in a folder of its own."""
    outcomes = Outcomes()
    content = case.path.read_bytes()
    first = 0
    while first < case.copies and outcomes.counts["hang"] < 3:
        ours, theirs = multiprocessing.Pipe()
        child = multiprocessing.get_context("fork").Process(target=_read_copies, args=(case, first, theirs))
        child.start()
        theirs.close()
        first = _collect(case, first, ours, outcomes)
        child.kill()
        child.join()
        case.path.write_bytes(content)  # a child that was killed has left a damaged copy
    return outcomes


def _collect(case: Case, first: int, connection: Any, outcomes: Outcomes) -> int:
    """Collect what a child reports until it ends; return the number of the next copy."""
    for i in range(first, case.copies):
        try:
            outcome, detail = connection.recv() if connection.poll(LIMIT_S) else ("hang", f"over {LIMIT_S:g} s")
        except EOFError:
            outcome, detail = "crash", "the process ended"
        outcomes.counts[outcome] += 1
        if detail:
            outcomes.failures.append(f"{case.path.name} {i}: {outcome}: {detail}")
        if outcome in ("hang", "crash"):
            return i + 1
    return case.copies


def _read_copies(case: Case, first: int, connection: Any) -> None:
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + MEMORY_BYTES,) * 2)  # a damaged size must not fill the machine
    expected = case.read(case.path)
    content = case.path.read_bytes()
    for i in range(first, case.copies):
        copied = mutated(case, i)
        case.path.write_bytes(copied)
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            connection.send(_outcome(case, expected, copied == content))
        case.path.write_bytes(content)
    connection.close()
    os._exit(0)  # without the parent's exit handlers


def _outcome(case: Case, expected: Any, is_same: bool) -> tuple[str, str]:
    """Return the outcome, and what is wrong with it if it is a failure."""
    try:
        value = case.read(case.path)
    except Reported:
        return "reported", ""
    except InputError as error:
        text = str(error)
        is_named = case.path.name in text or str(case.path.parent) in text
        if not is_named or "\n" in text.strip() or len(text) > 2000:
            return "an error without a name, or not in a line", text[:300]
        return ("error", "") if not is_same else ("error for a good file", text[:300])
    except BaseException as error:  # whatever it is, a user would see it as a traceback
        return "traceback", f"{type(error).__name__}: {str(error)[:300]}"
    if value == expected:
        return "unchanged", ""
    return ("other value", "") if not case.is_protected else ("other value in silence", repr(value)[:300])


def _with_other_values(content: bytes, json_lines: bool, rng: random.Random) -> bytes:
    """Replace, remove or rename a value of a JSON file, at any depth."""
    lines = content.decode().splitlines() if json_lines else [content.decode()]
    number = rng.randrange(len(lines))
    value = json.loads(lines[number])
    for _ in range(rng.choice([1, 1, 2])):
        value = _changed(value, rng)
    lines[number] = "[" * 100_000 if rng.random() < 0.01 else json.dumps(value)
    return "\n".join(lines).encode()


def _changed(value: Any, rng: random.Random) -> Any:
    if isinstance(value, dict | list) and value and rng.random() < 0.9:
        changed = copy.copy(value)
        key = rng.choice(list(value) if isinstance(value, dict) else range(len(value)))
        if rng.random() < 0.15:
            del changed[key]
        else:
            changed[key] = _changed(value[key], rng)
        return changed
    return rng.choice(ODD_VALUES)


def _flipped(content: bytes, rng: random.Random) -> bytes:
    if not content:
        return content
    at = rng.randrange(len(content)) if rng.random() < 0.5 else rng.randrange(min(len(content), 200))
    return content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]


def _truncated(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content) + 1)]


def _inserted(content: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(content) + 1)
    return content[:at] + rng.choice([b"\0", b"\xff", b"\n", b'"', b"\t", rng.randbytes(20)]) + content[at:]


def _repeated(content: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(content) + 1)
    return content + content[start : start + 500]


def _zeroed(content: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(content) + 1)
    part = content[start : start + rng.randrange(1, 500)]
    return content[:start] + bytes(len(part)) + content[start + len(part) :]
