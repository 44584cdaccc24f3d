"""Prices have a date and a source; a missing price is estimated, and says so."""

import csv
import math
from datetime import date

import pytest

from w2v_lightning.catalog import prices
from w2v_lightning.catalog.dated import EstimatedPrice, Price, SpotPrice
from w2v_lightning.catalog.estimated_prices import estimate
from w2v_lightning.catalog.instances import INSTANCES, instance
from w2v_lightning.catalog.prices import on_demand
from w2v_lightning.errors import InputError


def test_every_row_has_a_known_instance_a_date_and_a_source():
    with prices.FILE.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len({(row["instance_type"], row["region"]) for row in rows}) == len(rows)
    for row in rows:
        assert instance(row["instance_type"]).name == row["instance_type"]
        price = on_demand(row["instance_type"], row["region"])
        assert 0.1 < price.usd_per_hour < 100
        assert price.age_days(date(2027, 1, 1)) > 0
        assert price.source


def test_spots_stand_in_is_less_than_on_demand_and_says_so():
    assert prices.spot_prices()
    for (instance_type, _), price in prices.spot_prices().items():
        assert instance(instance_type).name == instance_type
        assert price.spot_usd_per_hour > 0
        assert -0.05 < price.saving < 1  # some zones were dearer on spot than on demand
        assert price.age_days(date(2027, 1, 1)) > 0
    price = SpotPrice(0.25, 1.0, "2026-09", "a list")
    words = "75 %, EC2's discount for spot as of 2026-09 (up to 83 days old; a list)"
    assert price.described(date(2026, 11, 23)) == words


def test_a_price_is_that_of_its_region():
    assert on_demand("ml.g4dn.xlarge", "us-east-1").usd_per_hour == 0.736
    assert on_demand("ml.g4dn.xlarge", "us-west-2").usd_per_hour == 0.7364


# ---- estimates ------------------------------------------------------------------------------------------------------

REGIONS = ("us-east-1", "us-east-2", "us-west-2", "eu-west-1", "eu-central-1", "ap-northeast-1")


@pytest.mark.parametrize("region", [*REGIONS, "ap-south-1"])
@pytest.mark.parametrize("name", [name for name in INSTANCES if name != "ml.p5e.48xlarge"])
def test_each_type_has_a_price_in_each_region(name, region):
    price = on_demand(name, region)
    assert 0.3 < price.usd_per_hour / INSTANCES[name].gpus < 40
    assert price.source


@pytest.mark.parametrize(
    ("instance_type", "region", "usd", "words"),
    [
        ("ml.p4d.24xlarge", "us-east-1", 21.957642 * 1.15, "EC2's $21.9576 x 1.15, SageMaker's ratio elsewhere"),
        ("ml.p5.4xlarge", "us-east-1", 6.88 * 1.15, "EC2's $6.88 x 1.15, SageMaker's ratio for p5"),
        ("ml.g4dn.12xlarge", "eu-central-1", 4.89 * 1.25, "x 1.25, SageMaker's ratio elsewhere"),
        ("ml.g4dn.xlarge", "eu-west-1", 0.587 * 1.4, "x 1.4, SageMaker's ratio elsewhere"),  # not 1.25: the smallest
        ("ml.g7e.2xlarge", "eu-central-1", 4.2039 * 1.25, "the price in us-east-1 x 1.25, eu-central-1's ratio"),
    ],
)
def test_a_missing_price_is_estimated_and_flagged(instance_type, region, usd, words):
    price = on_demand(instance_type, region)
    assert isinstance(price, EstimatedPrice)
    assert price.usd_per_hour == pytest.approx(usd, rel=0.01)
    text = price.described(date(2026, 12, 1))
    assert text.startswith("ESTIMATED $")
    assert words in text
    low, high = (float(part) for part in text.partition("90 %: $")[2].partition(")")[0].split(" to $"))
    assert low < price.usd_per_hour < high == pytest.approx(price.most_usd_per_hour, rel=1e-3)


def test_known_prices_are_within_their_estimates():
    """Each known price, left out and estimated from all others; third parties round and date their prices."""
    listed = prices.on_demand_prices()
    errors = []
    for kind, price in listed.items():
        others = {other: known for other, known in listed.items() if other != kind}
        guess = estimate(*kind, others)
        errors.append(abs(math.log(guess.usd_per_hour / price.usd_per_hour)) / guess.sd)
    assert sum(error < 1.645 for error in errors) / len(errors) > 0.9


def test_an_estimate_from_another_region_is_less_certain_than_one_from_ec2s_price():
    near, far, farther = (on_demand("ml.g5.2xlarge", region) for region in ("us-east-2", "eu-central-1", "ap-south-1"))
    assert near.log_sd <= far.log_sd < farther.log_sd
    assert [price.is_of_region for price in (near, far, farther)] == [True, True, False]
    assert not on_demand("ml.p5.4xlarge", "eu-west-1").is_of_region
    assert on_demand("ml.p5.4xlarge", "us-east-1").is_of_region


def test_what_cannot_be_estimated_is_an_error_that_says_where_to_look():
    for kind in (("ml.p5e.48xlarge", "us-east-1"), ("ml.x9.large", "us-east-1"), ("ml.g5.xlarge", "cn-north-1")):
        with pytest.raises(InputError, match=rf"{kind[0]} in {kind[1]}: neither.*prices --refresh.*prices\.csv"):
            on_demand(*kind)
    with pytest.raises(InputError, match=r"--region: 'us-east-7' is not a region.*Did you mean us-east-"):
        on_demand("ml.g5.xlarge", "us-east-7")


# ---- age ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("known", "age_days"), [("2026-09-24", 60), ("2026-09", 83), ("2026", 326), ("2024", 1057)]
)  # on 2026-11-23; a month or a year counts from its first day
def test_age_is_the_greatest_that_the_date_allows(known, age_days):
    assert Price(1.0, known, "a list").age_days(date(2026, 11, 23)) == age_days


def test_wherever_a_price_is_used_its_age_in_days_and_source_are_shown():
    text = Price(4.89, "2024", "a table").described(date(2026, 11, 23))
    assert text == "$4.89 an hour as of 2024 (up to 1,057 days old, MORE THAN 180; a table)"
    assert "up to 14 days old; a" in Price(1.0, "2026-11-09", "a table").described(date(2026, 11, 23))
    assert "an unknown date (of UNKNOWN age; a table)" in Price(1.0, "", "a table").described()


@pytest.mark.parametrize(("known", "is_old"), [("2026-06-04", True), ("2026-06-05", False), ("", True)])
def test_a_price_is_old_after_180_days(known, is_old):
    assert Price(1.0, known, "a list").is_old(date(2026, 12, 2)) == is_old
