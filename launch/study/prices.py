"""On-demand prices of SageMaker training, each with its date and source. Spot is billed as fewer seconds of them."""

import csv
from dataclasses import dataclass
from datetime import date
from functools import cache
from pathlib import Path

from w2v_lightning.errors import InputError

FILE = Path(__file__).with_name("prices.csv")
DAYS_PER_MONTH = 365.25 / 12


@dataclass(frozen=True)
class Price:
    """Of one instance. `date` is ISO, as far as it is known: "2026-09-24", "2026-09" or "2026"."""

    usd_per_hour: float
    date: str
    source: str

    def age_days(self, today: date | None = None) -> int:
        """At most so old: a date that names a year only counts from its first day."""
        oldest = date.fromisoformat(self.date + "-01" * (2 - self.date.count("-")))
        return ((today or date.today()) - oldest).days

    def described(self, today: date | None = None) -> str:
        """For wherever the price is used."""
        months = self.age_days(today) / DAYS_PER_MONTH
        age = f"{months:.0f} months" if months >= 2 else f"{self.age_days(today)} days"
        return f"${self.usd_per_hour:g} an hour as of {self.date} (up to {age} old; {self.source})"


def on_demand(instance_type: str, region: str) -> Price:
    """The price of an hour of training on one instance.

    Raises:
        InputError: prices.csv has none; prices differ between regions, so another region's is no answer.
    """
    price = _table().get((instance_type, region))
    if price is None:
        regions = sorted(where for kind, where in _table() if kind == instance_type)
        known = f"only for {' and '.join(regions)}" if regions else "for no region"
        raise InputError(
            f"{instance_type} in {region}: {FILE.parent.name}/{FILE.name} has a price {known}. Look it up at"
            " aws.amazon.com/sagemaker/ai/pricing (Training) and add a row with its date and source."
        )
    return price


@cache
def _table() -> dict[tuple[str, str], Price]:
    with FILE.open(encoding="utf-8", newline="") as file:
        return {
            (row["instance_type"], row["region"]): Price(float(row["usd_per_hour"]), row["date"], row["source"])
            for row in csv.DictReader(file)
        }
