"""Prices of SageMaker training, each with its date and source: on demand, and for spot a stand-in from EC2.

SageMaker's managed spot has no price that can be looked up: a job is billed for fewer seconds of the on-demand price,
and how many is known when it has ended. How far EC2's spot price is below its on-demand price stands in for that.
"""

import csv
from dataclasses import dataclass
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

from w2v_lightning.errors import InputError
from w2v_lightning.reporting.units import percent

FILE = Path(__file__).with_name("prices.csv")
SPOT_FILE = Path(__file__).with_name("spot_prices.csv")
DAYS_PER_MONTH = 365.25 / 12

Kind = tuple[str, str]  # instance type and region


class Dated:
    """What was read somewhere, at a `date`: ISO, as far as it is known: "2026-09-24", "2026-09" or "2026"."""

    date: str
    source: str

    def age_days(self, today: date | None = None) -> int:
        """At most so old: a date that names a year only counts from its first day."""
        oldest = date.fromisoformat(self.date + "-01" * (2 - self.date.count("-")))
        return ((today or date.today()) - oldest).days

    def age(self, today: date | None = None) -> str:
        """In words, of whatever was read then."""
        days = self.age_days(today)
        months = days / DAYS_PER_MONTH
        return f"up to {months:.0f} months old" if months >= 2 else f"up to {days} day{'s' if days != 1 else ''} old"


@dataclass(frozen=True)
class Price(Dated):
    """Of one instance that trains on demand."""

    usd_per_hour: float
    date: str
    source: str

    def described(self, today: date | None = None) -> str:
        """For wherever the price is used."""
        return f"${self.usd_per_hour:g} an hour as of {self.date} ({self.age(today)}; {self.source})"


@dataclass(frozen=True)
class SpotPrice(Dated):
    """Of one EC2 instance of the same type, on spot and on demand."""

    spot_usd_per_hour: float
    ec2_usd_per_hour: float
    date: str
    source: str

    @property
    def saving(self) -> float:
        """Share of the on-demand price, 0 to 1."""
        return 1 - self.spot_usd_per_hour / self.ec2_usd_per_hour

    def described(self, today: date | None = None) -> str:
        """For wherever the saving is used."""
        origin = f"{self.date} ({self.age(today)}; {self.source})"
        return f"{percent(self.saving)}, as EC2's spot price is below as of {origin}"


def on_demand(instance_type: str, region: str) -> Price:
    """The price of an hour of training on one instance.

    Raises:
        InputError: prices.csv has none; prices differ between regions, so another region's is no answer.
    """
    price = on_demand_prices().get((instance_type, region))
    if price is None:
        regions = sorted(where for kind, where in on_demand_prices() if kind == instance_type)
        known = f"only for {' and '.join(regions)}" if regions else "for no region"
        raise InputError(
            f"{instance_type} in {region}: {FILE.parent.name}/{FILE.name} has a price {known}. `python -m w2v_lightning"
            f" study prices --refresh --region {region}` asks AWS; or look it up at aws.amazon.com/sagemaker/ai/pricing"
            " (Training) and add a row with its date and source."
        )
    return price


@cache
def on_demand_prices() -> dict[Kind, Price]:
    """All of prices.csv."""
    return _read(FILE, Price)


@cache
def spot_prices() -> dict[Kind, SpotPrice]:
    """All of spot_prices.csv."""
    return _read(SPOT_FILE, SpotPrice)


def _read(path: Path, price: type) -> dict[Kind, Any]:
    """The rows of a file as prices.

    Raises:
        InputError: a row, perhaps added by hand, has no price, no date, or something else in their places.
    """
    found = {}
    with path.open(encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.DictReader(file), 2):
            try:
                kind = row.pop("instance_type"), row.pop("region")
                found[kind] = price(**{name: float(text) if "usd" in name else text for name, text in row.items()})
                found[kind].age_days()
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                columns = "instance_type, region, dollars, a date such as 2026-09-24 and a source"
                raise InputError(f"{path}, line {number}: {error}. A row has {columns}.") from None
    return found
