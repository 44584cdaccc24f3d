"""Interruptions: the formula against an event-by-event simulation and against known results."""

import math
import random
from dataclasses import replace

import numpy as np
import pytest

from w2v_lightning.planner.checkpoint_interval import young_daly_s
from w2v_lightning.planner.interruptions import MAX_INTERRUPTIONS, Interruptions, draw, expected

HOUR = 3600.0
SPOT = Interruptions(per_hour=0.4, interval_s=900, save_s=20, startup_s=300, wait_s=600)


def one_run(work_s, by, rng):
    """Simulate a run event by event in plain Python; return wall-clock seconds, billed seconds and interruptions."""
    clock = billed = 0.0
    saved, interruptions = 0.0, 0
    while True:
        clock += rng.expovariate(1 / by.wait_s)
        end = rng.expovariate(by.per_s)  # until these instances are interrupted
        t = by.startup_s
        while t < end and saved < work_s:
            stretch = min(by.interval_s, work_s - saved)
            t += stretch + by.save_s
            if t <= end:
                saved += stretch
        if saved >= work_s:
            return clock + t, billed + t, interruptions
        clock, billed, interruptions = clock + end, billed + end, interruptions + 1


@pytest.mark.parametrize(
    "by",
    [
        SPOT,
        replace(SPOT, per_hour=4.0),  # also interrupted while it starts
        replace(SPOT, interval_s=7200),
        replace(SPOT, startup_s=0.0, save_s=0.0),
    ],
)
def test_the_formula_is_the_mean_of_simulated_runs(by):
    work_s, n = 3.1 * HOUR, 4000
    rng = random.Random(1)
    runs = np.array([one_run(work_s, by, rng) for _ in range(n)])
    drawn = draw(np.full(n, work_s), by, np.random.default_rng(2))
    found = expected(work_s, by)
    drawn_columns = (drawn.wall_s_N, drawn.billed_s_N, drawn.interruptions_N)
    for mean, simulated, fast in zip(vars(found).values(), runs.T, drawn_columns, strict=True):
        for column in (simulated, fast):
            assert mean == pytest.approx(column.mean(), abs=4 * column.std() / math.sqrt(n))  # four standard errors


def test_drawn_runs_are_spread_like_simulated_ones():
    rng = random.Random(3)
    runs = np.array([one_run(6 * HOUR, SPOT, rng)[0] for _ in range(4000)])
    drawn = draw(np.full(4000, 6 * HOUR), SPOT, np.random.default_rng(4)).wall_s_N
    for share in (0.1, 0.5, 0.9):
        assert np.quantile(drawn, share) == pytest.approx(np.quantile(runs, share), rel=0.02)


def test_on_demand_nothing_is_lost():
    on_demand = Interruptions(per_hour=0, interval_s=900, save_s=20, startup_s=300, wait_s=0)
    found = expected(2000, on_demand)  # 900 + 900 + 200, each followed by a checkpoint
    assert (found.wall_s, found.billed_s, found.interruptions) == (2360, 2360, 0)
    drawn = draw(np.array([2000.0, 900.0]), on_demand, np.random.default_rng(0))
    assert drawn.wall_s_N.tolist() == drawn.billed_s_N.tolist() == [2360, 1220]


def test_rare_interruptions_cost_what_textbooks_say():
    """To first order, an interruption costs half an interval, half a save and a start."""
    rare = replace(SPOT, per_hour=0.001)
    work_s = 100 * HOUR
    undisturbed_s = expected(work_s, replace(rare, per_hour=0)).billed_s
    found = expected(work_s, rare)
    lost_s = (found.billed_s - undisturbed_s) / found.interruptions
    assert lost_s == pytest.approx(rare.interval_s / 2 + rare.save_s / 2 + rare.startup_s, rel=0.01)
    assert found.interruptions == pytest.approx(0.1, rel=0.05)


def test_the_interval_of_young_and_daly_is_about_the_best():
    by_interval = {
        interval_s: expected(50 * HOUR, replace(SPOT, interval_s=float(interval_s))).billed_s
        for interval_s in range(120, 3600, 20)
    }
    chosen = young_daly_s(SPOT.save_s, HOUR / SPOT.per_hour)
    assert expected(50 * HOUR, replace(SPOT, interval_s=chosen)).billed_s <= 1.002 * min(by_interval.values())


def test_a_run_that_hardly_gets_on_does_not_end():
    hopeless = replace(SPOT, per_hour=20.0, interval_s=1800)
    assert expected(10 * HOUR, hopeless).wall_s == math.inf
    assert expected(1000 * HOUR, replace(hopeless, interval_s=1e6)).billed_s == math.inf  # no overflow
    drawn = draw(np.full(50, 10 * HOUR), hopeless, np.random.default_rng(0))
    assert np.isinf(drawn.wall_s_N).mean() > 0.9
    assert drawn.interruptions_N.max() == MAX_INTERRUPTIONS + 1
