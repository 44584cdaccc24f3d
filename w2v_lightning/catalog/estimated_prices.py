"""Estimates of SageMaker prices that no list has, from EC2's price or from another region's.

SageMaker's price is EC2's times a ratio that is the same for all sizes of a family but the smallest (1.25 or 1.40 for
GPUs of the g families, 1.15 for p4 and p5), and regions differ by a ratio that is nearly the same for all sizes of a
family. Both are regularities of the known prices, not promises of AWS, so each estimate has an interval. An estimate
does not show that the type is offered in the region.
"""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from w2v_lightning.catalog import clouds
from w2v_lightning.catalog.dated import EstimatedPrice, Price

Kind = tuple[str, str]  # instance type and region
# Least standard deviation of a ratio's logarithm, even if all known ratios are equal: prices are rounded, and change.
SAME_SD, OTHER_SD, UNKNOWN_SD = 0.01, 0.05, 0.2  # of the same family, of others, and without any known ratio
BASE = "us-east-1"  # region with the most known prices


@dataclass(frozen=True)
class Ratio:
    """Ratio of two prices.

    Args:
        value: median of the known ratios.
        sd: standard deviation of its logarithm.
        basis: prices that the known ratios are of, in words.
        is_of_region: whether the region is known to have a machine of this family.
    """

    value: float
    sd: float
    basis: str
    is_of_region: bool = True


def estimate(instance_type: str, region: str, listed: Mapping[Kind, Price]) -> EstimatedPrice | None:
    """Return an estimate from listed SageMaker prices and EC2's; None if the type has no price in any region.

    China's prices are in another currency and of another company, so they are not estimated.
    """
    ec2 = _ec2()
    if region.startswith("cn-"):
        return None
    if price := ec2.get((instance_type, region)):
        return _times(price, f"EC2's ${price.usd_per_hour:g}", _to_sagemaker(instance_type, listed, ec2))
    if other := _elsewhere(instance_type, listed):
        return _times(listed[other], f"the price in {other[1]}", _between(instance_type, other[1], region, ec2))
    if other := _elsewhere(instance_type, ec2):
        ratios = _to_sagemaker(instance_type, listed, ec2), _between(instance_type, other[1], region, ec2)
        return _times(ec2[other], f"EC2's ${ec2[other].usd_per_hour:g} in {other[1]}", *ratios)
    return None


def ec2_price(instance_type: str, region: str) -> Price | None:
    """Return EC2's on-demand price of a training instance type, listed or estimated from another region's."""
    ec2 = _ec2()
    if price := ec2.get((instance_type, region)):
        return price
    other = _elsewhere(instance_type, ec2)
    if other is None:
        return None
    return _times(ec2[other], f"the price in {other[1]}", _between(instance_type, other[1], region, ec2))


def _ec2() -> dict[Kind, Price]:
    """Return EC2's on-demand prices by training instance type and region."""
    return {(f"ml.{row.instance_type}", row.region): row.price for row in clouds.listing("aws") if row.price}


def _elsewhere(instance_type: str, prices: Mapping[Kind, Price]) -> Kind | None:
    """Return the type in a region where it has a price, the base region if that is one."""
    regions = sorted(
        (region for name, region in prices if name == instance_type), key=lambda name: (name != BASE, name)
    )
    return (instance_type, regions[0]) if regions else None


def _times(price: Price, what: str, *ratios: Ratio) -> EstimatedPrice:
    usd = price.usd_per_hour * math.prod(ratio.value for ratio in ratios)
    steps = " and ".join(f"x {ratio.value:.3g}, {ratio.basis}" for ratio in ratios)
    sd = math.hypot(*(ratio.sd for ratio in ratios))
    region_has_it = all(ratio.is_of_region for ratio in ratios)
    return EstimatedPrice(usd, price.date, f"{what} {steps}; {price.source}", sd, region_has_it)


def _to_sagemaker(instance_type: str, listed: Mapping[Kind, Price], ec2: Mapping[Kind, Price]) -> Ratio:
    """Return SageMaker's price over EC2's."""
    both = {kind: price.usd_per_hour / ec2[kind].usd_per_hour for kind, price in listed.items() if kind in ec2}
    family, size = _family(instance_type), _is_smallest(instance_type)
    alike = [(name, ratio) for (name, _), ratio in both.items() if _is_smallest(name) == size]
    return _first(
        ("SageMaker's ratio elsewhere", SAME_SD, [ratio for name, ratio in alike if name == instance_type]),
        (f"SageMaker's ratio for {family}", SAME_SD, [ratio for name, ratio in alike if _family(name) == family]),
        (f"its ratio for other {family[0]}", OTHER_SD, [ratio for name, ratio in alike if _letter(name) == family[0]]),
        ("SageMaker's ratio for other types", OTHER_SD, [ratio for _, ratio in alike]),
    )


def _between(instance_type: str, base: str, region: str, ec2: Mapping[Kind, Price]) -> Ratio:
    """Return a region's price over that of another region."""
    family, known = _family(instance_type), list(_ratios(base, region, ec2))
    of_family = [ratio for name, ratio in known if _family(name) == family]
    others = sorted({place for _, place in ec2} - {base})
    ratio = _first(
        (f"{region}'s ratio for {family}", SAME_SD, of_family),
        (f"{region}'s ratio for other types", OTHER_SD, [ratio for _, ratio in known]),
        ("as in other regions", OTHER_SD, [ratio for other in others for _, ratio in _ratios(base, other, ec2)]),
    )
    return replace(ratio, is_of_region=bool(of_family))


def _first(*groups: tuple[str, float, Sequence[float]]) -> Ratio:
    """Return the median ratio of the first group that is not empty: its meaning, its least deviation, its ratios."""
    for basis, least_sd, ratios in groups:
        if ratios:
            logs = [math.log(ratio) for ratio in ratios]
            return Ratio(math.exp(statistics.median(logs)), math.hypot(statistics.pstdev(logs), least_sd), basis)
    return Ratio(1.0, UNKNOWN_SD, "any ratio")


def _ratios(base: str, region: str, ec2: Mapping[Kind, Price]) -> Iterator[tuple[str, float]]:
    """Yield by type EC2's price in a region over that in another."""
    for (name, place), price in ec2.items():
        if place == region and (name, base) in ec2:
            yield name, price.usd_per_hour / ec2[name, base].usd_per_hour


def _family(instance_type: str) -> str:
    return instance_type.split(".")[1]


def _is_smallest(instance_type: str) -> bool:
    return instance_type.endswith(".xlarge")


def _letter(instance_type: str) -> str:
    return _family(instance_type)[0]
