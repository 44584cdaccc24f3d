"""Newer files of SkyPilot's public catalog, fetched into the cache that `clouds.listing` prefers to the snapshot."""

import csv
import io
import os
import urllib.request
from collections.abc import Iterator, Mapping
from http.client import HTTPException

from w2v_lightning.catalog import clouds
from w2v_lightning.errors import InputError
from w2v_lightning.runtime.files import atomic_text_file

URL = "https://raw.githubusercontent.com/skypilot-org/skypilot-catalog/master/catalogs/v8/{cloud}/vms.csv"
VARIABLE = "W2V_LIGHTNING_CLOUDS_URL"  # another address, with {cloud} in it, such as a mirror or a file:// URL
TIMEOUT_S = 60
ZONE = "AvailabilityZone"  # column of SkyPilot that tells two machines of a region apart
# Google's list has GPUs without a machine, which are billed on top of one of these (number of GPUs: machine).
GCP_MACHINES = {
    "A100": {n: f"a2-highgpu-{n}g" for n in (1, 2, 4, 8)},
    "A100-80GB": {n: f"a2-ultragpu-{n}g" for n in (1, 2, 4, 8)},
    "H100": {n: f"a3-highgpu-{n}g" for n in (1, 2, 4, 8)},
    "L4": {1: "g2-standard-4", 2: "g2-standard-24", 4: "g2-standard-48", 8: "g2-standard-96"},
}


def refresh(cloud: str) -> int:
    """Fetch the newest file of a cloud and keep it in the cache; return its number of machines with GPUs.

    Raises:
        InputError: the file cannot be fetched, is not in SkyPilot's format, or has no machine with a GPU and a price.
    """
    url = os.environ.get(VARIABLE, URL).format(cloud=cloud)
    path = clouds.cache_folder() / f"{cloud}.csv"
    fetched = path.with_suffix(".new")
    try:
        lines = _lines(url)
        with atomic_text_file(fetched) as file:
            writer = csv.DictWriter(file, clouds.COLUMNS, extrasaction="ignore", lineterminator="\n")
            writer.writeheader()
            writer.writerows(_with_machines(lines) if cloud == "gcp" else lines)
        rows = clouds.read(fetched, clouds.DATES_AND_SOURCES)
        if not rows:
            raise ValueError("it has no machine with a GPU and a price")
        fetched.replace(path)
    except (OSError, HTTPException, ValueError) as error:  # InputError is a ValueError
        reason = getattr(error, "reason", None) or error
        raise InputError(f"--refresh: {url} cannot be used ({reason}). The known prices remain.") from None
    finally:
        fetched.unlink(missing_ok=True)
    clouds.listing.cache_clear()
    return len(rows)


def _lines(url: str) -> list[dict[str, str]]:
    """Return the lines of a file by column.

    Raises:
        OSError, HTTPException: it cannot be fetched.
        ValueError: it is not in SkyPilot's format.
    """
    with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:  # noqa: S310  file: is allowed on purpose
        table = csv.DictReader(io.StringIO(answer.read().decode("utf-8")))
    if missing := set(clouds.COLUMNS) - set(table.fieldnames or ()):
        raise ValueError(f"it lacks the columns {', '.join(sorted(missing))} of SkyPilot's catalog")
    return [{name: line[name] or "" for name in (*clouds.COLUMNS, ZONE) if name in line} for line in table]


def _with_machines(lines: list[dict[str, str]]) -> Iterator[Mapping[str, str]]:
    """Yield machines of Google with the price of their GPUs added."""
    machines = {(line["InstanceType"], line["Region"], line.get(ZONE)): line for line in lines}
    for line in lines:
        if line["InstanceType"]:
            if line["AcceleratorName"]:
                yield line
            continue
        count = round(float(line["AcceleratorCount"] or 0))
        name = GCP_MACHINES.get(line["AcceleratorName"], {}).get(count)
        machine = machines.get((name or "", line["Region"], line.get(ZONE)))
        if machine:
            sums = {column: _sum(machine[column], line[column]) for column in ("Price", "SpotPrice")}
            yield {**machine, **sums, "AcceleratorName": line["AcceleratorName"], "AcceleratorCount": str(count)}


def _sum(first: str, second: str) -> str:
    """Return the sum of two prices; empty if one is unknown."""
    return f"{float(first) + float(second):.6g}" if first and second else ""
