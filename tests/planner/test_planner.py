"""The planner against brute force and against sums made by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_job import FULL_CONFIG as CONFIG
from synthetic_study import EPOCH, parameters, runs, t4

from w2v_lightning.catalog import prices
from w2v_lightning.catalog.dated import EstimatedPrice, Price, SpotPrice
from w2v_lightning.catalog.images import image_uri
from w2v_lightning.catalog.instances import INSTANCES
from w2v_lightning.errors import InputError
from w2v_lightning.perf_model.fitted import Prediction
from w2v_lightning.perf_model.fitting import fit
from w2v_lightning.perf_model.step_time import Terms
from w2v_lightning.planner import planner
from w2v_lightning.planner.assumptions import Assumption, Assumptions, assumptions
from w2v_lightning.planner.candidates import COUNTS, Candidate, Task, candidates, setup_of
from w2v_lightning.planner.checkpoint_interval import save_s
from w2v_lightning.planner.interruptions import expected
from w2v_lightning.planner.planner import Estimate, estimate, estimates, interruptions_of, pareto, recommend
from w2v_lightning.planner.workload import Model

REGION = "us-east-1"
IMAGE = image_uri("2.11", REGION)
DEFAULTS = {"startup_minutes": 5, "capacity_wait_minutes": 30, "interruptions_per_instance_hour": 0.1}
ASSUMED = Assumptions(Assumption(300.0, "a"), Assumption(1800.0, "b"), Assumption(0.1, "c"))


def task(**changes):
    config = CONFIG | {"data": CONFIG["data"] | changes.pop("data", {})} | changes.pop("config", {})
    values = {
        "config": config,
        "model": Model(3e10, 361_000_000, 15),
        "epoch": EPOCH,
        "steps": 1000,
        "device_seconds": lambda machine, world_size: 200.0,
        "input_mode": "FastFile",
    }
    return Task(**(values | changes))


def computing_in(precision):
    return CONFIG | {"trainer": CONFIG["trainer"] | {"precision": precision}}


class ByGpus:
    """Model of a step of 8 s divided by the GPUs, plus 0.2 s; the logarithm of its error has the sd `spread`."""

    def __init__(self, spread=0.0):
        self.spread = spread
        self.setups = []

    def step_s(self, setup):
        return 8.0 / setup.world_size + 0.2

    def predict(self, setup):
        self.setups.append(setup)
        terms = Terms(8.0 / setup.world_size, 0.0, 0.0, 0.0, 0.2)
        return Prediction(terms, terms.step_s, terms.step_s, "predicted", ("a reason",), terms.bottleneck)

    def draws(self, setup, rng, n):
        return self.step_s(setup) * np.exp(self.spread * rng.standard_normal(n))


# ---- the best of them -----------------------------------------------------------------------------------------------


def made_up(hours, usd, hours_p90=None, usd_p90=None, name="ml.g5.xlarge"):
    rest = {"billed_hours_p90": 1.0, "risk": None, "interruptions": 0.0, "terms": Terms(1, 0, 0, 0, 0)}
    rest |= {"basis": "predicted", "reasons": (), "price": Price(1.0, "2026", "x"), "saving": ""}
    bounds = {"hours_p90": hours_p90 or hours * 1.2, "usd_p90": usd_p90 or usd * 1.2}
    return Estimate(Candidate(name, 1, False, "16-mixed"), hours=hours, usd=usd, **bounds, **rest)


few = st.integers(1, 6).map(float)  # few values, so that there are ties
some = st.lists(st.builds(made_up, few, few, few, few), max_size=8)


@given(some)
@settings(max_examples=300, deadline=None)
def test_the_front_is_what_nothing_beats(found):
    """By brute force: no other estimate is at least as good in both and better in one."""

    def beats(a, b):
        return a.hours <= b.hours and a.usd <= b.usd and (a.hours, a.usd) != (b.hours, b.usd)

    front = pareto(found)
    unbeaten = {(one.hours, one.usd) for one in found if not any(beats(other, one) for other in found)}
    assert [(one.hours, one.usd) for one in front] == sorted(unbeaten, key=lambda one: one[1])


@given(some, st.none() | few, st.none() | few)
@settings(max_examples=300, deadline=None)
def test_the_recommendation_is_the_cheapest_that_is_allowed(found, deadline_h, budget_usd):
    allowed = []
    for one in found:
        is_late = deadline_h is not None and one.hours_p90 > deadline_h
        is_dear = budget_usd is not None and one.usd_p90 > budget_usd
        if not is_late and not is_dear:
            allowed.append(one)
    best = recommend(found, deadline_h, budget_usd).best
    if not allowed:
        assert best is None
        return
    assert best in allowed
    assert all((best.usd, best.hours) <= (one.usd, one.hours) for one in allowed)


def test_where_nothing_is_allowed_it_says_what_is_in_the_way():
    slow, dear = made_up(10, 5, hours_p90=12, usd_p90=6), made_up(2, 50, hours_p90=3, usd_p90=60)
    assert "12.0 h" in recommend([slow, dear], 5, 10).why or "$60.00" in recommend([slow, dear], 5, 10).why
    assert "the fastest takes 3.0 h" in recommend([slow, dear], 1, None).why
    assert "the fastest within the budget takes 12.0 h" in recommend([slow], 5, 10).why
    assert recommend([], 5, 10).why


@pytest.mark.parametrize("region", ["us-east-1", "us-west-2", "eu-central-1"])
@pytest.mark.parametrize("deadline_h", [0.3, 0.6, 2.0])
def test_the_whole_way_by_brute_force(region, deadline_h):
    """Brute force without the planner: every instance type and count on demand, at listed and estimated prices."""
    cheapest = None
    for name, machine in INSTANCES.items():
        if machine.gpu_name == "V100" or name == "ml.p5e.48xlarge":  # useless to the image; without any price
            continue
        for count in (count for count in COUNTS if count <= 16):
            hours = (300 + 1000 * (8.0 / (count * machine.gpus) + 0.2)) / 3600
            usd = hours * count * prices.on_demand(name, region).usd_per_hour
            if hours <= deadline_h and (cheapest is None or usd < cheapest[0]):
                cheapest = usd, name, count
    possible, _ = candidates(region, IMAGE, CONFIG, "never")
    found, left_out = estimates(possible, task(), ByGpus(), ASSUMED, region, deadline_h)
    best = recommend(found, deadline_h, None).best
    assert (best.candidate.instance_type, best.candidate.count) == cheapest[1:]
    assert best.usd == pytest.approx(cheapest[0], rel=0.005)  # the mean over an estimated price's interval
    assert not left_out


# ---- one candidate --------------------------------------------------------------------------------------------------


def test_on_demand_is_start_up_and_steps_at_the_price():
    found = estimate(Candidate("ml.g4dn.12xlarge", 2, False, "16-mixed"), task(), ByGpus(), ASSUMED, REGION, 0.4)
    hours = (300 + 1000 * 1.2) / 3600
    assert (found.hours, found.hours_p90) == (pytest.approx(hours), pytest.approx(hours))
    assert (found.usd, found.usd_p90) == (pytest.approx(hours * 2 * 4.89), pytest.approx(hours * 2 * 4.89))
    assert (found.risk, found.interruptions, found.saving) == (1.0, 0.0, "")
    assert (found.basis, found.reasons, found.price.date) == ("predicted", ("a reason",), "2024")


def test_an_unsure_step_makes_an_unsure_time():
    candidate = Candidate("ml.g4dn.12xlarge", 2, False, "16-mixed")
    found = estimate(candidate, task(), ByGpus(spread=0.3), ASSUMED, REGION, deadline_h=0.5)
    exact = 1000 * 1.2 * math.exp(1.2816 * 0.3) + 300
    assert found.hours_p90 * 3600 == pytest.approx(exact, rel=0.03)
    late = (0.5 * 3600 - 300) / 1200  # share of the draws beyond the deadline
    assert found.risk == pytest.approx(0.5 * math.erfc(math.log(late) / 0.3 / math.sqrt(2)), abs=0.03)


def test_spot_is_interrupted_waits_and_is_cheaper(monkeypatch):
    candidate = Candidate("ml.g4dn.12xlarge", 4, True, "16-mixed")
    work = task(steps=50_000)
    found = estimate(candidate, work, ByGpus(), ASSUMED, REGION, deadline_h=12)
    by = interruptions_of(candidate, work, ASSUMED, 0.7)
    assert by.per_hour == pytest.approx(0.4)
    assert (by.interval_s, by.save_s, by.startup_s, by.wait_s) == (480, save_s(CONFIG), 300, 1800)
    exact = expected(50_000 * 0.7, by)
    monkeypatch.setattr(planner, "spot_prices", dict)
    found = estimate(candidate, work, ByGpus(), ASSUMED, REGION, deadline_h=12)
    assert found.hours == pytest.approx(exact.wall_s / 3600, rel=0.02)
    assert found.interruptions == pytest.approx(exact.interruptions, rel=0.05)
    assert found.usd == pytest.approx(exact.billed_s / 3600 * 4 * 4.89 * 0.4, rel=0.02)  # 60 % is the middle of 50-70
    assert "assumed" in found.saving
    assert 0 < found.risk < 1


def test_spots_saving_is_around_what_ec2_has(monkeypatch):
    proxy = {("ml.g4dn.12xlarge", REGION): SpotPrice(1.0, 4.0, "2026-11-20", "history")}
    monkeypatch.setattr(planner, "spot_prices", lambda: proxy)
    (low, high), words, is_old = planner.saving_of(Candidate("ml.g4dn.12xlarge", 1, True, "16-mixed"), REGION)
    assert (low, high) == (pytest.approx(0.65), pytest.approx(0.85))
    assert "75 %" in words
    assert "2026-11-20" in words
    assert is_old == SpotPrice(1.0, 4.0, "2026-11-20", "history").is_old()


@pytest.mark.parametrize(("every", "interval_s"), [("15m", 900), ("20m", 1200), ("500 steps", 600), ("never", 1200)])
def test_the_interval_is_the_configs_unless_submit_chooses(every, interval_s):
    config = CONFIG | {"checkpoint_every": every}
    candidate = Candidate("ml.g4dn.xlarge", 1, True, "16-mixed")
    found = interruptions_of(candidate, task(config=config), ASSUMED, step_s=1.2)
    assert found.interval_s == interval_s
    assert interruptions_of(replace(candidate, is_spot=False), task(), ASSUMED, 1.2).per_hour == 0


def test_what_would_hardly_end_is_left_out():
    often = replace(ASSUMED, interruptions_per_instance_hour=Assumption(60.0, "c"))
    possible, *_ = candidates(REGION, IMAGE, CONFIG, "only", ["ml.g4dn.xlarge"])
    found, left_out = estimates(possible, task(config={"checkpoint_every": "1h"}), ByGpus(), often, REGION)
    assert not found
    assert set(left_out.values()) == {"interrupted too often to finish"}


def test_a_candidate_as_the_step_time_model_sees_it():
    setup = setup_of(Candidate("ml.g4dn.12xlarge", 2, True, "16-mixed"), task())
    assert (setup.device, setup.hosts, setup.devices_per_host, setup.world_size) == ("T4", 2, 4, 8)
    assert (setup.link, setup.link_bytes_per_s) == ("ml.g4dn.12xlarge", 50e9 / 8)
    assert (setup.loader_workers, setup.storage, setup.micro_batches) == (8, "FastFile", 1)
    assert setup.audio_s == pytest.approx(1560, rel=0.01)
    assert setup.computed_s == pytest.approx(setup.audio_s * 1.025)
    alone = setup_of(Candidate("ml.g4dn.xlarge", 1, False, "16-mixed"), task(data={"num_workers": 2}))
    assert (alone.link, alone.link_bytes_per_s, alone.loader_workers, alone.micro_batches) == ("", None, 2, 8)


def test_an_estimated_price_makes_an_unsure_cost(monkeypatch):
    listed, guessed = Price(4.0, "2026-11", "a list"), EstimatedPrice(4.0, "2026-11", "a guess", sd=0.2)
    found = []
    for price in (listed, guessed):
        monkeypatch.setattr(planner, "on_demand", lambda *kind, price=price: price)
        found.append(estimate(Candidate("ml.g4dn.12xlarge", 2, False, "16-mixed"), task(), ByGpus(), ASSUMED, REGION))
    assert found[0].usd_p90 == pytest.approx(found[0].usd)
    assert found[1].usd_p90 == pytest.approx(found[0].usd * math.exp(1.2816 * 0.2), rel=0.02)
    assert found[1].hours_p90 == found[0].hours_p90


# ---- candidates -----------------------------------------------------------------------------------------------------


def test_candidates_are_all_that_have_a_price_listed_or_estimated():
    found, left_out = candidates(REGION, IMAGE, CONFIG, "allow", max_count=4)
    kinds = {candidate.instance_type for candidate in found}
    assert {"ml.g4dn.12xlarge", "ml.p4d.24xlarge", "ml.p5.4xlarge", "ml.p5.48xlarge", "ml.g6e.48xlarge"} < kinds
    assert kinds | set(left_out) == set(INSTANCES)
    assert not kinds & set(left_out)
    assert "neither SageMaker's nor EC2's price is known" in left_out["ml.p5e.48xlarge"]
    assert len(found) == len(kinds) * 4 * 2
    few, many = (candidates(REGION, IMAGE, CONFIG, "only", max_count=n)[0] for n in (5, 40))
    assert {candidate.count for candidate in few} == {1, 2, 3, 4, 5}
    assert max(candidate.count for candidate in many) == 40
    assert {candidate.precision for candidate in found if "g4dn" in candidate.instance_type} == {"16-mixed"}
    assert {candidate.precision for candidate in found if "g5" in candidate.instance_type} == {"bf16-mixed"}
    assert {candidate.is_spot for candidate in candidates(REGION, IMAGE, CONFIG, "only")[0]} == {True}
    in_float32, _ = candidates(REGION, IMAGE, computing_in("32-true"), "never")
    assert {candidate.precision for candidate in in_float32} == {"32-true"}


def test_what_the_image_cannot_use_is_no_candidate():
    _, left_out = candidates(REGION, IMAGE, CONFIG, "allow")
    useless = {name: reason for name, reason in left_out.items() if "CUDA" in reason}
    assert set(useless) == {"ml.p3.2xlarge", "ml.p3.8xlarge", "ml.p3.16xlarge", "ml.p3dn.24xlarge"}
    found, left_out = candidates(REGION, "123.dkr.ecr.eu-west-1.amazonaws.com/mine:torch2.8-cu126", CONFIG, "allow")
    assert "ml.p3.2xlarge" in {candidate.instance_type for candidate in found}
    assert {INSTANCES[name].gpu for name in left_out} == {"B200", "B300", "RTX PRO 4500", "RTX PRO Server 6000", "H200"}
    with pytest.raises(InputError, match=r"ml.p3.2xlarge: CUDA 13.0.* does not support V100 GPUs"):
        candidates(REGION, IMAGE, CONFIG, "allow", ["ml.p3.2xlarge"])


def test_in_a_region_without_any_listed_price_all_are_estimated():
    found, _ = candidates("sa-east-1", IMAGE, CONFIG, "never", max_count=1)
    assert len(found) > 45
    assert isinstance(prices.on_demand(found[0].instance_type, "sa-east-1"), EstimatedPrice)


def test_what_a_gpu_cannot_do_leaves_it_out():
    setups = [t4(1), t4(4)]
    fitted = fit(runs(parameters(setups), setups))
    possible, *_ = candidates(
        REGION, IMAGE, computing_in("bf16-mixed"), "never", ["ml.g4dn.xlarge", "ml.g5.xlarge"], max_count=1
    )
    found, left_out = estimates(possible, task(), fitted, ASSUMED, REGION)
    assert [estimate.candidate.instance_type for estimate in found] == ["ml.g5.xlarge"]
    assert "T4" in left_out["1 x ml.g4dn.xlarge, on demand"]


# ---- what has to be assumed -----------------------------------------------------------------------------------------


def local(run):
    return replace(run, where="local")


def test_without_jobs_start_up_and_interruptions_are_assumed_and_named():
    known = [local(run) for run in runs(parameters([t4(1)]), [t4(1)])]
    found = assumptions(known, DEFAULTS)
    own_s = known[0].throughput["startup_s"]
    assert found.startup_s.value == pytest.approx(300 + own_s)
    assert "5 min of start-up until `fit` starts: assumed, and" in found.startup_s.basis
    assert found.interruptions_per_instance_hour.value == 0.1
    assert "assumed; AWS guarantees no rate" in found.interruptions_per_instance_hour.basis
    assert found.wait_s.value == 1800
    assert len(found.described(is_spot=True)) == 3
    assert len(found.described(is_spot=False)) == 1


def test_jobs_take_the_place_of_assumptions():
    (run,) = runs(parameters([t4(1)]), [t4(1)])
    train_s = run.throughput["train_seconds"]
    run.throughput["validation"] = {"count": 1, "seconds": 30.0}
    job = replace(run, training_s=train_s + 30 + 2 * 240, segments=[{}, {}])
    assert assumptions([job], DEFAULTS).startup_s.value == pytest.approx(240)
    spot = replace(job, cell=job.cell | {"is_spot": True, "count": 4}, training_s=5 * 3600.0, interruptions=5)
    rate = assumptions([job, spot], DEFAULTS).interruptions_per_instance_hour
    assert rate.value == pytest.approx((1 + 5) / (10 + 20))  # observed in 20 instance-hours, and one in 10 assumed
    assert "5 observed in 20.0" in rate.basis
