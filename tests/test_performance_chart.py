import importlib.util
import json
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")
SCRIPT = Path(__file__).parents[1] / "docs" / "performance_chart.py"


@pytest.fixture
def chart():
    spec = importlib.util.spec_from_file_location("performance_chart", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def speed(median):
    return {"median": median, "min": 0.9 * median, "max": 1.1 * median}


STEP = {
    "device": "NVIDIA H200",
    "settings": {"model": "base", "precision": "bf16-mixed"},
    "sides": [
        {"side": "ours", "group": "main", "device_seconds": 800.0, "audio_s_per_s": speed(9100.0)},
        {"side": "hf", "group": "main", "device_seconds": 1600.0, "audio_s_per_s": speed(4800.0)},
        {
            "side": "ours without compile",
            "group": "without compile",
            "device_seconds": 800.0,
            "audio_s_per_s": speed(7.0),
        },
    ],
}
TRANSCRIBE = {
    "device": "NVIDIA H200",
    "settings": {"model": "base", "precision": "bf16-true"},
    "audio_s_per_s": {"w2v_lightning": speed(60_000.0), "pipeline, 32 at a time": speed(9_000.0)},
}


def test_bars_are_those_that_took_turns(chart):
    assert [(bar.name, bar.median, bar.is_ours) for bar in chart.bars(STEP)] == [
        ("ours, 800 s", 9100.0, True),
        ("hf, 1600 s", 4800.0, False),
    ]
    assert [bar.is_ours for bar in chart.bars(TRANSCRIBE)] == [True, False]
    assert chart.title(STEP) == "Training: base, bf16-mixed, NVIDIA H200"


@pytest.mark.parametrize(("suffix", "magic"), [("svg", b"<?xml"), ("png", b"\x89PNG")])
def test_a_chart_is_drawn(chart, tmp_path, suffix, magic):
    for name, report in (("step", STEP), ("transcribe", TRANSCRIBE)):
        (tmp_path / f"{name}.json").write_text(json.dumps(report))
    output = tmp_path / f"chart.{suffix}"
    chart.main([str(tmp_path / "step.json"), str(tmp_path / "transcribe.json"), "--output", str(output)])
    assert output.read_bytes().startswith(magic)
