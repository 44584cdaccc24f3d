"""`bench scaling`: the same steps on one process and on two."""

import json

import pytest
from tiny import TINY_CONFIG

from w2v_lightning.__main__ import main
from w2v_lightning.bench.scaling import Turn, summary


def test_speed_is_compared_with_the_first_number_of_devices():
    turns = [Turn(1, 100.0, None), Turn(4, 380.0, {"steps": 1}), Turn(1, 120.0, None), Turn(4, 400.0, {"steps": 2})]
    one, four = summary(turns)
    assert (one["devices"], one["audio_s_per_s"], one["speed_up"], one["efficiency"]) == (1, 110, 1, 1)
    assert (four["devices"], four["audio_s_per_s"]) == (4, 390)
    assert four["speed_up"] == pytest.approx(390 / 110)
    assert four["efficiency"] == pytest.approx(390 / 110 / 4)
    assert four["communication"] == {"steps": 2}


def test_from_two_devices_on_efficiency_is_per_device():
    two, four = summary([Turn(2, 200.0, None), Turn(4, 300.0, None)])
    assert two["efficiency"] == 1
    assert four["efficiency"] == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--devices", "1", "9999"], "--devices has 9999, but this host has"),
        (["--steps", "0"], "--steps is 0: must be above 0."),
    ],
)
def test_what_cannot_be_measured_is_refused(capsys, options, message):
    assert main(["bench", "scaling", *options]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_ddp_can_be_had_on_a_single_device(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.json").write_text(json.dumps(TINY_CONFIG))
    options = ["--model", "tiny.json", "--precision", "32-true", "--batch-seconds", "20", "--device-seconds", "20"]
    options += ["--steps", "1", "--passes", "2", "--repetitions", "1", "--devices", "1", "--json", "scaling.json"]
    found = []
    for ddp in ([], ["--ddp"]):
        assert main(["bench", "scaling", *options, *ddp]) == 0
        (turn,) = json.loads((tmp_path / "scaling.json").read_text())["turns"]
        found.append(turn["communication"])
    without, with_ddp = found
    assert without is None
    assert (with_ddp["steps"], with_ddp["waiting_ms_per_step"]) == (
        4,
        0,
    )  # exposed time of DDP's buckets, but no rank to wait for


@pytest.mark.slow
@pytest.mark.parametrize("weak", [False, True])
def test_both_numbers_train_on_all_of_the_audio(tmp_path, monkeypatch, capsys, weak):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.json").write_text(json.dumps(TINY_CONFIG))
    options = ["--model", "tiny.json", "--precision", "32-true", "--batch-seconds", "60", "--device-seconds", "40"]
    options += ["--steps", "2", "--passes", "2", "--repetitions", "1", "--json", "scaling.json"]
    options += ["--weak", "--sigterm", "lightning", "--profile", "traces"] * weak
    assert main(["bench", "scaling", *options]) == 0
    printed = capsys.readouterr().out
    for devices in (1, 2):
        assert (f"{devices} devices:\n" in printed) is weak
        assert (tmp_path / f"traces/{devices}-devices/trace.json.gz").exists() is weak
    assert printed.count("3 steps of") == 2 * weak
    one, two = json.loads((tmp_path / "scaling.json").read_text())["rows"]
    assert (one["devices"], two["devices"]) == (1, 2)
    assert one["communication"] is None
    assert two["communication"]["steps"] == 8  # two passes to warm up, two timed
    # Two busy cores may be slower than one, but not five times, and never four times as fast.
    assert 0.2 < two["speed_up"] < 4
