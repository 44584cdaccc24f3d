"""Cost of training jobs."""

import pytest

from w2v_lightning.catalog.cost import SPOT_SAVING_RANGE, saving, storage_usd, training_usd


def test_billable_seconds_are_of_one_instance():
    assert training_usd(3600, 1, 4.89) == pytest.approx(4.89)
    assert training_usd(1800, 4, 4.89) == pytest.approx(9.78)
    assert training_usd(0, 4, 4.89) == 0


def test_a_spot_discount_is_fewer_billable_seconds():
    assert saving(1000, 300) == pytest.approx(0.7)
    assert saving(1000, 1000) == 0
    assert saving(0, 0) == 0  # no capacity was found
    low, high = SPOT_SAVING_RANGE
    assert 0 < low < high < 1


def test_disks_are_paid_by_the_month():
    month_s = 365.25 / 12 * 24 * 3600
    assert storage_usd(month_s, 2, 100, 0.1) == pytest.approx(20)


@pytest.mark.parametrize(
    ("billable_s", "count", "usd_per_hour", "usd"),
    [
        (2 * 3600, 1, 0.736, 1.472),  # two hours of one ml.g4dn.xlarge
        (90 * 60, 12, 0.94, 16.92),  # an hour and a half of twelve ml.g4dn.2xlarge: 18 instance-hours
        (90 * 60, 3, 4.89, 22.005),  # the same twelve GPUs in three ml.g4dn.12xlarge: 4.5 instance-hours
        (15 * 60, 8, 63.296, 126.592),  # a quarter of an hour of eight ml.p5.48xlarge: two instance-hours
        (1, 1, 3600, 1),  # by the second
    ],
)
def test_examples_worked_out_by_hand(billable_s, count, usd_per_hour, usd):
    assert training_usd(billable_s, count, usd_per_hour) == pytest.approx(usd)


@pytest.mark.parametrize(
    ("instances", "usd_per_hour", "minutes"), [(12, 0.94, 121), (3, 4.89, 93)]
)  # ml.g4dn.2xlarge and ml.g4dn.12xlarge
def test_the_original_studys_saving_follows_from_its_figures(instances, usd_per_hour, minutes):
    """The study reports a saving of $7.96 for 12 GPUs, up to 35 %, and neither times nor bills.

    Both figures are true for about two hours (or an hour and a half) of training, which is a plausible time to
    fine-tune on 100 h of speech.
    """
    training_s = minutes * 60
    billable_s = training_s * (1 - 0.35)
    on_demand, spot = (training_usd(seconds, instances, usd_per_hour) for seconds in (training_s, billable_s))
    assert on_demand - spot == pytest.approx(7.96, abs=0.04)
    assert saving(training_s, billable_s) == pytest.approx(0.35)
    assert on_demand == pytest.approx(7.96 / 0.35, abs=0.1)


def test_disks_are_paid_for_all_of_the_time_however_much_is_billable():
    """Disks of 100 GB for ten hours of four instances: $0.14 per GB and month is 0.0192 cents per GB and hour."""
    assert storage_usd(10 * 3600, 4, 100, 0.14) == pytest.approx(10 * 4 * 100 * 0.14 / 730.5)
