"""Prices have a date and a source, and a missing price is an error."""

import csv
from datetime import date

import pytest

from w2v_lightning.catalog import prices
from w2v_lightning.catalog.instances import instance
from w2v_lightning.catalog.prices import Price, on_demand
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
        assert 0 < price.spot_usd_per_hour < price.ec2_usd_per_hour
        assert price.age_days(date(2027, 1, 1)) > 0
    price = prices.SpotPrice(0.25, 1.0, "2026-09", "a list")
    words = "75 %, EC2's discount for spot as of 2026-09 (up to 3 months old; a list)"
    assert price.described(date(2026, 11, 23)) == words


def test_a_price_is_that_of_its_region():
    assert on_demand("ml.g4dn.xlarge", "us-east-1").usd_per_hour == 0.736
    assert on_demand("ml.g4dn.xlarge", "us-west-2").usd_per_hour == 0.7364


@pytest.mark.parametrize(
    ("instance_type", "region", "words"),
    [
        ("ml.p4d.24xlarge", "us-east-1", ["us-east-1", "only for us-west-2", "prices.csv", "add a row"]),
        ("ml.g4dn.12xlarge", "eu-central-1", ["eu-central-1", "only for us-east-1"]),
        ("ml.x9.large", "us-east-1", ["for no region"]),
    ],
)
def test_a_missing_price_is_an_error_that_says_where_to_look(instance_type, region, words):
    with pytest.raises(InputError) as raised:
        on_demand(instance_type, region)
    assert all(word in str(raised.value) for word in [instance_type, *words]), str(raised.value)


@pytest.mark.parametrize(
    ("known", "age_days"), [("2026-09-24", 60), ("2026-09", 83), ("2026", 326), ("2024", 1057)]
)  # on 2026-11-23; a month or a year counts from its first day
def test_age_is_the_greatest_that_the_date_allows(known, age_days):
    assert Price(1.0, known, "a list").age_days(date(2026, 11, 23)) == age_days


def test_wherever_a_price_is_used_its_age_and_source_are_shown():
    text = Price(4.89, "2024", "a table").described(date(2026, 11, 23))
    assert text == "$4.89 an hour as of 2024 (up to 35 months old; a table)"
    assert "up to 14 days old" in Price(1.0, "2026-11-09", "a table").described(date(2026, 11, 23))
