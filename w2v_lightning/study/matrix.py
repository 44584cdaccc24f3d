"""study.yaml: what a study runs, as a list of cells. Any list in one of its `cells` is an axis of a product."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from w2v_lightning.catalog.defaults import defaults
from w2v_lightning.catalog.instances import instance
from w2v_lightning.errors import InputError
from w2v_lightning.study.study_file import check_keys, expanded, one_of, quantity, read, table, whole

Where = Literal["local", "sagemaker"]

JOB_KEYS = ("region", "role", "data", "output", "input_mode", "image", "volume_gb", "max_wait_hours")  # as of submit
STUDY_KEYS = ("name", "config", "cells", "repetitions", "quota", "max_hours", *JOB_KEYS)
SHARED_KEYS = ("options", "steps", "epochs")  # of the study, for all cells, or of a cell
LOCAL_KEYS = ("devices", "hosts", "link", "storage", "threads", "precision")
SAGEMAKER_KEYS = ("instance_type", "count", "pricing", "input_mode", "precision")
NAME = re.compile(r"[a-zA-Z0-9][\w.-]*")


@dataclass(frozen=True)
class Cell:
    """One run of a study.

    Args:
        name: the same for all repetitions, such as "ml.g4dn.2xlarge-x4-spot" or "local-x2-100mbit-2ms".
        hardware: instance type, or "local".
        count: instances; here: hosts, of which there is one, unless they are emulated.
        devices_per_host: GPUs, or processes on CPUs.
        is_spot: managed spot training.
        precision: of trainer.precision, or "auto": the device decides.
        options: of `fit`, by their dotted names.
        repetition: 1, 2, ...
        link: between hosts: the instance type, "100 Mbit/s, 2 ms", or "" within one host.
        link_bytes_per_s: by its specification; None within one host.
        link_delay_ms: one way, of an emulated link.
        is_emulated: the hosts are network namespaces of this machine.
        storage: "disk", "FastFile" or another input mode, or a rate that is emulated, "8 Mbit/s".
        storage_bytes_per_s: of an emulated one.
        threads: of each process, where it computes on CPUs.
    """

    name: str
    hardware: str
    count: int
    devices_per_host: int
    is_spot: bool
    precision: str
    options: dict[str, Any]
    repetition: int
    link: str
    link_bytes_per_s: float | None
    link_delay_ms: float | None
    is_emulated: bool
    storage: str
    storage_bytes_per_s: float | None
    threads: int | None

    @property
    def run(self) -> str:
        """Of this repetition: the name of its folder."""
        return f"{self.name}-r{self.repetition}"


@dataclass(frozen=True)
class Study:
    """What `study run` carries out.

    Args:
        name: of its folder.
        where: on this host, or as training jobs.
        config: files of `fit`, merged.
        cells: all of them, one repetition of the whole study after the other.
        quota: instances at once; None: no limit.
        max_hours: after which a run is stopped.
        jobs: options of `submit`, as far as the study gives them.
        stands_in: the cells are of instance types, for which devices of this host stand in.
    """

    name: str
    where: Where
    config: tuple[str, ...]
    cells: tuple[Cell, ...]
    quota: int | None
    max_hours: float
    jobs: dict[str, Any]
    stands_in: bool


def load(path: Path, where: Where | None = None) -> Study:
    """Read a study.

    Args:
        path: of the YAML.
        where: to run it; a study of instance types runs on as many devices of this host. None: as its cells say.

    Raises:
        InputError: the file, a key or a value of it is wrong; says which, and what would be right.
    """
    found = read(path)
    check_keys(str(path), found, STUDY_KEYS + SHARED_KEYS)
    asked = list(_asked(path, found))
    if not asked:
        raise InputError(f"{path}: cells: there are no cells, because a list in them is empty.")
    where = _where(path, asked, where)
    cells = _cells(path, asked, where, whole(path, found, "repetitions", 1))
    return Study(
        name=_name(path, found),
        where=where,
        config=_config(path, found),
        cells=cells,
        quota=_quota(path, found, cells) if where == "sagemaker" else None,
        max_hours=quantity(path, found, "max_hours", float(defaults()["max_hours"])),
        jobs={key: found[key] for key in JOB_KEYS if key in found},
        stands_in=where == "local" and "instance_type" in asked[0],
    )


def fit_arguments(options: Mapping[str, Any]) -> list[str]:
    """Options as the command line of `fit` has them."""
    return [f"--{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in options.items()]


def _where(path: Path, asked: list[dict[str, Any]], where: Where | None) -> Where:
    kinds = {"sagemaker" if "instance_type" in cell else "local" for cell in asked}
    if len(kinds) > 1:
        raise InputError(f"{path}: cells: some have an instance_type and some have none; make two studies of them.")
    if where == "sagemaker" and kinds == {"local"}:
        raise InputError(f"{path}: --where is sagemaker, but its cells have no instance_type.")
    return where or kinds.pop()


def _quota(path: Path, found: Mapping[str, Any], cells: tuple[Cell, ...]) -> int | None:
    quota = whole(path, found, "quota", None)
    largest = max(cells, key=lambda cell: cell.count)
    if quota and largest.count > quota:
        raise InputError(f"{path}: quota is {quota} instances at once, and {largest.name} needs more; raise it.")
    return quota


def _name(path: Path, found: Mapping[str, Any]) -> str:
    name = found.get("name", path.stem)
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise InputError(f"{path}: name is {name!r}; it becomes a folder: letters, digits, '-', '_' and '.'.")
    return name


def _config(path: Path, found: Mapping[str, Any]) -> tuple[str, ...]:
    """Beside the study, where they are not absolute."""
    names = found.get("config") or []
    files = tuple(str(path.parent / str(name)) for name in (names if isinstance(names, list) else [names]))
    if not files:
        raise InputError(
            f"{path}: config is missing: the YAML of `fit` that all cells train, such as config: demo.yaml."
        )
    for file in files:
        if not Path(file).is_file():
            raise InputError(f"{path}: config: there is no {file}; what is no absolute path starts beside the study.")
    return files


# ---- what is asked for: the product, each cell with the study's own options ----------------------------------------


def _asked(path: Path, found: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Each cell as it would stand in the file, had it no lists, with the study's options; `own` are its alone."""
    for number, cell in enumerate(found["cells"], start=1):
        place = f"{path}: cells, number {number}"
        check_keys(place, cell, (SAGEMAKER_KEYS if "instance_type" in cell else LOCAL_KEYS) + SHARED_KEYS)
        for each in expanded(cell):
            own = _options(place, each)
            options = _options(str(path), found) | own
            mode = each.get("input_mode") or found.get("input_mode") or defaults()["input_mode"]
            yield each | {"options": options, "own": own, "mode": mode, "place": place}


def _options(place: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """Of `fit`, as far as the study or a cell gives some; of the two limits of training, one replaces the other."""
    steps, epochs = (whole(place, found, key, None) for key in ("steps", "epochs"))
    if steps and epochs:
        raise InputError(f"{place} has both steps and epochs; give one of them.")
    options = found.get("options") or {}
    if not isinstance(options, dict):
        raise InputError(f"{place}: options is {options!r}; give options of `fit`, such as {{data.num_workers: 2}}.")
    return options | ({"trainer.max_steps": steps or -1, "trainer.max_epochs": epochs or -1} if steps or epochs else {})


# ---- cells ----------------------------------------------------------------------------------------------------------


def _cells(path: Path, asked: list[dict[str, Any]], where: Where, repetitions: int) -> tuple[Cell, ...]:
    """All of the first repetition before any of the second: what drifts with time then differs within no repetition."""
    if where == "sagemaker":
        cells = [_job(cell) for cell in asked]
    else:
        cells = [_here(_devices_of(cell) if "instance_type" in cell else cell) for cell in asked]
        if "instance_type" in asked[0]:  # spot is the same here, and so are one host of four GPUs and four of one
            cells = list({cell["name"]: cell for cell in cells}.values())
    names = [cell["name"] for cell in cells]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"{path}: cells: {twice} is there twice; repetitions runs a cell more than once.")
    return tuple(Cell(**cell, repetition=number) for number in range(1, repetitions + 1) for cell in cells)


def _job(asked: dict[str, Any]) -> dict[str, Any]:
    """A cell of training instances."""
    place = asked["place"]
    machine = instance(asked["instance_type"])
    count = whole(place, asked, "count", 1)
    pricing = one_of(place, asked, "pricing", ("on-demand", "spot"))
    parts = [machine.name, f"x{count}", "spot" if pricing == "spot" else "", asked.get("input_mode", "")]
    return _named(asked, parts) | {
        "hardware": machine.name,
        "count": count,
        "devices_per_host": machine.gpus,
        "is_spot": pricing == "spot",
        "link": machine.name if count > 1 else "",
        "link_bytes_per_s": machine.gbit_per_s * 1e9 / 8 if count > 1 else None,
        "link_delay_ms": None,
        "is_emulated": False,
        "storage": asked["mode"],
        "storage_bytes_per_s": None,
        "threads": None,
    }


def _here(asked: dict[str, Any]) -> dict[str, Any]:
    """A cell of processes or devices of this host."""
    place = asked["place"]
    devices, hosts, threads = (whole(place, asked, key, 1) for key in ("devices", "hosts", "threads"))
    mbit_per_s, delay_ms = _link(place, asked, hosts)
    storage = table(place, asked, "storage", ("mbit_per_s",))
    storage_mbit_per_s = quantity(f"{place}, storage", storage, "mbit_per_s", None)
    parts = [
        "local",
        f"{hosts}x{devices}" if hosts > 1 and devices > 1 else f"x{hosts * devices}",
        f"{mbit_per_s:g}mbit-{delay_ms:g}ms" if mbit_per_s else "",
        f"storage-{storage_mbit_per_s:g}mbit" if storage_mbit_per_s else "",
        f"{threads}threads" if threads > 1 else "",
    ]
    return _named(asked, parts) | {
        "hardware": "local",
        "count": hosts,
        "devices_per_host": devices,
        "is_spot": False,
        "link": f"{mbit_per_s:g} Mbit/s, {delay_ms:g} ms" if mbit_per_s else "",
        "link_bytes_per_s": mbit_per_s and mbit_per_s * 1e6 / 8,
        "link_delay_ms": delay_ms,
        "is_emulated": hosts > 1,
        "storage": f"{storage_mbit_per_s:g} Mbit/s" if storage_mbit_per_s else "disk",
        "storage_bytes_per_s": storage_mbit_per_s and storage_mbit_per_s * 1e6 / 8,
        "threads": threads,
    }


def _devices_of(asked: dict[str, Any]) -> dict[str, Any]:
    """As many devices of this host as those instances have."""
    cell = _job(asked)
    kept = ("precision", "options", "own", "place")
    return {"devices": cell["count"] * cell["devices_per_host"]} | {key: asked[key] for key in kept if key in asked}


def _link(place: str, asked: Mapping[str, Any], hosts: int) -> tuple[float | None, float | None]:
    """Mbit/s and ms; None within one host."""
    link = table(place, asked, "link", ("mbit_per_s", "delay_ms"))
    if (hosts > 1) != bool(link):
        raise InputError(
            f"{place}: hosts and link go together, such as hosts: 2, link: {{mbit_per_s: 100, delay_ms: 2}}."
        )
    if not link:
        return None, None
    place = f"{place}, link"
    mbit_per_s = quantity(place, link, "mbit_per_s", None)
    if mbit_per_s is None:
        raise InputError(f"{place}: mbit_per_s is missing, the rate in Mbit/s.")
    return mbit_per_s, quantity(place, link, "delay_ms", 0.0, may_be_0=True)


def _named(asked: Mapping[str, Any], parts: list[str]) -> dict[str, Any]:
    """Name, precision and options; the name has what sets the cell apart within its study."""
    precision = str(asked.get("precision") or "auto")
    own = [_short(key, value) for key, value in asked["own"].items() if value != -1]
    parts = [*parts, "" if precision == "auto" else precision, *own]
    options = asked["options"] | ({} if precision == "auto" else {"trainer.precision": precision})
    return {"name": "-".join(filter(None, parts)), "precision": precision, "options": options}


def _short(option: str, value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return f"{option.rpartition('.')[2]}-{re.sub(r'[^a-zA-Z0-9_.+]+', '_', text).strip('_')}"
