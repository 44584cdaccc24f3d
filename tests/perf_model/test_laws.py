"""Amdahl's law, the universal scalability law, and the number of devices beyond which more stop paying off."""

import pytest
from synthetic_study import parameters, t4

from w2v_lightning.errors import InputError
from w2v_lightning.perf_model.laws import Law, amdahl, device_seconds, knee, usl
from w2v_lightning.perf_model.step_time import Terms, terms

NUMBERS = (1, 2, 4, 8, 12, 16)


def points(law, numbers=NUMBERS):
    return [(n, law.rate(n)) for n in numbers]


def test_laws_find_what_made_the_points():
    made = Law("USL", rate_1=100.0, serial=0.05, crosstalk=0.002, error=0.0)
    found = usl(points(made))
    assert (found.rate_1, found.serial, found.crosstalk) == pytest.approx((100, 0.05, 0.002), rel=1e-4)
    assert found.peak == pytest.approx((0.95 / 0.002) ** 0.5, rel=1e-3)
    found = amdahl(points(Law("Amdahl", 50.0, 0.2, 0.0, 0.0)))
    assert (found.rate_1, found.serial, found.peak) == (pytest.approx(50), pytest.approx(0.2), None)
    assert found.rate(1e9) == pytest.approx(50 / 0.2, rel=1e-3)  # the limit


def test_the_error_says_how_well_a_law_fits():
    made = Law("USL", 100.0, 0.02, 0.01, 0.0)
    assert usl(points(made)).error < 1e-6
    assert amdahl(points(made)).error > 0.05  # in Amdahl's law throughput never falls


def test_a_law_needs_as_many_numbers_of_devices_as_it_has_unknowns():
    with pytest.raises(InputError, match=r"Amdahl.*2 unknowns.*the runs have 1 \(4\)"):
        amdahl([(4, 100.0), (4, 101.0)])
    with pytest.raises(InputError, match=r"USL.*3 unknowns"):
        usl([(1, 100.0), (2, 180.0)])


def test_the_knee_is_where_a_device_adds_less_than_half_and_the_growing_term_is_named():
    setups = [t4(1, hosts=n) for n in NUMBERS]
    known = parameters(setups, link_efficiency=0.75)
    found = knee({setup.world_size: terms(setup, known) for setup in setups})
    assert found.term == "communication"
    assert found.worth < 0.5
    before, at, after = (1 / terms(t4(1, hosts=n), known).step_s for n in (1, found.devices, found.next_devices))
    assert (after - at) / (found.next_devices - found.devices) / before == pytest.approx(found.worth)
    assert f"{found.devices} to {found.next_devices} devices" in found.reason


def test_each_cause_of_a_knee_is_told():
    """A part that does not shrink with more devices grows in device-seconds."""
    for term, change in (
        ("data", {"data_s": 0.9}),
        ("communication", {"exposed_s": 0.9}),
        ("imbalance", {"imbalance_s": 0.9}),
        ("overhead", {"overhead_s": 0.9}),
        ("compute", {"compute_s": 0.9}),
    ):
        found = knee({n: parts(n, **change) if n > 1 else parts(n) for n in (1, 2, 4, 8)})
        assert found.term == term, term
        assert term in found.reason


def test_no_knee_where_all_devices_pay():
    assert knee({n: parts(n) for n in (1, 2, 4, 8)}) is None
    assert knee({4: parts(4)}) is None


def test_more_devices_that_make_it_slower_are_said_to():
    found = knee({1: parts(1), 2: parts(2, exposed_s=2.0)})
    assert found.worth < 0
    assert "each further device makes training slower" in found.reason


def test_perfect_scaling_costs_as_many_device_seconds_on_any_number():
    assert device_seconds(8, parts(8)) == pytest.approx(device_seconds(1, parts(1)))


def parts(devices, **changes):
    given = {"compute_s": 1 / devices, "data_s": 0.0, "exposed_s": 0.0, "imbalance_s": 0.0, "overhead_s": 0.0}
    return Terms(**{**given, **changes})
