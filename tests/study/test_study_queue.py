"""Which cell runs next, what is tried again, and what a command finds when the one before it was killed."""

import json
from dataclasses import asdict
from itertools import pairwise

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_runner import Clock, Cloud, Crash, Runner, run

from w2v_lightning.errors import InputError
from w2v_lightning.perf_model import runs
from w2v_lightning.study import queue
from w2v_lightning.study.spec import load

NAME = "ml.g4dn.2xlarge-x{}"


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(queue, "time", clock)
    return clock


@pytest.fixture
def make(tmp_path):
    """A study of so many instances each, and what is left of it in its folder."""
    return lambda *counts, **keys: make_study(tmp_path, *counts, **keys)


def make_study(folder, *counts, **keys):
    (folder / "cfg.yaml").write_text("trainer: {}")
    cells = [{"instance_type": "ml.g4dn.2xlarge", "count": count} for count in counts]
    (folder / "study.yaml").write_text(yaml.safe_dump({"config": "cfg.yaml", "cells": cells, **keys}))
    return load(folder / "study.yaml")


def carry_out(study, folder, runner, **options):
    left = queue.load(study, folder, **options)
    left.say = lambda text: None
    queue.carry_out(left, runner, runner.cloud.clock.sleep)


def outcomes(folder):
    return {found.name.rpartition("-")[0]: found.outcome for found in runs.read_all(folder)}


# ---- the order ------------------------------------------------------------------------------------------------------


def test_the_largest_that_fits_comes_first(make):
    study = make(1, 2, 4, 8, 12, 16, quota=16)
    waves = queue.waves(study, queue.ordered(study.cells))
    assert [[cell.count for cell in wave] for wave in waves] == [[16], [12, 4], [8, 2, 1]]


def test_here_one_runs_at_a_time_in_the_order_of_the_study(tmp_path):
    (tmp_path / "cfg.yaml").write_text("{}")
    (tmp_path / "study.yaml").write_text("{config: cfg.yaml, repetitions: 2, cells: [{devices: [2, 1]}]}")
    study = load(tmp_path / "study.yaml")
    waves = queue.waves(study, queue.ordered(study.cells))
    assert [[cell.run for cell in wave] for wave in waves] == [
        ["local-x2-r1"],
        ["local-x1-r1"],
        ["local-x2-r2"],
        ["local-x1-r2"],
    ]


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_the_quota_holds_and_nothing_waits_that_would_fit(data, tmp_path_factory):
    folder, clock = tmp_path_factory.mktemp("study"), Clock()
    quota = data.draw(st.integers(1, 8))
    counts = data.draw(st.lists(st.integers(1, quota), min_size=1, max_size=8, unique=True))
    durations = {NAME.format(count): data.draw(st.integers(1, 20)) * 10.0 for count in counts}
    cloud = Cloud(clock, durations)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(queue, "time", clock)
        carry_out(make_study(folder, *counts, quota=quota), folder / "out", Runner(cloud))
    assert len(cloud.starts) == len(counts)
    assert cloud.most <= quota
    jobs = [(cell.count, began, began + durations[cell.name]) for cell, began in cloud.jobs.values()]
    for count, began, _ in jobs:
        for moment in range(0, int(began), 10):
            busy = sum(other for other, start, end in jobs if start <= moment < end)
            assert busy + count > quota, f"{count} could have begun at {moment}, not at {began}"


# ---- what is tried again --------------------------------------------------------------------------------------------


def test_a_refused_cell_is_tried_again_after_twice_as_long_and_others_go_on(make, clock, tmp_path):
    cloud = Cloud(clock, refusals={NAME.format(4): 3})
    carry_out(make(4, 1, quota=4), tmp_path / "out", Runner(cloud))
    assert set(outcomes(tmp_path / "out").values()) == {"finished"}
    tried = [seconds for seconds, name in cloud.starts if name == "ml.g4dn.2xlarge-x4-r1"]
    waits = [after - before for before, after in pairwise(tried)]
    assert waits == pytest.approx([300, 600, 1200], abs=10)
    assert cloud.starts[1] == (0.0, "ml.g4dn.2xlarge-x1-r1")


def test_after_a_day_without_capacity_it_is_given_up_and_says_so(make, clock, tmp_path):
    cloud = Cloud(clock, refusals={NAME.format(4): 10_000})
    carry_out(make(4, 1), tmp_path / "out", Runner(cloud))
    found = outcomes(tmp_path / "out")
    assert found[NAME.format(1)] == "finished"
    assert found[NAME.format(4)] == "given up after 24 h: no such instances are free"
    assert 20 * 3600 < clock.now < 25 * 3600


def test_a_failed_cell_leaves_its_outcome_and_is_run_again_on_demand_only(make, clock, tmp_path):
    cloud = Cloud(clock)
    cloud.outcomes = {NAME.format(2): "exit status 1: out of memory"}
    study = make(1, 2)
    carry_out(study, tmp_path / "out", Runner(cloud))
    assert outcomes(tmp_path / "out") == {NAME.format(1): "finished", NAME.format(2): "exit status 1: out of memory"}
    carry_out(study, tmp_path / "out", Runner(cloud))
    assert len(cloud.starts) == 2
    cloud.outcomes = {}
    carry_out(study, tmp_path / "out", Runner(cloud), retry_failed=True)
    assert len(cloud.starts) == 3
    assert set(outcomes(tmp_path / "out").values()) == {"finished"}


def test_what_is_lost_again_and_again_is_given_up(make, clock, tmp_path):
    class Forgetful(Runner):
        def poll(self, cell, folder, handle):
            assert len(self.cloud.starts) < 10
            raise queue.LostError("it is gone")

    cloud = Cloud(clock)
    carry_out(make(1), tmp_path / "out", Forgetful(cloud))
    assert outcomes(tmp_path / "out") == {NAME.format(1): "given up after 3 restarts: it is gone"}
    assert len(cloud.starts) == 4


# ---- a command that is killed ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("period", range(1, 8))
def test_killed_wherever_it_is_no_cell_is_lost_or_paid_for_twice(make, clock, tmp_path, period):
    """A life of the command makes so many calls and dies: before it submits, after it has, or as it looks."""
    study, cloud = make(1, 2, 4, 3, quota=5), Cloud(clock)
    for _ in range(100):
        try:
            carry_out(study, tmp_path / "out", Runner(cloud, crash_after=period))
            break
        except Crash:
            clock.now += 7
    else:
        pytest.fail("it never comes to an end")
    assert set(outcomes(tmp_path / "out").values()) == {"finished"}
    assert sorted(cell.count for cell, _ in cloud.jobs.values()) == [1, 2, 3, 4]
    assert cloud.most <= 5


def test_killed_between_run_json_and_state_it_is_done(make, clock, tmp_path, monkeypatch):
    study, cloud = make(1), Cloud(clock)
    cloud.outcomes = {NAME.format(1): "exit status 1"}
    plain = runs.write

    def write_and_die(run, folder):
        plain(run, folder)
        raise Crash

    monkeypatch.setattr(runs, "write", write_and_die)
    with pytest.raises(Crash):
        carry_out(study, tmp_path / "out", Runner(cloud))
    assert "ml.g4dn.2xlarge-x1-r1" in json.loads((tmp_path / "out" / queue.STATE).read_text())["cells"]
    monkeypatch.undo()
    monkeypatch.setattr(queue, "time", clock)
    again = queue.load(study, tmp_path / "out", retry_failed=True)
    assert [entry.handle for entry in again.entries] == [None], "what has ended is not asked for again"
    runs.write(run(study.cells[0]), tmp_path / "out" / study.cells[0].run)
    carry_out(study, tmp_path / "out", Runner(cloud))
    assert len(cloud.starts) == 1


# ---- a folder that does not fit -------------------------------------------------------------------------------------


def test_more_cells_may_come_and_done_ones_may_go(make, clock, tmp_path):
    cloud = Cloud(clock)
    carry_out(make(1, 2), tmp_path / "out", Runner(cloud))
    carry_out(make(2, 3), tmp_path / "out", Runner(cloud))
    assert [cell.count for cell, _ in cloud.jobs.values()] == [2, 1, 3]


def test_runs_of_other_settings_are_not_mixed_in(make, clock, tmp_path):
    carry_out(make(1, steps=5), tmp_path / "out", Runner(Cloud(clock)))
    with pytest.raises(InputError, match=r"run\.json.*options \{'trainer\.max_steps': 5.*6.*--to"):
        queue.load(make(1, steps=6), tmp_path / "out")
    study = make(1, steps=5)
    (tmp_path / "cfg.yaml").write_text("trainer: {max_steps: 3}")
    with pytest.raises(InputError, match=r"another version of .*cfg\.yaml.*--to"):
        queue.load(study, tmp_path / "out")


def test_what_runs_must_stay_in_the_study(make, clock, tmp_path):
    with pytest.raises(Crash):
        carry_out(make(1, 2), tmp_path / "out", Runner(Cloud(clock), crash_after=4))
    with pytest.raises(InputError, match=r"ml\.g4dn\.2xlarge-x1-r1 was started.*add it again"):
        queue.load(make(2), tmp_path / "out")
    with pytest.raises(InputError, match=r"state\.json: .*-r1 has options \{\}.*restore the setting"):
        queue.load(make(1, 2, steps=5), tmp_path / "out")


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"format": 0}', "", '{"format": 1, "config": "", "cells": {"a": {"cell": 1, "handle": {}}}}']
)
def test_a_state_that_cannot_be_read(make, tmp_path, text):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / queue.STATE).write_text(text)
    with pytest.raises(InputError, match=r"state\.json cannot be read.*w2v_lightning list"):
        queue.load(make(1), tmp_path / "out")


@pytest.mark.parametrize(
    ("handle", "found"),
    [
        ({"run": "r"}, r"lacks 'region'"),
        ({"region": "eu-west-1", "job": "j"}, r"lacks 'run'"),
        ({"began": "2026-01-31T12:00:00+00:00"}, r"lacks 'run'"),
        ({"run": 7, "region": "eu-west-1"}, r"has an invalid value: '?run'? must be a string, found 7"),
    ],
)
def test_a_handle_that_lacks_a_key_is_named(make, tmp_path, handle, found):
    study = make(1)
    (tmp_path / "out").mkdir()
    cells = {study.cells[0].run: {"cell": json.loads(json.dumps(asdict(study.cells[0]))), "handle": handle}}
    (tmp_path / "out" / queue.STATE).write_text(json.dumps({"format": 1, "config": None, "cells": cells}))
    with pytest.raises(InputError, match=rf"state\.json: ml\.g4dn\.2xlarge-x1-r1 {found}; .*w2v_lightning list"):
        queue.load(study, tmp_path / "out")


def test_a_half_written_run_is_named(make, tmp_path):
    study = make(1)
    folder = tmp_path / "out" / study.cells[0].run
    runs.write(run(study.cells[0]), folder)
    text = (folder / runs.FILE).read_text()
    (folder / runs.FILE).write_text(text[: len(text) // 2])
    with pytest.raises(InputError, match=r"x1-r1/run\.json cannot be read"):
        queue.load(study, tmp_path / "out")
