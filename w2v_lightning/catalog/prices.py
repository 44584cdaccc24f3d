"""Prices of SageMaker training, each with date and source: on demand, and an EC2-based estimate of the spot saving.

SageMaker publishes no price for managed spot training: a job is billed at the on-demand price for fewer seconds than it
ran, and how many is known only when it has ended. The saving is estimated by how far EC2's spot price is below EC2's
on-demand price.
"""

import csv
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from w2v_lightning.catalog import clouds, images
from w2v_lightning.catalog.dated import Dated, Price, SpotPrice
from w2v_lightning.catalog.estimated_prices import estimate
from w2v_lightning.errors import InputError

FILE = Path(__file__).with_name("prices.csv")
SPOT_FILE = Path(__file__).with_name("spot_prices.csv")

Kind = tuple[str, str]  # instance type and region
P = TypeVar("P", bound=Dated)


@cache
def on_demand(instance_type: str, region: str) -> Price:
    """Return the price of one instance: that of prices.csv, or else an `EstimatedPrice`.

    Raises:
        InputError: the region is unknown, or neither SageMaker's nor EC2's price of the type is known in any region.
    """
    listed = on_demand_prices()
    price = listed.get((instance_type, region))
    if price is None:
        images.check_region(region)
        price = estimate(instance_type, region, listed)
    if price is None:
        raise InputError(
            f"{instance_type} in {region}: neither SageMaker's nor EC2's price is known in any region. Run"
            f" `python -m w2v_lightning study prices --refresh --region {region}` to get it from AWS, or look it up at"
            f" aws.amazon.com/sagemaker/ai/pricing (Training) and add a row to w2v_lightning/catalog/{FILE.name} with"
            " its date and source."
        )
    return price


@cache
def on_demand_prices() -> dict[Kind, Price]:
    """Return all rows of prices.csv."""
    return _read(FILE, Price)


@cache
def spot_prices() -> dict[Kind, SpotPrice]:
    """Return EC2's spot prices by training instance type: rows of spot_prices.csv, or else of clouds/aws.csv."""
    ec2 = {
        (f"ml.{row.instance_type}", row.region): SpotPrice(
            row.spot.usd_per_hour, row.price.usd_per_hour, row.spot.date, row.spot.source
        )
        for row in clouds.listing("aws")
        if row.price and row.spot
    }
    return ec2 | refreshed_spot_prices()


@cache
def refreshed_spot_prices() -> dict[Kind, SpotPrice]:
    """Return all rows of spot_prices.csv, which `study prices --refresh` writes."""
    return _read(SPOT_FILE, SpotPrice)


def forget() -> None:
    """Read the files again when they are next needed, because they have changed."""
    for cached in (on_demand, on_demand_prices, spot_prices, refreshed_spot_prices):
        cached.cache_clear()


def _read(path: Path, price: type[P]) -> dict[Kind, P]:
    """Read a file of prices.

    Raises:
        InputError: a row (perhaps added by hand) has a missing or invalid price or date.
    """
    prices: dict[Kind, P] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.DictReader(file), 2):
            try:
                kind = row.pop("instance_type"), row.pop("region")
                # The columns are the fields of `price`; a file with other columns is a TypeError.
                fields: dict[str, Any] = {name: float(text) if "usd" in name else text for name, text in row.items()}
                prices[kind] = price(**fields)
                prices[kind].age_days()
                if not prices[kind].date:
                    raise ValueError("the date is missing")
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                columns = "instance_type, region, dollars, a date such as 2026-09-24 and a source"
                raise InputError(f"{path}, line {number}: {error}. A row has {columns}.") from None
    return prices
