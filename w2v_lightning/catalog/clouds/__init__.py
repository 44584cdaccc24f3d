"""Prices of GPU machines at clouds: CSV files in the format of SkyPilot's public catalog, one for each cloud.

The files are a dated snapshot. Beside SkyPilot's columns they have the dates and sources of both prices; a date is
empty where its source has none. All prices were listed somewhere; none was derived. refresh.py fetches newer files into
a cache; their prices are of the day on which they were fetched.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from w2v_lightning.catalog.dated import Price
from w2v_lightning.errors import InputError
from w2v_lightning.runtime.user_cache import cache_root

FOLDER = Path(__file__).parent
CLOUDS = ("aws", "gcp", "lambda", "nebius", "runpod", "vast", "verda")
COLUMNS = (
    *("InstanceType", "AcceleratorName", "AcceleratorCount", "vCPUs", "MemoryGiB"),
    *("Price", "SpotPrice", "Region"),
)  # columns of SkyPilot that are read
DATES_AND_SOURCES = {"Date": "", "SpotDate": "", "Source": "SkyPilot's catalog", "SpotSource": "SkyPilot's catalog"}


@dataclass(frozen=True)
class Row:
    """Machine of a cloud in a region.

    Args:
        instance_type: the cloud's name for it, such as "gpu_8x_h100_sxm5".
        accelerator: SkyPilot's name of the GPU, such as "A100-80GB".
        gpus: number of GPUs.
        vcpus: number of virtual CPUs.
        gib: memory of the host, in GiB.
        region: the cloud's name of the region; "all" if the price is the same in all of them.
        price: on-demand price; None if the machine is offered on spot only.
        spot: spot price; None if it is not offered on spot.
    """

    instance_type: str
    accelerator: str
    gpus: int
    vcpus: int
    gib: int
    region: str
    price: Price | None
    spot: Price | None


def cache_folder() -> Path:
    """Return the folder of refreshed files."""
    return cache_root() / "clouds"


@cache
def listing(cloud: str) -> tuple[Row, ...]:
    """Return the rows of a cloud: of the refreshed file if there is one, else of the snapshot.

    Raises:
        InputError: a row has an invalid number or date.
    """
    refreshed = cache_folder() / f"{cloud}.csv"
    if not refreshed.is_file():
        return read(FOLDER / f"{cloud}.csv", {})
    fetched = datetime.fromtimestamp(refreshed.stat().st_mtime, UTC).date().isoformat()
    return read(refreshed, DATES_AND_SOURCES | {"Date": fetched, "SpotDate": fetched})


def read(path: Path, defaults: Mapping[str, str]) -> tuple[Row, ...]:
    """Read a file in the format of SkyPilot's catalog; rows without a GPU or a price are left out.

    Args:
        path: the file.
        defaults: values of missing columns.

    Raises:
        InputError: a row lacks a column, or has an invalid number or date.
    """
    by_kind: dict[tuple[str, str, str], list[Row]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for number, line in enumerate(csv.DictReader(file), 2):
            try:
                row = _row({**defaults, **line})
            except (KeyError, TypeError, ValueError) as error:
                detail = f"column {error} is missing" if isinstance(error, KeyError) else str(error)
                raise InputError(
                    f"{path}, line {number}: {detail}. The format is that of SkyPilot's catalog."
                ) from None
            if row and (row.price or row.spot):
                by_kind.setdefault((row.instance_type, row.accelerator, row.region), []).append(row)
    return tuple(map(_of_median_zone, by_kind.values()))


def _of_median_zone(rows: Sequence[Row]) -> Row:
    """Return the row of the zone whose spot price is the median, or any if no zone has one."""
    known = sorted((row for row in rows if row.spot), key=lambda row: row.spot.usd_per_hour if row.spot else 0.0)
    return known[len(known) // 2] if known else rows[0]


def _row(line: Mapping[str, str]) -> Row | None:
    if not line["InstanceType"] or not line["AcceleratorName"]:
        return None
    return Row(
        instance_type=line["InstanceType"],
        accelerator=line["AcceleratorName"],
        gpus=round(float(line["AcceleratorCount"])),
        vcpus=round(float(line["vCPUs"] or 0)),
        gib=round(float(line["MemoryGiB"] or 0)),
        region=line["Region"],
        price=_price(line["Price"], line["Date"], line["Source"]),
        spot=_price(line["SpotPrice"], line["SpotDate"], line["SpotSource"]),
    )


def _price(usd: str, date: str, source: str) -> Price | None:
    """Return a price; None if it is empty, or 0 as some catalogs write it."""
    if not usd or not float(usd) > 0:
        return None
    price = Price(float(usd), date, source)
    price.age_days()  # raises ValueError if the date is invalid
    return price
