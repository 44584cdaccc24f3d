"""Study files (study.yaml): their schema, and how they are read."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from w2v_lightning.errors import InputError, did_you_mean

EXAMPLE = "configs/study_g4dn.yaml is an example"
NAME = r"[a-zA-Z0-9][\w.-]*"

Count = Annotated[int, Field(ge=1, le=100_000)]  # bounded, because each is a list of cells or processes in memory
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Delay = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Section(BaseModel):
    """Mapping of a study file: unknown keys are errors, and a string is not taken for a number."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


Section = TypeVar("Section", bound=_Section)


class Link(_Section):
    """Network between emulated hosts; the delay is one way."""

    mbit_per_s: Rate
    delay_ms: Delay = 0.0


class Storage(_Section):
    """Emulated storage."""

    mbit_per_s: Rate | None = None


class Shared(_Section):
    """Keys that a study has for all cells, and a cell for itself."""

    options: dict[str, Any] = {}
    steps: Count | None = None
    epochs: Count | None = None


class LocalCell(Shared):
    """Cell of processes or devices of this host; every key may be a list."""

    devices: Count = 1
    hosts: Count = 1
    link: Link | None = None
    storage: Storage | None = None
    threads: Count = 1
    precision: str = "auto"


class JobCell(Shared):
    """Cell of SageMaker instances; every key may be a list."""

    instance_type: str
    count: Count = 1
    pricing: Literal["on-demand", "spot"] = "on-demand"
    input_mode: str | None = None
    precision: str = "auto"


class StudyFile(Shared):
    """Study file."""

    config: str | list[str] | None = None
    cells: list[dict[str, Any]]
    name: Annotated[str, Field(pattern=f"^{NAME}$")] | None = None
    repetitions: Count = 1
    quota: Count | None = None
    max_hours: Rate | None = None
    region: str | None = None
    role: str | None = None
    data: str | None = None
    output: str | None = None
    input_mode: str | None = None
    image: str | None = None
    volume_gb: Count | None = None
    max_wait_hours: Rate | None = None


def read(path: Path) -> StudyFile:
    """Read a study file; its cells are not parsed yet, because any value within them may be a list.

    Raises:
        InputError: the file, a key or a value of it is wrong; names it and the remedy.
    """
    return parse(str(path), StudyFile, _content(path))


def _content(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: file not found; {EXAMPLE}.") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict) or not isinstance(content.get("cells"), list) or not content["cells"]:
        raise InputError(f"{path}: a study is a mapping with a list `cells`; {EXAMPLE}.")
    return content


def parse(place: str, section: type[Section], content: object) -> Section:
    """Return a section of the file.

    Raises:
        InputError: a key or value is wrong; names the first one, and what would be right.
    """
    try:
        return section.model_validate(content)
    except ValidationError as error:
        first = next((each for each in error.errors() if each["type"] == "extra_forbidden"), error.errors()[0])
        raise InputError(f"{place}: {_explained(first, section)}") from None


def _explained(error: Any, section: type[BaseModel]) -> str:
    if error["loc"][0] == "cells":
        return f"cells, number {error['loc'][1] + 1} is {error['input']!r}: {_small(error['msg'])}."
    key = ".".join(map(str, error["loc"]))
    known = _keys(section, error["loc"][:-1])
    if error["type"] == "extra_forbidden":
        suggestion = did_you_mean(str(error["loc"][-1]), known)
        return f"unknown key {key!r}" + (suggestion or f"; known keys are {', '.join(known)}.")
    if error["type"] == "missing":
        return f"{key} is missing."
    return f"{key} is {error['input']!r}: {_small(error['msg'])}."


def _small(sentence: str) -> str:
    return sentence[0].lower() + sentence[1:]


def _keys(section: type[BaseModel], within: Sequence[Any]) -> list[str]:
    """Return the names of the keys of a section, or of the section within it that a place names."""
    inner: dict[str, type[BaseModel]] = {"link": Link, "storage": Storage}
    chosen: type[BaseModel] = inner.get(str(within[0]), section) if within else section
    return list(chosen.model_fields)
