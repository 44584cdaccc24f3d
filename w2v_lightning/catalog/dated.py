"""Prices as values: each with its date, its source and, where it is estimated, its interval."""

import datetime
import math
from dataclasses import dataclass

from w2v_lightning.reporting.units import percent

OLD_DAYS = 180  # prices older than this are shown with a warning
Z_90 = 1.645  # standard deviations from the centre of a 90 % interval to its ends


class Dated:
    """Figure with its source and the date at which it was read.

    `date` is an ISO date as precise as it is known: "2026-09-24", "2026-09", "2026", or "" if it is unknown.
    """

    date: str
    source: str

    def age_days(self, today: datetime.date | None = None) -> float:
        """Return the greatest possible age in days: a month or year counts from its first day; infinite if unknown."""
        if not self.date:
            return math.inf
        oldest = datetime.date.fromisoformat(self.date + "-01" * (2 - self.date.count("-")))
        return ((today or datetime.date.today()) - oldest).days

    def is_old(self, today: datetime.date | None = None) -> bool:
        """Return whether the figure may be older than OLD_DAYS."""
        return self.age_days(today) > OLD_DAYS

    def age(self, today: datetime.date | None = None) -> str:
        """Return the greatest possible age in words, such as "up to 68 days old"."""
        days = self.age_days(today)
        if days == math.inf:
            return "of UNKNOWN age"
        warning = f", MORE THAN {OLD_DAYS}" if self.is_old(today) else ""
        return f"up to {days:,.0f} day{'s' if days != 1 else ''} old{warning}"

    def origin(self, today: datetime.date | None = None) -> str:
        """Return date, age and source, such as "2026-09-24 (up to 68 days old; Price List API)"."""
        return f"{self.date or 'an unknown date'} ({self.age(today)}; {self.source})"


@dataclass(frozen=True)
class Price(Dated):
    """On-demand price of one machine."""

    usd_per_hour: float
    date: str
    source: str

    @property
    def log_sd(self) -> float:
        """Standard deviation of the price's logarithm: 0 if it is listed, not estimated."""
        return 0.0

    @property
    def is_of_region(self) -> bool:
        """True if a list has the machine, or another of its family, at SageMaker or EC2 in this very region."""
        return True

    @property
    def most_usd_per_hour(self) -> float:
        """Upper end of the 90 % interval; the price itself if it is listed."""
        return self.usd_per_hour * math.exp(Z_90 * self.log_sd)

    def described(self, today: datetime.date | None = None) -> str:
        """Return the price with its date, age and source; every output that uses the price shows this."""
        return f"${self.usd_per_hour:g} an hour as of {self.origin(today)}"


@dataclass(frozen=True)
class EstimatedPrice(Price):
    """Estimate of a price that no list has.

    Args:
        sd: standard deviation of the price's logarithm.
        region_has_it: whether the region is known to have the machine, or another of its family.
    """

    sd: float = 0.0
    region_has_it: bool = True

    @property
    def log_sd(self) -> float:
        return self.sd

    @property
    def is_of_region(self) -> bool:
        return self.region_has_it

    def described(self, today: datetime.date | None = None) -> str:
        low = self.usd_per_hour / math.exp(Z_90 * self.sd)
        interval = f"90 %: ${low:.4g} to ${self.most_usd_per_hour:.4g}"
        return f"ESTIMATED ${self.usd_per_hour:.4g} an hour ({interval}) as of {self.origin(today)}"


@dataclass(frozen=True)
class SpotPrice(Dated):
    """Spot and on-demand price of one machine."""

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
        return f"{percent(self.saving)}, EC2's discount for spot as of {self.origin(today)}"
