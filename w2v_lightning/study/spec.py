"""Study: what it runs, expanded from its file. Any list within one of the file's `cells` is an axis."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from w2v_lightning.catalog.defaults import defaults
from w2v_lightning.catalog.instances import instance
from w2v_lightning.errors import InputError
from w2v_lightning.study.cells import Cell, Study, Where
from w2v_lightning.study.study_file import NAME, JobCell, LocalCell, Shared, StudyFile, parse, read

JOB_KEYS = ("region", "role", "data", "output", "input_mode", "image", "volume_gb", "max_wait_hours")  # of `submit`


def load(path: Path, where: Where | None = None) -> Study:
    """Read a study.

    Args:
        path: path of the study file.
        where: place to run it; a study of instance types runs on as many devices of this host. None: as its cells say.

    Raises:
        InputError: the file, a key or a value of it is wrong; names it and the remedy.
    """
    file = read(path)
    kinds = {"sagemaker" if "instance_type" in cell else "local" for cell in file.cells}
    if len(kinds) > 1:
        raise InputError(f"{path}: cells: some have an instance_type and some have none; make two studies of them.")
    if where == "sagemaker" and kinds == {"local"}:
        raise InputError(f"{path}: --where is sagemaker, but its cells have no instance_type.")
    is_of_jobs = kinds == {"sagemaker"}
    chosen: Where = where or ("sagemaker" if is_of_jobs else "local")
    stands_in = is_of_jobs and chosen == "local"
    specs = [spec for number, cell in enumerate(file.cells, start=1) for spec in _specs(path, number, cell, file)]
    if stands_in:  # spot is the same on this host, and so are one host of four GPUs and four hosts of one
        specs = list({spec["name"]: spec for spec in map(_on_devices, specs)}.values())
    cells = _repeated(path, specs, file.repetitions)
    return Study(
        name=file.name or _checked_name(path),
        where=chosen,
        config=_config(path, file.config),
        cells=cells,
        quota=_quota(path, file.quota, cells) if chosen == "sagemaker" else None,
        max_hours=file.max_hours or float(defaults()["max_hours"]),
        jobs={key: getattr(file, key) for key in JOB_KEYS if getattr(file, key) is not None},
        stands_in=stands_in,
    )


def fit_arguments(options: Mapping[str, Any]) -> list[str]:
    """Return options as arguments of the command line of `fit`."""
    return [f"--{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in options.items()]


def _config(path: Path, names: str | list[str] | None) -> tuple[str, ...]:
    """Paths of the config files; relative ones are resolved from the folder of the study file."""
    files = tuple(str(path.parent / name) for name in ([names] if isinstance(names, str) else names or []))
    if not files:
        raise InputError(
            f"{path}: config is missing: the YAML of `fit` that all cells train, such as config: demo.yaml."
        )
    for file in files:
        if not os.path.isfile(file):  # False also for names that no file system takes
            raise InputError(
                f"{path}: config: {file} not found. Relative paths are resolved from the study file's folder."
            )
    return files


def _checked_name(path: Path) -> str:
    if not re.fullmatch(NAME, path.stem):
        raise InputError(f"{path}: its name becomes a folder: use letters, digits, '-', '_' and '.', or give `name`.")
    return path.stem


def _quota(path: Path, quota: int | None, cells: Sequence[Cell]) -> int | None:
    largest = max(cells, key=lambda cell: cell.count)
    if quota and largest.count > quota:
        raise InputError(f"{path}: quota is {quota} instances at once, and {largest.name} needs more; raise it.")
    return quota


def _specs(path: Path, number: int, cell: dict[str, Any], file: StudyFile) -> list[dict[str, Any]]:
    """Return the fields of every Cell that one item of `cells` stands for, without the repetition."""
    place = f"{path}: cells, number {number}"
    if not cell:
        raise InputError(f"{place} is {cell!r}; give a mapping, such as {{devices: [1, 2]}}.")
    trees = _product(cell)
    if not trees:
        raise InputError(f"{place}: it stands for no cell, because a list in it is empty.")
    specs = []
    for tree in trees:
        if "instance_type" in cell:
            specs.append(_job(parse(place, JobCell, tree), place, file))
        else:
            specs.append(_local(parse(place, LocalCell, tree), place, file))
    return specs


def _product(tree: Any) -> list[Any]:
    """Return one tree for each choice of an item from every list; a list within a list is a value."""
    if isinstance(tree, dict):
        return [dict(zip(tree, values, strict=True)) for values in product(*map(_product, tree.values()))]
    if isinstance(tree, list):
        return [each for item in tree for each in ([item] if isinstance(item, list) else _product(item))]
    return [tree]


def _repeated(path: Path, specs: Sequence[dict[str, Any]], repetitions: int) -> tuple[Cell, ...]:
    """Return all cells: the whole study once before any cell is repeated, so that repetitions also capture drift."""
    names = [spec["name"] for spec in specs]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"{path}: cells: {twice} is there twice; `repetitions` runs a cell more than once.")
    fields = [{key: value for key, value in spec.items() if key != "own"} for spec in specs]
    return tuple(Cell(**each, repetition=number) for number in range(1, repetitions + 1) for each in fields)


def _job(cell: JobCell, place: str, file: StudyFile) -> dict[str, Any]:
    """Return the fields of a cell of training instances."""
    machine = instance(cell.instance_type)
    is_spot = cell.pricing == "spot"
    parts = [machine.name, f"x{cell.count}", "spot" if is_spot else "", cell.input_mode or ""]
    return _named(cell, place, file, parts) | {
        "hardware": machine.name,
        "count": cell.count,
        "devices_per_host": machine.gpus,
        "is_spot": is_spot,
        "link": machine.name if cell.count > 1 else "",
        "link_bytes_per_s": machine.gbit_per_s * 1e9 / 8 if cell.count > 1 else None,
        "link_delay_ms": None,
        "is_emulated": False,
        "storage": cell.input_mode or file.input_mode or defaults()["input_mode"],
        "storage_bytes_per_s": None,
        "threads": None,
    }


def _local(cell: LocalCell, place: str, file: StudyFile) -> dict[str, Any]:
    """Return the fields of a cell of processes or devices of this host."""
    if (cell.hosts > 1) != (cell.link is not None):
        raise InputError(
            f"{place}: hosts and link go together, such as hosts: 2, link: {{mbit_per_s: 100, delay_ms: 2}}."
        )
    link, storage_mbit_per_s = cell.link, cell.storage.mbit_per_s if cell.storage else None
    parts = [
        "local",
        f"{cell.hosts}x{cell.devices}" if cell.hosts > 1 and cell.devices > 1 else f"x{cell.hosts * cell.devices}",
        f"{link.mbit_per_s:g}mbit-{link.delay_ms:g}ms" if link else "",
        f"storage-{storage_mbit_per_s:g}mbit" if storage_mbit_per_s else "",
        f"{cell.threads}threads" if cell.threads > 1 else "",
    ]
    return _named(cell, place, file, parts) | {
        "hardware": "local",
        "count": cell.hosts,
        "devices_per_host": cell.devices,
        "is_spot": False,
        "link": f"{link.mbit_per_s:g} Mbit/s, {link.delay_ms:g} ms" if link else "",
        "link_bytes_per_s": link.mbit_per_s * 1e6 / 8 if link else None,
        "link_delay_ms": link.delay_ms if link else None,
        "is_emulated": cell.hosts > 1,
        "storage": f"{storage_mbit_per_s:g} Mbit/s" if storage_mbit_per_s else "disk",
        "storage_bytes_per_s": storage_mbit_per_s * 1e6 / 8 if storage_mbit_per_s else None,
        "threads": cell.threads,
    }


def _on_devices(job: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a cell with as many devices of this host as the instances of a job have."""
    devices = job["count"] * job["devices_per_host"]
    return job | {
        "name": "-".join(filter(None, ("local", f"x{devices}", job["own"]))),
        "hardware": "local",
        "count": 1,
        "devices_per_host": devices,
        "is_spot": False,
        "link": "",
        "link_bytes_per_s": None,
        "storage": "disk",
        "threads": 1,
    }


def _named(cell: LocalCell | JobCell, place: str, file: StudyFile, parts: list[str]) -> dict[str, Any]:
    """Return name, precision and options; the name has what distinguishes the cell within its study."""
    precision, own_options = cell.precision or "auto", _options(place, cell)
    suffixes = ["" if precision == "auto" else precision]
    suffixes += [_short(key, value) for key, value in own_options.items() if value != -1]
    own = "-".join(filter(None, suffixes))
    options = _options(place, file) | own_options
    return {
        "name": "-".join(filter(None, [*parts, own])),
        "own": own,
        "precision": precision,
        "options": options | ({} if precision == "auto" else {"trainer.precision": precision}),
    }


def _options(place: str, section: Shared) -> dict[str, Any]:
    """Return the options of `fit` that a section gives; `steps` and `epochs` replace each other."""
    if section.steps and section.epochs:
        raise InputError(f"{place} has both steps and epochs; give one of them.")
    if not section.steps and not section.epochs:
        return section.options
    return section.options | {
        "trainer.max_steps": section.steps or -1,
        "trainer.max_epochs": section.epochs or -1,
    }


def _short(option: str, value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return f"{option.rpartition('.')[2]}-{re.sub(r'[^a-zA-Z0-9_.+]+', '_', text).strip('_')}"
