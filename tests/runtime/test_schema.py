"""Schema: decoded JSON is of the annotated types, or the message names the key."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import pytest

from w2v_lightning.errors import InputError
from w2v_lightning.runtime.schema import Mismatch, Moment, Rule, check, check_content, read_json, shown


@dataclass
class Point:
    x: float
    y: float = 0.0


class Shape(TypedDict):
    name: str
    points: list[Point]
    kind: NotRequired[Literal["open", "closed"]]
    sides: NotRequired[Annotated[int, Rule("a whole number above 2", lambda number: number > 2)] | None]
    colours: NotRequired[dict[str, float | None]]
    drawn: NotRequired[Moment]
    is_flat: NotRequired[bool]
    other: NotRequired[Any]
    parent: NotRequired[str | list[str]]


GOOD = {"name": "a", "points": [{"x": 1}, {"x": 1.5, "y": -2}]}


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"sides": 3, "kind": "open", "is_flat": False, "unknown": float("nan")},
        {"sides": None, "colours": {"red": 0.5, "blue": None}, "other": [{}]},
        {"drawn": "2026-01-31T12:00:00+00:00", "parent": ["b", "c"], "points": []},
    ],
)
def test_values_of_the_annotated_types_pass(change):
    check(GOOD | change, Shape)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "its content must be a JSON object, found None"),
        ([GOOD], "its content must be a JSON object, found [{'name': 'a', 'points': [{'x': 1}, {'x': 1.5, 'y': -2}]}]"),
        ({"points": []}, "key 'name' is missing"),
        (GOOD | {"points": [{"x": 1}, {"y": 1}]}, "key 'x' in points[1] is missing"),
        (GOOD | {"points": [{"x": "1"}]}, "points[0].x must be a number, found '1'"),
        (GOOD | {"points": [{"x": True}]}, "points[0].x must be a number, found True"),
        (GOOD | {"points": [{"x": float("inf")}]}, "points[0].x must be a number, found inf"),
        (GOOD | {"points": [{"x": 2**70}]}, f"points[0].x must be a number, found {2**70}"),
        (GOOD | {"points": [{"x": 1, "z": 1}]}, "points[0] must be an object without the key 'z', found {'x': 1,"),
        (GOOD | {"points": {}}, "points must be a list, found {}"),
        (GOOD | {"name": "a\ud800"}, r"name must be a string, found 'a\ud800'"),
        (GOOD | {"name": "a\0"}, r"name must be a string, found 'a\x00'"),
        (GOOD | {"kind": "other"}, "kind must be 'open' or 'closed', found 'other'"),
        (GOOD | {"kind": ["open"]}, "kind must be 'open' or 'closed', found ['open']"),
        (GOOD | {"sides": 2}, "sides must be a whole number above 2 or null, found 2"),
        (GOOD | {"sides": 3.0}, "sides must be a whole number above 2 or null, found 3.0"),
        (GOOD | {"colours": {"red": "x"}}, "colours.red must be a number or null, found 'x'"),
        (GOOD | {"drawn": "yesterday"}, "drawn must be a time such as"),
        (GOOD | {"drawn": "2026-01-31"}, "drawn must be a time such as"),  # a time without a zone cannot be compared
        (GOOD | {"is_flat": 1}, "is_flat must be true or false, found 1"),
        (GOOD | {"parent": [1]}, "parent[0] must be a string, found 1"),
        (GOOD | {"parent": 1}, "parent must be a string or a list, found 1"),
    ],
)
def test_another_type_is_named_with_key_and_value(value, message):
    with pytest.raises(Mismatch) as raised:
        check(value, Shape)
    assert str(raised.value).startswith(message)


@pytest.mark.parametrize(
    "value", ["x" * 10**6, list(range(10**5)), {str(n): n for n in range(10**5)}, [[[[[[[[[]]]]]]]]]]
)
def test_a_value_of_any_size_is_shown_in_a_few_words(value):
    assert len(shown(value)) < 120


def test_content_is_named_with_file_and_remedy(tmp_path):
    with pytest.raises(InputError, match=r"^a\.json lacks 'name'; remove it$"):
        check_content({}, Shape, "a.json", "remove it")
    with pytest.raises(InputError, match=r"^a\.json has an invalid value: name must be a string, found 1; remove it$"):
        check_content({"name": 1}, Shape, "a.json", "remove it")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 10**5, b"1" * 10**4])
def test_a_file_that_is_not_json_is_named(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.json cannot be read \(.*\); remove it$"):
        read_json(tmp_path / "a.json", "remove it")
