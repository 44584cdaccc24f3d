"""Command `study prices`: known prices and their age; with --refresh, the prices of today from AWS.

On-demand prices are those of training in the price list of SageMaker. SageMaker has no list of spot prices, so EC2's
for the same instances replace them: the median over the region's zones, beside EC2's on-demand price.
"""

import csv
import json
import math
import re
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from w2v_lightning.catalog import images, prices
from w2v_lightning.catalog.dated import OLD_DAYS, Dated, EstimatedPrice, Price, SpotPrice
from w2v_lightning.catalog.instances import INSTANCES
from w2v_lightning.catalog.prices import Kind
from w2v_lightning.command_line import Parser, parse, parser_of
from w2v_lightning.errors import InputError, listed
from w2v_lightning.runtime.files import atomic_text_file
from w2v_lightning.sagemaker import aws_session
from w2v_lightning.sagemaker.aws_errors import explain_aws_errors

PRICE_LIST_REGION = "us-east-1"  # one of the few that answer; it knows the prices of all
PRICE_LIST = "AWS Price List API"
SPOT_HISTORY = "EC2 spot price history, median over zones, and AWS Price List API"
# Usage type of training, such as "USE1-Train:ml.g4dn.xlarge"; many products have no other attribute with the instance.
TRAINING = re.compile(r"(?:[A-Z0-9]+-)?Train:(?P<instance_type>ml\.\S+)")
SPOT_SYSTEM = "Linux/UNIX"
PIPE_WIDTH = 160  # columns if the output is not a terminal
EC2_PRODUCT = {"operatingSystem": "Linux", "preInstalledSw": "NA", "tenancy": "Shared", "capacitystatus": "Used"}


@dataclass(frozen=True)
class PricesOptions:
    """List the known prices and their age, or fetch new ones from AWS.

    Args:
        refresh: update of prices.csv and spot_prices.csv with today's prices from AWS.
        region: AWS region; may be repeated; default: all regions with known prices of SageMaker or EC2.
    """

    refresh: bool = False
    region: list[str] = field(default_factory=list)


@explain_aws_errors()
def main(args: Sequence[str]) -> int:
    """List or update the prices; return the exit status, which is 1 if some answers of AWS were ambiguous."""
    options = parse(PricesOptions, "study prices", args)
    regions = options.region or sorted({region for _, region in (*prices.on_demand_prices(), *prices.spot_prices())})
    problems = refresh(regions) if options.refresh else []
    if not options.refresh:
        console = Console()
        (console if console.is_terminal else Console(width=PIPE_WIDTH)).print(table(regions))
        print(
            f"\n~ estimated, because no list has it; ! perhaps older than {OLD_DAYS} days: --refresh gets newer ones."
        )
    for problem in problems:
        print(f"Not changed: {problem}", file=sys.stderr)
    return 1 if problems else 0


def parser() -> Parser:
    """Return the parser of the options."""
    return parser_of(PricesOptions, "study prices")


def table(regions: Sequence[str]) -> Table:
    """Return a table of the prices in some regions, listed or estimated, with their age in days.

    Raises:
        InputError: a region is unknown.
    """
    rows = Table(box=None, pad_edge=False)
    for title in ("instance type", "region", "USD/h", "days old", "spot saving", "days old"):
        is_text = title in ("instance type", "region")
        rows.add_column(title, no_wrap=True, justify="left" if is_text else "right")
    rows.add_column("source", overflow="fold")
    for region in regions:
        images.check_region(region)
        for name in INSTANCES:
            try:
                price = prices.on_demand(name, region)
            except InputError:
                rows.add_row(name, region, "-", "-", "-", "-", "no price of SageMaker or EC2 is known in any region")
                continue
            spot = prices.spot_prices().get((name, region))
            spot_cells = (f"{spot.saving:.0%}", _days_old(spot)) if spot else ("-", "-")
            mark = "~" if isinstance(price, EstimatedPrice) else ""
            rows.add_row(name, region, f"{mark}{price.usd_per_hour:.5g}", _days_old(price), *spot_cells, price.source)
    return rows


def _days_old(figure: Dated) -> str:
    """Return the age in days, with a mark if it is old."""
    days = figure.age_days()
    return ("?" if days == math.inf else f"{days:.0f}") + (" !" if figure.is_old() else "")


def refresh(regions: Sequence[str]) -> list[str]:
    """Fetch prices from AWS, rewrite both files, and print the changes; return the ambiguous answers.

    Rows without an answer stay as they are. The files are written after all answers have arrived, each atomically.

    Raises:
        InputError: AWS refuses or cannot be reached.
    """
    answers = Answers()
    with explain_aws_errors():
        for region in regions:
            fetch(region, answers)
    for path, old, new in (
        (prices.FILE, prices.on_demand_prices(), answers.on_demand),
        (prices.SPOT_FILE, prices.refreshed_spot_prices(), answers.spot),
    ):
        if new:
            write(path, {**old, **new})
        _print_changes(path, old, new, regions)
    prices.forget()
    return answers.problems


# ---- requests -------------------------------------------------------------------------------------------------------


@dataclass
class Answers:
    """Prices from AWS by instance type and region, and descriptions of ambiguous answers."""

    on_demand: dict[Kind, Price] = field(default_factory=dict)
    spot: dict[Kind, SpotPrice] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def fetch(region: str, answers: Answers) -> None:
    """Add all prices of a region to the answers."""
    boto, today = aws_session.boto_session(region), date.today().isoformat()
    price_list = boto.client("pricing", region_name=PRICE_LIST_REGION)
    training_usd = training_usd_per_hour(price_list, region)
    for instance_type in INSTANCES:
        if usd := _only(training_usd.get(instance_type, set()), f"{instance_type} in {region}", answers.problems):
            answers.on_demand[instance_type, region] = Price(usd, today, PRICE_LIST)
    for instance_type, spot_usd in spot_usd_per_hour(boto.client("ec2"), datetime.now(UTC)).items():
        ec2_usd = ec2_usd_per_hour(price_list, region, instance_type)
        if usd := _only(ec2_usd, f"EC2's {instance_type} in {region}", answers.problems):
            answers.spot[f"ml.{instance_type}", region] = SpotPrice(spot_usd, usd, today, SPOT_HISTORY)


def training_usd_per_hour(price_list: Any, region: str) -> dict[str, set[float]]:
    """Return by instance type the prices of an hour of training in the list; each type should have one."""
    usd_by_type: dict[str, set[float]] = defaultdict(set)
    for product in _products(price_list, "AmazonSageMaker", productFamily="ML Instance", regionCode=region):
        usage = TRAINING.fullmatch(product["product"]["attributes"].get("usagetype", ""))
        if usage and usage["instance_type"] in INSTANCES:
            usd_by_type[usage["instance_type"]] |= set(hourly_usd(product))
    return usd_by_type


def ec2_usd_per_hour(price_list: Any, region: str, instance_type: str) -> set[float]:
    """Return all on-demand prices of an hour of an EC2 instance, whose type has no "ml."."""
    products = _products(price_list, "AmazonEC2", instanceType=instance_type, regionCode=region, **EC2_PRODUCT)
    return {usd for product in products for usd in hourly_usd(product)}


def spot_usd_per_hour(ec2: Any, now: datetime) -> dict[str, float]:
    """Return by instance type, without "ml.", the median of the spot prices in the region's zones."""
    pages = ec2.get_paginator("describe_spot_price_history").paginate(
        InstanceTypes=[name.removeprefix("ml.") for name in INSTANCES],
        ProductDescriptions=[SPOT_SYSTEM],
        StartTime=now,  # equal start and end give the current price instead of a history
        EndTime=now,
    )
    newest: dict[str, dict[str, float]] = defaultdict(dict)
    for row in sorted((row for page in pages for row in page["SpotPriceHistory"]), key=lambda row: row["Timestamp"]):
        newest[row["InstanceType"]][row["AvailabilityZone"]] = float(row["SpotPrice"])
    return {instance_type: statistics.median(by_zone.values()) for instance_type, by_zone in newest.items()}


def hourly_usd(product: Mapping[str, Any]) -> Iterator[float]:
    """Yield the on-demand prices of a product of the price list, without prices of 0.

    Raises:
        InputError: it is not priced by the hour, or not in US dollars.
    """
    terms = product.get("terms", {}).get("OnDemand", {}).values()
    for dimension in (dimension for term in terms for dimension in term["priceDimensions"].values()):
        unit, usage = dimension["unit"], product["product"]["attributes"].get("usagetype")
        if unit not in ("Hrs", "Hours") or "USD" not in dimension["pricePerUnit"]:
            currencies = listed(list(dimension["pricePerUnit"]))
            raise InputError(
                f"{usage} is priced per {unit} in {currencies}, not per hour in USD, so nothing was changed: add a row"
                " by hand, or leave this region out (--region)."
            )
        if usd := float(dimension["pricePerUnit"]["USD"]):
            yield usd


def _products(price_list: Any, service: str, **attributes: str) -> Iterator[dict[str, Any]]:
    filters = [{"Type": "TERM_MATCH", "Field": name, "Value": value} for name, value in attributes.items()]
    for page in price_list.get_paginator("get_products").paginate(ServiceCode=service, Filters=filters):
        yield from map(json.loads, page["PriceList"])


def _only(prices_usd: set[float], product: str, problems: list[str]) -> float | None:
    if len(prices_usd) > 1:
        problems.append(f"{product}: AWS has several prices, {', '.join(f'${usd:g}' for usd in sorted(prices_usd))}.")
    return next(iter(prices_usd)) if len(prices_usd) == 1 else None


# ---- files ----------------------------------------------------------------------------------------------------------


def write(path: Path, rows: Mapping[Kind, Price | SpotPrice]) -> None:
    """Write a file of prices atomically, sorted by instance type and region.

    Raises:
        InputError: the file cannot be written.
    """
    order = {name: position for position, name in enumerate(INSTANCES)}
    lines = [
        {"instance_type": instance_type, "region": region, **asdict(rows[instance_type, region])}
        for instance_type, region in sorted(rows, key=lambda kind: (order.get(kind[0], len(order)), *kind))
    ]
    try:
        with atomic_text_file(path) as file:
            writer = csv.DictWriter(file, lines[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(lines)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}.") from None


def _print_changes(path: Path, old: Mapping[Kind, Any], new: Mapping[Kind, Any], regions: Sequence[str]) -> None:
    changes = [line for kind, price in new.items() if (line := _change(kind, old.get(kind), price))]
    unanswered = [f"{kind} in {region}" for kind, region in old if region in regions and (kind, region) not in new]
    print(f"{path.name}: {len(new)} prices are of today, {len(changes)} of them new or changed.")
    for change in changes:
        print(f"  {change}")
    if unanswered:
        print(f"  No answer for {listed(unanswered)}: kept with their dates.")


def _change(kind: Kind, old: Price | SpotPrice | None, new: Price | SpotPrice) -> str:
    """Return the change of a price in words; "" if the dollars are the same."""
    where = f"{kind[0]} in {kind[1]}"
    if old is None:
        return f"{where}: {_dollars(new)} (new)"
    return "" if _dollars(old) == _dollars(new) else f"{where}: {_dollars(new)}, was {_dollars(old)} as of {old.date}"


def _dollars(price: Price | SpotPrice) -> str:
    return ", ".join(f"${value:g}" for name, value in asdict(price).items() if "usd" in name)
