"""Prices of SageMaker training, each with date and source: on demand, and an EC2-based estimate of the spot saving.

SageMaker publishes no price for managed spot training: a job is billed at the on-demand price for fewer seconds than it
ran, and how many is known only when it has ended. The saving is estimated by how far EC2's spot price is below EC2's
on-demand price.
"""

import csv
import datetime
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from w2v_lightning.errors import InputError
from w2v_lightning.reporting.units import percent

FILE = Path(__file__).with_name("prices.csv")
SPOT_FILE = Path(__file__).with_name("spot_prices.csv")
DAYS_PER_MONTH = 365.25 / 12

Kind = tuple[str, str]  # instance type and region
P = TypeVar("P", bound="Dated")


class Dated:
    """Figure with its source and the date at which it was read.

    `date` is an ISO date as precise as it is known: "2026-09-24", "2026-09" or "2026".
    """

    date: str
    source: str

    def age_days(self, today: datetime.date | None = None) -> int:
        """Return the greatest possible age in days: a month or year counts from its first day."""
        oldest = datetime.date.fromisoformat(self.date + "-01" * (2 - self.date.count("-")))
        return ((today or datetime.date.today()) - oldest).days

    def age(self, today: datetime.date | None = None) -> str:
        """Return the greatest possible age in words, such as "up to 3 months old"."""
        days = self.age_days(today)
        months = days / DAYS_PER_MONTH
        return f"up to {months:.0f} months old" if months >= 2 else f"up to {days} day{'s' if days != 1 else ''} old"


@dataclass(frozen=True)
class Price(Dated):
    """On-demand price of one training instance."""

    usd_per_hour: float
    date: str
    source: str

    def described(self, today: datetime.date | None = None) -> str:
        """Return the price with its date, age and source; every output that uses the price shows this."""
        return f"${self.usd_per_hour:g} an hour as of {self.date} ({self.age(today)}; {self.source})"


@dataclass(frozen=True)
class SpotPrice(Dated):
    """Spot and on-demand price of one EC2 instance of the same type."""

    spot_usd_per_hour: float
    ec2_usd_per_hour: float
    date: str
    source: str

    @property
    def saving(self) -> float:
        """Saving as a share of the on-demand price, 0 to 1."""
        return 1 - self.spot_usd_per_hour / self.ec2_usd_per_hour

    def described(self, today: datetime.date | None = None) -> str:
        """Return the saving with its date, age and source; every output that uses the saving shows this."""
        origin = f"{self.date} ({self.age(today)}; {self.source})"
        return f"{percent(self.saving)}, EC2's discount for spot as of {origin}"


def on_demand(instance_type: str, region: str) -> Price:
    """Return the price of one instance.

    Raises:
        InputError: prices.csv has no row for the type in this region. (Prices differ between regions, so no other
            region's price is used instead.)
    """
    price = on_demand_prices().get((instance_type, region))
    if price is None:
        regions = sorted(priced for kind, priced in on_demand_prices() if kind == instance_type)
        known = f"only for {' and '.join(regions)}" if regions else "for no region"
        raise InputError(
            f"{instance_type} in {region}: w2v_lightning/catalog/{FILE.name} has a price {known}. Run"
            f" `python -m w2v_lightning study prices --refresh --region {region}` to get it from AWS, or look it up at"
            " aws.amazon.com/sagemaker/ai/pricing (Training) and add a row with its date and source."
        )
    return price


@cache
def on_demand_prices() -> dict[Kind, Price]:
    """Return all rows of prices.csv."""
    return _read(FILE, Price)


@cache
def spot_prices() -> dict[Kind, SpotPrice]:
    """Return all rows of spot_prices.csv."""
    return _read(SPOT_FILE, SpotPrice)


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
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                columns = "instance_type, region, dollars, a date such as 2026-09-24 and a source"
                raise InputError(f"{path}, line {number}: {error}. A row has {columns}.") from None
    return prices
