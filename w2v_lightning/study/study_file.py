"""study.yaml as it stands: reading it, checking keys and values, and multiplying out its lists."""

import difflib
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from w2v_lightning.errors import InputError

EXAMPLE = "configs/study_g4dn.yaml is an example"


def read(path: Path) -> dict[str, Any]:
    """The file as a mapping with a list `cells`, each of them a mapping.

    Raises:
        InputError: it is not there, no YAML, or not so.
    """
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file; {EXAMPLE}.") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(found, dict) or not isinstance(found.get("cells"), list) or not found["cells"]:
        raise InputError(f"{path}: a study is a mapping with a list `cells`; {EXAMPLE}.")
    for number, cell in enumerate(found["cells"], start=1):
        if not isinstance(cell, dict) or not cell:
            raise InputError(
                f"{path}: cells, number {number} is {cell!r}; give a mapping, such as {{devices: [1, 2]}}."
            )
    return found


def expanded(tree: Any) -> list[Any]:
    """One tree for each choice of an item from every list; a list in a list is a value."""
    if isinstance(tree, dict):
        return [dict(zip(tree, values, strict=True)) for values in product(*map(expanded, tree.values()))]
    if isinstance(tree, list):
        return [each for item in tree for each in ([item] if isinstance(item, list) else expanded(item))]
    return [tree]


def check_keys(place: str, found: Mapping[str, Any], known: Sequence[str]) -> None:
    """
    Raises:
        InputError: there is a key that is not known; names the nearest one that is.
    """
    for key in found:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
            advice = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}."
            raise InputError(f"{place}: there is no key {key!r} here; {advice}")


def table(place: str, found: Mapping[str, Any], key: str, known: Sequence[str]) -> dict[str, Any]:
    """A mapping within the file whose keys are units; empty where there is none.

    Raises:
        InputError: it is something else.
    """
    value = found.get(key) or {}
    if not isinstance(value, dict):
        raise InputError(f"{place}: {key} is {value!r}; name the unit: {key}: {{{known[0]}: ...}}.")
    check_keys(f"{place}, {key}", value, known)
    return value


def one_of(place: str, found: Mapping[str, Any], key: str, choices: Sequence[str]) -> str:
    """A word, the first of `choices` where none is given.

    Raises:
        InputError: it is another one.
    """
    value = found.get(key, choices[0])
    if value not in choices:
        raise InputError(f"{place}: {key} is {value!r}; choose {' or '.join(choices)}.")
    return value


def whole(place: object, found: Mapping[str, Any], key: str, default: int | None) -> int | None:
    """How many of something.

    Raises:
        InputError: it is no whole number from 1 on.
    """
    value = found.get(key)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"{place}: {key} is {value!r}; give a whole number from 1 on.")
    return value


def quantity(place: object, found: Mapping[str, Any], key: str, default: float | None, may_be_0: bool = False) -> Any:
    """A rate or a time, in the unit that its key names.

    Raises:
        InputError: it is no such number.
    """
    value = found.get(key)
    if value is None:
        return default
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 <= value < float("inf") or not (value or may_be_0):
        least = "0 or more" if may_be_0 else "more than 0"
        raise InputError(f"{place}: {key} is {value!r}; give a number, {least}, in the unit that the key names.")
    return float(value)
