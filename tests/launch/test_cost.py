"""Cost as a pure function."""

import pytest

from launch.study.cost import SPOT_SAVING_RANGE, saving, storage_usd, training_usd


def test_billable_seconds_are_of_one_instance():
    assert training_usd(3600, 1, 4.89) == pytest.approx(4.89)
    assert training_usd(1800, 4, 4.89) == pytest.approx(9.78)
    assert training_usd(0, 4, 4.89) == 0


def test_a_spot_discount_is_fewer_billable_seconds():
    assert saving(1000, 300) == pytest.approx(0.7)
    assert saving(1000, 1000) == 0
    assert saving(0, 0) == 0  # capacity never came
    low, high = SPOT_SAVING_RANGE
    assert 0 < low < high < 1


def test_disks_are_paid_by_the_month():
    month_s = 365.25 / 12 * 24 * 3600
    assert storage_usd(month_s, 2, 100, 0.1) == pytest.approx(20)
