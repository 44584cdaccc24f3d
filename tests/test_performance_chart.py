"""Chart of docs/performance.md."""

import importlib.util
import json
from pathlib import Path

import pytest

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
    assert {name: (bar.parts, bar.label) for name, bar in chart.bars(STEP).items()} == {
        "ours, 800 s": ([(0, 9100.0)], "9,100"),
        "hf, 1600 s": ([(1, 4800.0)], "4,800"),
    }
    assert [bar.parts[0][0] for bar in chart.bars(TRANSCRIBE).values()] == [0, 1]
    assert chart.title(STEP) == "Training: base, bf16-mixed, NVIDIA H200"


def test_a_chart_is_drawn_and_the_same_again(chart, tmp_path):
    for name, report in (("step", STEP), ("transcribe", TRANSCRIBE)):
        (tmp_path / f"{name}.json").write_text(json.dumps(report))
    outputs = [tmp_path / "chart.svg", tmp_path / "again.svg"]
    for output in outputs:
        chart.main([str(tmp_path / "step.json"), str(tmp_path / "transcribe.json"), "--output", str(output)])
    source = outputs[0].read_text()
    assert source == outputs[1].read_text()
    assert source.startswith("<svg")
    assert all(text in source for text in ("Training: base", "Transcription: base", "ours, 800 s", "60,000"))
