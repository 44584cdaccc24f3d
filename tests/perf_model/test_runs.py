"""run.json: atomic writing, validated reading, and figures after the warm-up."""

import json
from dataclasses import replace

import pytest
from synthetic_study import STEPS, STEPS_PER_WINDOW, cpu, parameters, runs, t4

from w2v_lightning.errors import InputError
from w2v_lightning.perf_model.runs import FILE, read, read_all, write
from w2v_lightning.perf_model.step_time import terms


@pytest.fixture
def run():
    setup = cpu(1, hosts=2, link_mbit=100, delay_ms=2)
    return runs(parameters([setup]), [setup], noise=0.0)[0]


def with_windows(run, windows):
    return replace(run, throughput={**run.throughput, "windows": windows})


def test_a_run_comes_back_as_it_was(run, tmp_path):
    write(run, tmp_path)
    assert read(tmp_path) == read(tmp_path / FILE) == run


def test_no_run_is_ever_half_written(run, tmp_path):
    write(run, tmp_path)
    with pytest.raises(TypeError):
        write(replace(run, environment={"cpu": object()}), tmp_path)
    assert read(tmp_path) == run
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, r"run\.json not found; `python -m w2v_lightning study run` writes it"),
        ("", "cannot be read"),
        ('{"format": 1, "name": "x", ', "cannot be read"),
        ("[1, 2]", r"is not a run\.json of format 1"),
        ('{"format": 99}', r"is not a run\.json of format 1"),
        ('{"format": 1, "name": "x"}', "lacks cell, where"),
        (b"\xff\xfe", "cannot be read"),
    ],
)
def test_what_is_no_run_is_named(tmp_path, text, said):
    path = tmp_path / FILE
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=said) as raised:
        read(path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda found: found["throughput"].pop("host"), "lacks 'host'"),
        (lambda found: found["cell"].pop("link"), "lacks 'link'"),
        (lambda found: found.update(throughput=None), "has an invalid value"),
        (lambda found: found["throughput"].update(steps=0), "has an invalid value"),
        (lambda found: found.update(interruptions="2"), "has an invalid value: interruptions must be a whole number"),
        (lambda found: found.update(wer=[{"step": 1, "wer": 0.5}]), r"lacks 'elapsed_s' in wer\[0\]"),
        (lambda found: found.update(segments=None), "has an invalid value: segments must be a list, found None"),
        (lambda found: found["cell"].update(count=None), "has an invalid value: cell.count must be a whole number"),
        (lambda found: found["cell"].update(link=5), "has an invalid value: cell.link must be a string, found 5"),
        (
            lambda found: found["throughput"].update(windows={}),
            "has an invalid value: throughput.windows must be a list",
        ),
        (lambda found: found["throughput"]["windows"][0].update(steps="1"), r".*windows\[0\].steps must be a number"),
        (lambda found: found["throughput"]["workload"].update(parameters=[]), ".*workload.parameters must be a whole"),
        (lambda found: found["throughput"].update(communication=1), ".*throughput.communication must be a JSON object"),
        (
            lambda found: found.update(price={"usd_per_hour": "1"}),
            ".*price.usd_per_hour must be a number of at least 0",
        ),
        (
            lambda found: found["throughput"]["windows"][3].update(seconds=-1.5),
            r".*throughput.windows\[3\].seconds must be a number of at least 0, found -1.5",
        ),
        (
            lambda found: found["throughput"].update(all_reduce={"latency_ms": -1, "gradients_ms": 2}),
            ".*throughput.all_reduce.latency_ms must be a number of at least 0",
        ),
        (
            lambda found: found["throughput"].update(communication={"exposed_ms_median": 1, "waiting_ms_median": -2}),
            ".*throughput.communication.waiting_ms_median must be a number of at least 0",
        ),
        (
            lambda found: found["throughput"].update(validation={"count": 1, "seconds": -3}),
            ".*throughput.validation.seconds must be a number of at least 0",
        ),
        (
            lambda found: found.update(wer=[{"step": 1, "elapsed_s": -4.0, "wer": 0.5}]),
            r".*wer\[0\].elapsed_s must be a number of at least 0",
        ),
    ],
)
def test_what_a_run_lacks_within_is_named(run, tmp_path, change, said):
    write(run, tmp_path)
    found = json.loads((tmp_path / FILE).read_text())
    change(found)
    (tmp_path / FILE).write_text(json.dumps(found))
    with pytest.raises(InputError, match=rf"{FILE} {said}.*run this cell again"):
        read(tmp_path)


def test_all_runs_of_a_study_by_name(run, tmp_path):
    for name in ("b", "a"):
        write(replace(run, name=name), tmp_path / "runs" / name)
    assert [found.name for found in read_all(tmp_path)] == ["a", "b"]
    with pytest.raises(InputError, match=r"has no run.json"):
        read_all(tmp_path / "nothing")


def test_the_setup_is_the_one_that_was_run():
    setups = [cpu(4), cpu(1, hosts=2, link_mbit=100, delay_ms=2), cpu(2, storage_mbit=2, workers=0), t4(4, hosts=3)]
    found = [run.setup for run in runs(parameters(setups), setups, noise=0.0)]
    for made, read_back in zip(setups, found, strict=True):
        averaged = {name: pytest.approx(getattr(made, name)) for name in ("audio_s", "computed_s")}
        assert read_back == replace(made, **averaged)
    assert [setup.device_share for setup in found] == [0.5, 1.0, 1.0, 1.0]


def test_warm_up_is_left_out(run):
    slow, *steady = run.throughput["windows"]
    assert run.steady_windows == steady
    compiling = {**slow, "seconds": 10 * slow["seconds"]}
    assert with_windows(run, [compiling, compiling, slow, *steady]).steady_windows == steady
    even = with_windows(run, [steady[0]] * 5)
    assert len(even.steady_windows) == 4  # the first window always contains some warm-up


def test_too_short_a_run_says_nothing(run):
    for windows in ([], run.throughput["windows"][:1]):
        assert not with_windows(run, windows).is_measured
    for lacking in ({}, {**run.throughput, "flops_per_audio_s": None}, {**run.throughput, "workload": {}}):
        assert not replace(run, throughput=lacking).is_measured  # foreign data modules have no plan
    assert run.is_measured


def test_step_time_is_a_sum_divided_once(run):
    windows = run.throughput["windows"][1:]
    assert run.step_s == pytest.approx(sum(w["seconds"] for w in windows) / (STEPS - STEPS_PER_WINDOW))
    assert run.audio_s_per_s == pytest.approx(58.0 / run.step_s)


def test_audio_is_that_of_all_ranks_where_windows_have_the_first_ones(run):
    """Three utterances on two ranks: the first rank has two of them."""
    windows = [{**w, "audio_s": 4 / 3 * w["audio_s"]} for w in run.throughput["windows"]]
    found = with_windows(run, windows)
    assert found.setup.audio_s == pytest.approx(58.0)
    assert found.setup.computed_s == pytest.approx(60.0)  # the other ranks compute on padding
    assert found.audio_s_per_s == pytest.approx(58.0 / run.step_s)


def on_gpus(run, warm_up, steady):
    """Return the run with these NVML figures in the first window and in each other window."""
    first, *others = run.throughput["windows"]
    windows = [first | warm_up, *(window | steady for window in others)]
    whole = {"gpu_utilisation": 0.4, "energy_wh_per_audio_hour": 0.9, "matrix_flops_per_s": 65e12}
    return replace(run, throughput={**run.throughput, **whole, "windows": windows})


def test_the_use_of_gpus_is_of_the_steps_behind_the_warm_up(run):
    idle, busy = (
        {"gpu_utilisation": use, "gpu_num_utilisation": 2, "gpu_energy_j": watts * 3.0, "gpu_power_s": 3.0}
        for use, watts in ((0.0, 50.0), (1.8, 70.0))
    )
    found = on_gpus(run, idle, busy)
    assert not found.gpu_use_has_warm_up
    assert found.gpu_utilisation == pytest.approx(0.9)
    assert found.energy_wh_per_audio_hour == pytest.approx(70 * run.setup.world_size / run.audio_s_per_s)
    flops_per_s = run.audio_s_per_s * run.setup.flops_per_audio_s
    assert found.mfu == pytest.approx(flops_per_s / (65e12 * run.setup.world_size))
    short = dict.fromkeys(busy, 0.0)  # too short for NVML's readings
    assert on_gpus(run, idle, short).gpu_utilisation is None
    assert on_gpus(run, idle, short).energy_wh_per_audio_hour is None


def test_of_older_versions_the_use_of_gpus_is_that_of_the_whole_run(run):
    found = on_gpus(run, {}, {})
    assert found.gpu_use_has_warm_up
    assert (found.gpu_utilisation, found.energy_wh_per_audio_hour) == (0.4, 0.9)
    assert not run.gpu_use_has_warm_up  # a CPU run
    assert (run.gpu_utilisation, run.energy_wh_per_audio_hour, run.mfu) == (None, None, None)


@pytest.mark.parametrize("setup", [cpu(2), cpu(1, storage_mbit=2), cpu(1, hosts=4, link_mbit=100), t4(4)])
def test_measured_parts_make_the_step(setup):
    known = parameters([setup])
    run = runs(known, [setup], noise=0.0, seed=3)[0]
    found, exact = run.measured, terms(setup, known)
    assert found.step_s == pytest.approx(run.step_s)
    assert found.exposed_s == pytest.approx(exact.exposed_s)
    assert found.imbalance_s == pytest.approx(exact.imbalance_s)
    assert found.wait_s == pytest.approx(exact.wait_s, rel=0.05, abs=0.01 * run.step_s)
    assert found.bottleneck == exact.bottleneck


def test_what_it_takes_to_ask_for_a_batch_is_no_waiting(run):
    windows = [{**w, "data_wait_s": 0.001 * w["total_s"]} for w in run.throughput["windows"]]
    found = with_windows(run, windows)
    assert found.measured.data_s == 0.0
    assert found.measured.step_s == pytest.approx(found.step_s)
    assert json.dumps(found.measured.gains_s())
