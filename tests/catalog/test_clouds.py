"""Prices of other clouds: the snapshot that ships, and newer files in the format of SkyPilot's catalog."""

import csv
from datetime import UTC, datetime

import pytest

from w2v_lightning.catalog import clouds
from w2v_lightning.catalog.clouds import refresh
from w2v_lightning.errors import InputError

HEADER = f"{','.join(clouds.COLUMNS)},GpuInfo,AvailabilityZone\n"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Replace the user's cache by a folder of the test."""
    monkeypatch.setenv("W2V_LIGHTNING_CACHE", str(tmp_path / "cache"))
    clouds.listing.cache_clear()
    yield tmp_path
    clouds.listing.cache_clear()


def offer(folder, monkeypatch, cloud, rows):
    """Make a catalog of these rows the one that --refresh reads."""
    (folder / f"{cloud}.csv").write_text(HEADER + rows)
    monkeypatch.setenv(refresh.VARIABLE, (folder / "{cloud}.csv").as_uri().replace("%7B", "{").replace("%7D", "}"))


@pytest.mark.parametrize("cloud", clouds.CLOUDS)
def test_each_row_of_the_snapshot_has_a_price_a_source_and_a_date_unless_the_source_has_none(cloud):
    rows = clouds.listing(cloud)
    with (clouds.FOLDER / f"{cloud}.csv").open(newline="") as file:
        assert len(rows) == len(list(csv.DictReader(file)))
    assert len({(row.instance_type, row.accelerator, row.region) for row in rows}) == len(rows)
    for row in rows:
        assert row.gpus in (1, 2, 4, 8)
        assert row.vcpus > 0
        for price in filter(None, (row.price, row.spot)):
            assert 0.1 < price.usd_per_hour / row.gpus < 25
            assert price.source
            assert price.date[:3] in ("", "202")


def test_a_refreshed_file_replaces_the_snapshot_and_is_of_today(folder, monkeypatch):
    rows = "gpu_1x_x,H100,1.0,26,200,2.5,,all,,\ncpu,,,4,16,0.1,,all,,\ngpu_8x_x,H100,8,208,1800,0.0,9.9,eu,,\n"
    offer(folder, monkeypatch, "lambda", rows)
    assert refresh.refresh("lambda") == 2
    alone, eight = clouds.listing("lambda")
    assert (alone.instance_type, alone.gpus, alone.price.usd_per_hour, alone.spot) == ("gpu_1x_x", 1, 2.5, None)
    assert (eight.price, eight.spot.usd_per_hour) == (None, 9.9)  # SkyPilot writes 0 where there is no price
    assert alone.price.date == eight.spot.date == datetime.now(UTC).date().isoformat()


def test_of_a_regions_zones_the_one_with_the_median_spot_price_counts(folder, monkeypatch):
    rows = "".join(f"g5.xlarge,A10G,1,4,16,1.006,{usd},us-east-1,,zone-{usd}\n" for usd in (0.9, 0.4, 0.5))
    offer(folder, monkeypatch, "aws", rows)
    assert refresh.refresh("aws") == 1
    assert clouds.listing("aws")[0].spot.usd_per_hour == 0.5


def test_googles_gpus_are_added_to_their_machines(folder, monkeypatch):
    rows = (
        "a2-highgpu-8g,,,96,680,6.0,3.0,us-central1,,a\n,A100,8.0,,,23.0,11.0,us-central1,,a\n"
        ",A100,16.0,,,46.0,22.0,us-central1,,a\n,H100,8.0,,,30.0,,us-central1,,a\n"
    )
    offer(folder, monkeypatch, "gcp", rows)
    assert refresh.refresh("gcp") == 1
    (row,) = clouds.listing("gcp")
    assert (row.instance_type, row.accelerator, row.gpus) == ("a2-highgpu-8g", "A100", 8)
    assert (row.price.usd_per_hour, row.spot.usd_per_hour) == (29.0, 14.0)


@pytest.mark.parametrize("cloud", ["lambda", "gcp"])
@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, r"cannot be used \(.*No such file"),
        ("<html>not found</html>\n", "it lacks the columns AcceleratorCount, AcceleratorName, "),
        (HEADER, "it has no machine with a GPU and a price"),
        (HEADER + "x,H100,1,26,200,cheap,,all,,\n", "line 2: could not convert string to float: 'cheap'"),
        (HEADER + "x,H100,one,26,200,1.0,,all,,\n,H100,one,26,200,1.0,,all,,\n", "could not convert .*'one'"),
    ],
)
def test_what_cannot_be_used_leaves_the_prices_as_they_were(folder, monkeypatch, cloud, text, words):
    offer(folder, monkeypatch, cloud, "")
    path = folder / f"{cloud}.csv"
    path.write_text(text) if text else path.unlink()
    before = clouds.listing(cloud)
    with pytest.raises(InputError, match=words):
        refresh.refresh(cloud)
    clouds.listing.cache_clear()
    assert clouds.listing(cloud) == before
    assert not [*clouds.cache_folder().glob("*")]
