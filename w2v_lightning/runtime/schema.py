"""Schema: the types that the values of a JSON file must have, checked in one place.

A schema is an ordinary annotation: scalars, `list`, `dict`, unions, `Literal`, TypedDicts, whose keys may be
`NotRequired`, dataclasses, which have no other keys than their fields, and other classes, which are tested by
`isinstance`. `Annotated[T, Rule(...)]` narrows a type.
JSON's values are unbounded; here, an `int` fits in 64 bits, a `float` is finite, and a `str` can be encoded as UTF-8.
"""

import json
import math
import reprlib
from collections.abc import Callable, Iterable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NotRequired, Union, get_args, get_origin, get_type_hints, is_typeddict

from w2v_lightning.errors import InputError

Check = Callable[[Any], None]  # raises Mismatch
Accepts = Callable[[Any], bool]
LARGEST_INT = 2**62  # so that the sum of two fits in 64 bits, too


@dataclass(frozen=True)
class Rule:
    """Condition on the values of an annotated type, and its description for messages."""

    expected: str
    accepts: Accepts | None = None


def _is_moment(text: str) -> bool:
    try:
        return datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        return False


Moment = Annotated[str, Rule("a time such as 2026-01-31T12:00:00+00:00", _is_moment)]


class Mismatch(Exception):  # noqa: N818  it is part of a message, and leaves no reader of files
    """Value that is not of the schema's type; `keys` is the path to it, the innermost first."""

    def __init__(self, expected: str, value: Any) -> None:
        super().__init__(expected)
        self.expected = expected
        self.value = value
        self.keys: list[str | int] = []

    def __str__(self) -> str:
        return f"{_path(self.keys)} must be {self.expected}, found {shown(self.value)}"


class MissingKey(Mismatch):
    """Required key that an object lacks."""

    @property
    def place(self) -> str:
        key, *parents = self.keys
        return f"{key!r} in {_path(parents)}" if parents else repr(key)

    def __str__(self) -> str:
        return f"key {self.place} is missing"


def shown(value: Any) -> str:
    """Return a value of any size as a short text for a message."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = 80
    return short.repr(value)


def read_json(path: Path, remedy: str) -> Any:
    """Read a JSON file.

    Raises:
        FileNotFoundError: the file does not exist.
        InputError: it cannot be read; names the file and the remedy.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read ({error}); {remedy}") from None


def check_content(content: Any, schema: Any, path: Path | str, remedy: str) -> None:
    """Check the content of a JSON file.

    Raises:
        InputError: a value is not of the type `schema`; names the file, the key and the remedy.
    """
    try:
        check(content, schema)
    except MissingKey as error:
        raise InputError(f"{path} lacks {error.place}; {remedy}") from None
    except Mismatch as error:
        raise InputError(f"{path} has an invalid value: {error}; {remedy}") from None


def check(value: Any, schema: Any) -> None:
    """Check decoded JSON.

    Raises:
        Mismatch: it is not of the type `schema`.
    """
    checker(schema)(value)


def conforms(value: Any, schema: Any) -> bool:
    """Return True if decoded JSON is of the type `schema`."""
    try:
        check(value, schema)
    except Mismatch:
        return False
    return True


@cache
def checker(schema: Any) -> Check:
    """Return the function that checks values against `schema`; faster than `check` for many values."""
    if scalar := _scalar(schema):
        return scalar.check
    origin, arguments = get_origin(schema), get_args(schema)
    if origin is NotRequired:
        return checker(arguments[0])
    if origin in (Union, UnionType):
        return _union([checker(member) for member in arguments])
    if origin is list:
        return _container(list, enumerate, checker(*arguments))
    if origin is dict:
        return _container(dict, dict.items, checker(arguments[1]))
    if is_typeddict(schema) or is_dataclass(schema):
        return _object(schema)
    if isinstance(schema, type) and schema is not Any:  # Any is a class from Python 3.11 on
        return _Instance(schema)
    assert schema is Any, schema
    return lambda value: None


@dataclass(frozen=True)
class _Scalar:
    """Values that hold no others: which types are accepted, and under which condition."""

    expected: str
    conditions: dict[type, Accepts | None]

    def check(self, value: Any) -> None:
        accepts = self.conditions.get(type(value), _never)
        if accepts is not None and not accepts(value):
            raise Mismatch(self.expected, value)


def _never(value: Any) -> bool:
    return False


def _is_text(value: str) -> bool:
    return "\0" not in value and (value.isascii() or _is_unicode(value))


def _is_unicode(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a pair of surrogates, from an escape such as \ud800
        return False
    return True


def _is_int64(value: int) -> bool:
    return -LARGEST_INT < value < LARGEST_INT


_SCALARS = {
    str: _Scalar("a string", {str: _is_text}),
    bool: _Scalar("true or false", {bool: None}),
    int: _Scalar("a whole number", {int: _is_int64}),
    float: _Scalar("a number", {float: math.isfinite, int: _is_int64}),
    None: _Scalar("null", {NoneType: None}),
    NoneType: _Scalar("null", {NoneType: None}),
}


def _scalar(schema: Any) -> _Scalar | None:
    """Return the scalar that a schema denotes; None if it is of another kind."""
    origin, arguments = get_origin(schema), get_args(schema)
    if origin is Literal:
        return _Scalar(" or ".join(map(repr, arguments)), {str: arguments.__contains__})
    if origin is Annotated and (base := _scalar(arguments[0])):
        rule: Rule = arguments[1]
        return _Scalar(rule.expected, {kind: _both(accepts, rule.accepts) for kind, accepts in base.conditions.items()})
    if origin in (Union, UnionType):
        members = [_scalar(member) for member in arguments]
        scalars = [member for member in members if member]
        if len(scalars) == len(members):
            expected = " or ".join(scalar.expected for scalar in scalars)
            return _Scalar(expected, {k: v for scalar in reversed(scalars) for k, v in scalar.conditions.items()})
    return None if isinstance(schema, UnionType) else _SCALARS.get(schema)


def _both(first: Accepts | None, second: Accepts | None) -> Accepts | None:
    return (lambda value: first(value) and second(value)) if first and second else first or second


def _union(checks: list[Check]) -> Check:
    def check(value: Any) -> None:
        mismatches = []
        for check_member in checks:
            try:
                return check_member(value)
            except Mismatch as mismatch:
                mismatches.append(mismatch)
        deepest = max(mismatches, key=lambda mismatch: len(mismatch.keys))
        raise deepest if deepest.keys else Mismatch(" or ".join(m.expected for m in mismatches), value)

    return check


@dataclass(frozen=True)
class _Instance:
    """Values of a class that JSON does not have, such as a tensor."""

    kind: type

    def __call__(self, value: Any) -> None:
        if not isinstance(value, self.kind):
            raise Mismatch(f"a {self.kind.__name__}", value)


_NAMES: dict[type, str] = {list: "a list", dict: "a JSON object"}


def _container(kind: type, pairs: Callable[[Any], Iterable[tuple[str | int, Any]]], check_item: Check) -> Check:
    def check(value: Any) -> None:
        if not isinstance(value, kind):
            raise Mismatch(_NAMES[kind], value)
        for key, item in pairs(value):
            try:
                check_item(item)
            except Mismatch as mismatch:
                mismatch.keys.append(key)
                raise

    return check


def _object(schema: Any) -> Check:
    hints = get_type_hints(schema, include_extras=True)
    checks = [(key, checker(kind)) for key, kind in hints.items()]
    required = _required(schema)
    names = frozenset(hints) if is_dataclass(schema) else None

    def check(value: Any) -> None:
        if not isinstance(value, dict):
            raise Mismatch(_NAMES[dict], value)
        if names is not None and (unknown := value.keys() - names):
            raise Mismatch(f"an object without the key {min(unknown)!r}", value)
        key = ""
        try:
            for key, check_value in checks:
                if key in value:
                    check_value(value[key])
                elif key in required:
                    raise MissingKey("present", None)
        except Mismatch as mismatch:
            mismatch.keys.append(key)
            raise

    return check


def _required(schema: Any) -> frozenset[str]:
    if is_typeddict(schema):
        return schema.__required_keys__
    return frozenset(f.name for f in fields(schema) if f.default is MISSING and f.default_factory is MISSING)


def _path(keys: list[str | int]) -> str:
    path = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in reversed(keys))
    return path.lstrip(".") or "its content"
