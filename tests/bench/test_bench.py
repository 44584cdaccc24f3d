import json

import pytest
from corpus import random_texts, write_split

from w2v_lightning.__main__ import main
from w2v_lightning.data.librispeech import load_split


@pytest.fixture
def manifest(tmp_path):
    write_split(tmp_path / "corpus", "train", random_texts(20, seed=1))
    load_split(tmp_path / "corpus", "train").save(tmp_path / "train.jsonl")
    return str(tmp_path / "train.jsonl")


def bench_loader(manifest, *options: str) -> int:
    return main(["bench", "loader", manifest, "--batch-seconds", "8", "--device-seconds", "4", *options])


def test_both_loaders_are_measured_as_often_as_asked(manifest, tmp_path, capsys):
    report = tmp_path / "bench.json"
    assert bench_loader(manifest, "--workers", "0,1", "--repetitions", "2", "--json", str(report)) == 0
    written = json.loads(report.read_text())
    assert written["settings"]["device_seconds"] == 4
    assert (written["settings"]["benchmark"], written["settings"]["workers"]) == ("loader", "0,1")
    counts = [(m["loader"], m["workers"]) for m in written["measurements"]]
    assert sorted(counts) == sorted([("plan", 0), ("plain", 0), ("plan", 1), ("plain", 1)] * 2)
    for m in written["measurements"]:
        assert 0 <= m["padding"] < 0.7
        assert m["audio_s_per_s"] > 0
        assert m["audio_s_per_cpu_s"] > 0
        assert m["first_batch_s"] > 0
    table = capsys.readouterr().out
    assert table.count("plan") == table.count("plain") == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--workers", "many"], "--workers is 'many': give numbers such as 0,1,2."),
        (["--workers", "0", "--device-seconds", "1000", "--batch-seconds", "1000"], "makes one batch only"),
        (["--repetitions", "0"], "--repetitions is 0: must be above 0."),
    ],
)
def test_wrong_options_end_in_one_line(manifest, capsys, options, message):
    assert bench_loader(manifest, *options) == 2
    assert message in capsys.readouterr().err
