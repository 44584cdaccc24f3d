"""`study prices --refresh` against answers in the form that AWS documents; botocore checks questions and answers."""

import csv
import json
import os
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest

from w2v_lightning.catalog import prices
from w2v_lightning.errors import InputError
from w2v_lightning.sagemaker import aws_session, refresh_prices

botocore = pytest.importorskip("botocore.session", reason="pip install 'w2v-lightning[aws]'")
from botocore.stub import ANY, Stubber  # noqa: E402

TODAY = datetime.now(UTC).date().isoformat()
NOW = datetime(2026, 11, 23, 8, tzinfo=UTC)
SPOT_FILE = "instance_type,region,spot_usd_per_hour,ec2_usd_per_hour,date,source\n"
ON_DEMAND_FILE = """instance_type,region,usd_per_hour,date,source
ml.g4dn.xlarge,us-east-1,0.736,2026-09-24,a list
ml.g4dn.12xlarge,us-east-1,4.89,2024,a table
ml.g4dn.xlarge,us-west-2,0.7364,2026,a list
"""


@pytest.fixture(scope="module")
def clients():
    """Return clients of botocore without a service; reading the services' descriptions takes a second."""
    core = botocore.get_session()
    names = {"pricing": "us-east-1", "ec2": "us-east-1"}
    keys = {"aws_access_key_id": "x", "aws_secret_access_key": "x"}
    return {name: core.create_client(name, region_name=region, **keys) for name, region in names.items()}


@pytest.fixture
def aws(clients, monkeypatch):
    """Answers are queued on it, in the order of the questions: `aws["pricing"].add_response(...)`."""

    class Session:
        def client(self, name, region_name=None):
            assert region_name == ("us-east-1" if name == "pricing" else None)
            return clients[name]

    monkeypatch.setattr(aws_session, "boto_session", lambda region: Session())
    with Stubber(clients["pricing"]) as pricing, Stubber(clients["ec2"]) as ec2:
        yield {"pricing": pricing, "ec2": ec2}


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Replace prices.csv and spot_prices.csv by the test's own; yield their folder."""
    for name, text in (("FILE", ON_DEMAND_FILE), ("SPOT_FILE", SPOT_FILE)):
        path = tmp_path / f"{name.lower()}.csv"
        path.write_text(text)
        monkeypatch.setattr(prices, name, path)
    forget()
    yield tmp_path
    forget()


def forget():
    prices.forget()


def product(usagetype, usd, unit="Hrs", currency="USD", **attributes):
    """Return a product as in the Price List API's documentation, without unused attributes."""
    dimension = {"unit": unit, "beginRange": "0", "endRange": "Inf", "pricePerUnit": {currency: usd}}
    return json.dumps(
        {
            "product": {
                "sku": "6E63PZ5DJGP5EBW7",
                "productFamily": "ML Instance",
                "attributes": {"servicecode": "AmazonSageMaker", "usagetype": usagetype, **attributes},
            },
            "serviceCode": "AmazonSageMaker",
            "terms": {
                "OnDemand": {
                    "6E63PZ5DJGP5EBW7.JRTCKXETXF": {
                        "offerTermCode": "JRTCKXETXF",
                        "effectiveDate": "2026-11-01T00:00:00Z",
                        "priceDimensions": {"6E63PZ5DJGP5EBW7.JRTCKXETXF.6YS6EN2CT7": dimension},
                    }
                }
            },
            "publicationDate": "2026-11-20T18:00:00Z",
            "version": "20261120180000",
        }
    )


def spot(zone, usd, minutes=0, instance_type="g4dn.xlarge"):
    return {
        "AvailabilityZone": zone,
        "InstanceType": instance_type,
        "ProductDescription": "Linux/UNIX",
        "SpotPrice": usd,
        "Timestamp": NOW.replace(minute=minutes),
    }


def filters(**attributes):
    return [{"Type": "TERM_MATCH", "Field": field, "Value": value} for field, value in attributes.items()]


def answer(aws, *pages, spot_rows=(), ec2=None):
    """Queue the answers for a region: pages of training prices, spot, and for each type with spot EC2's price."""
    asked = {"ServiceCode": "AmazonSageMaker", "Filters": filters(productFamily="ML Instance", regionCode="us-east-1")}
    for number, page in enumerate(pages):
        more = {"NextToken": str(number + 1)} if number + 1 < len(pages) else {}
        token = {"NextToken": str(number)} if number else {}
        aws["pricing"].add_response("get_products", {"PriceList": page, **more}, asked | token)
    aws["ec2"].add_response("describe_spot_price_history", {"SpotPriceHistory": list(spot_rows)})
    for instance_type, usd in (ec2 or {}).items():
        of_ec2 = filters(instanceType=instance_type, regionCode="us-east-1", **refresh_prices.EC2_PRODUCT)
        asked = {"ServiceCode": "AmazonEC2", "Filters": of_ec2}
        aws["pricing"].add_response("get_products", {"PriceList": [product(f"BoxUsage:{instance_type}", usd)]}, asked)


def command(*args):
    return refresh_prices.main(args)


def rows(path):
    with path.open(newline="") as file:
        return {(row["instance_type"], row["region"]): row for row in csv.DictReader(file)}


def test_prices_are_replaced_and_those_without_an_answer_kept(aws, files, capsys):
    answer(
        aws,
        [product("USE1-Train:ml.g4dn.xlarge", "0.7500000000"), product("USE1-Host:ml.g4dn.xlarge", "9.0")],
        [product("USE1-Train:ml.g6.xlarge", "1.127"), product("USE1-Train:ml.m5.large", "0.115")],
    )
    assert command("--refresh", "--region", "us-east-1") == 0
    found = rows(prices.FILE)
    assert found["ml.g4dn.xlarge", "us-east-1"]["usd_per_hour"] == "0.75"
    assert found["ml.g4dn.xlarge", "us-east-1"]["date"] == TODAY
    assert found["ml.g6.xlarge", "us-east-1"]["source"] == "AWS Price List API"
    assert found["ml.g4dn.12xlarge", "us-east-1"]["date"] == "2024"
    assert found["ml.g4dn.xlarge", "us-west-2"]["usd_per_hour"] == "0.7364"
    assert ("ml.m5.large", "us-east-1") not in found  # no GPU
    assert list(found) == sorted(found, key=lambda kind: list(refresh_prices.INSTANCES).index(kind[0]))
    assert prices.on_demand("ml.g4dn.xlarge", "us-east-1").usd_per_hour == 0.75  # at once, in this process too
    printed = capsys.readouterr().out
    assert "2 prices are of today, 2 of them new or changed" in printed
    assert "ml.g4dn.xlarge in us-east-1: $0.75, was $0.736 as of 2026-09-24" in printed
    assert "ml.g6.xlarge in us-east-1: $1.127 (new)" in printed
    assert "No answer for ml.g4dn.12xlarge in us-east-1: kept with their dates." in printed
    assert "us-west-2" not in printed


def test_spot_is_the_median_of_the_zones_newest_prices(aws, files, capsys):
    history = [
        spot("us-east-1a", "0.20"),
        spot("us-east-1b", "0.90", minutes=1),
        spot("us-east-1b", "0.22", minutes=30),  # what came after
        spot("us-east-1c", "0.30"),
    ]
    answer(aws, [], spot_rows=history, ec2={"g4dn.xlarge": "0.526"})
    command("--refresh", "--region", "us-east-1")
    price = prices.spot_prices()["ml.g4dn.xlarge", "us-east-1"]
    assert (price.spot_usd_per_hour, price.ec2_usd_per_hour, price.date) == (0.22, 0.526, TODAY)
    assert price.saving == pytest.approx(0.5817, abs=1e-4)
    assert "ml.g4dn.xlarge in us-east-1: $0.22, $0.526 (new)" in capsys.readouterr().out


def test_what_is_asked_of_spot_is_the_present(aws, files):
    asked = {"InstanceTypes": ANY, "ProductDescriptions": ["Linux/UNIX"], "StartTime": NOW, "EndTime": NOW}
    aws["ec2"].add_response("describe_spot_price_history", {"SpotPriceHistory": []}, asked)
    assert refresh_prices.spot_usd_per_hour(aws["ec2"].client, NOW) == {}


def test_a_price_of_nothing_is_none_and_two_prices_are_not_understood(aws, files, capsys):
    free, one, other = (product("USE1-Train:ml.g4dn.xlarge", usd) for usd in ("0.0000000000", "0.75", "0.8"))
    answer(aws, [free, one, other, product("USE1-Train:ml.g4dn.12xlarge", "0.0")])
    assert command("--refresh", "--region", "us-east-1") == 1
    assert rows(prices.FILE)["ml.g4dn.xlarge", "us-east-1"]["date"] == "2026-09-24"
    assert rows(prices.FILE)["ml.g4dn.12xlarge", "us-east-1"]["usd_per_hour"] == "4.89"
    assert "ml.g4dn.xlarge in us-east-1: AWS has several prices, $0.75, $0.8" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("other", "words"), [({"unit": "Seconds"}, "per Seconds in USD"), ({"currency": "CNY"}, "per Hrs in CNY")]
)
def test_other_units_change_nothing(aws, files, other, words):
    answer(aws, [product("USE1-Train:ml.g4dn.xlarge", "0.75", **other)])
    with pytest.raises(InputError, match=words):
        command("--refresh", "--region", "us-east-1")
    assert prices.FILE.read_text() == ON_DEMAND_FILE


def test_a_refusal_changes_nothing_and_says_what_to_do(aws, files):
    answer(aws, [product("USE1-Train:ml.g4dn.xlarge", "0.75")])
    aws["ec2"]._queue.clear()
    aws["ec2"].add_client_error("describe_spot_price_history", "UnauthorizedOperation", "You are not authorized.")
    with pytest.raises(InputError, match=r"DescribeSpotPriceHistory.*UnauthorizedOperation.*policy"):
        command("--refresh", "--region", "us-east-1")
    assert prices.FILE.read_text() == ON_DEMAND_FILE


def test_a_file_is_written_whole_or_not_at_all(aws, files, monkeypatch):
    answer(aws, [product("USE1-Train:ml.g4dn.xlarge", "0.75")])

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError, match=r"cannot be written: No space left"):
        command("--refresh", "--region", "us-east-1")
    assert prices.FILE.read_text() == ON_DEMAND_FILE
    assert not list(files.glob(".*"))


def test_the_policy_allows_what_is_asked():
    allowed = json.loads((Path(__file__).parents[2] / "launch" / "policy.json").read_text())["Statement"]
    assert ["pricing:GetProducts", "ec2:DescribeSpotPriceHistory"] in [statement["Action"] for statement in allowed]


def test_prices_are_listed_with_their_ages(files, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert command("--region", "us-east-1") == 0
    printed = capsys.readouterr().out
    assert "ml.g4dn.12xlarge" in printed
    assert re.search(r"ml\.g4dn\.12xlarge +us-east-1 +4\.89 +[\d,]+ ! ", printed)  # of 2024
    assert re.search(r"ml\.p5\.4xlarge +us-east-1 +~\d\.\d+ +\d+ ", printed)
    assert re.search(r"ml\.p5e\.48xlarge +us-east-1 +- .*no price", printed)
    assert "us-west-2" not in printed.partition("source")[0]
    with pytest.raises(InputError, match=r"--region: 'mars-1' is not a region"):
        command("--region", "mars-1")


@pytest.mark.parametrize(
    "row", ["ml.g4dn.xlarge,us-east-1,0.7 EUR,2026,a", "ml.g4dn.xlarge,us-east-1,1.0,last year,a", "ml.g4dn.xlarge"]
)
def test_a_row_by_hand_that_is_wrong_is_named(files, row):
    prices.FILE.write_text(f"{ON_DEMAND_FILE}{row}\n")
    with pytest.raises(InputError, match=r"line 5: .*A row has instance_type, region, dollars"):
        prices.on_demand("ml.g4dn.xlarge", "us-east-1")


def test_rewriting_what_there_is_changes_nothing(tmp_path):
    """So that a refresh shows in a diff what it has changed, and nothing else."""
    for path, found in ((prices.FILE, prices.on_demand_prices()), (prices.SPOT_FILE, prices.refreshed_spot_prices())):
        refresh_prices.write(tmp_path / path.name, found)
        assert (tmp_path / path.name).read_text() == path.read_text()
