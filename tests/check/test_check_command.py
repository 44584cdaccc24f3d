"""Output of `check` for the user: the table, the exit status, and errors of the command line."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from check_corpus import clean_corpus
from corpus import spell

from w2v_lightning.__main__ import main


@pytest.fixture
def builder(tmp_path):
    return clean_corpus(tmp_path)


def test_table_names_count_share_ten_examples_and_remedy(builder, capsys):
    for number in range(12):
        builder.add(f"bad-{number}", text="", waveform=spell("FACADE")[number:])
    assert main(["check", builder.manifest()]) == 1
    out = " ".join(capsys.readouterr().out.split())
    for part in (
        "empty text error 12 60.0 %",
        "and 2 more",
        "skip_unusable",
        "12 of 20 utterances",
        "would hurt training",
    ):
        assert part in out
    assert [f"bad-{number}" in out for number in range(12)] == [True] * 10 + [False] * 2


def test_clean_corpus_is_said_to_be_clean_and_what_was_not_looked_at(builder, capsys):
    assert main(["check", builder.manifest()]) == 0
    out = capsys.readouterr().out
    assert "None of 8 utterances (0.00 h) would hurt training; warnings for 0." in out
    assert "Only headers were read" in out
    assert "same speaker in training and validation, characters per second, letters not in" in " ".join(out.split())
    assert "clipping, silence, " not in out
    assert main(["check", builder.manifest(), "--decode"]) == 0
    out = capsys.readouterr().out
    assert "clipping, silence, " in out
    assert "Only headers were read" not in out


def test_what_others_wrote_steers_neither_the_terminal_nor_the_table(builder, capsys):
    builder.add("odd", id="[red]\u001b[2J\ud800[/red]", text="", waveform=spell("FACADE"))
    assert main(["check", builder.manifest()]) == 1
    out = capsys.readouterr().out
    assert r"[red]\x1b[2J\ud800[/red]" in out
    assert "\u001b[2J" not in out


def test_json_has_all_ids_with_their_audio(builder, tmp_path):
    paths = [builder.add(f"bad-{n}", text="", waveform=spell("FACADE")[n:]) for n in range(12)]
    status, report = builder.check()
    (finding,) = [f for f in report["findings"] if f["count"]]
    assert (status, report["utterances"], report["would_hurt_training"]) == (1, 20, True)
    assert finding["count"] == 12
    assert [(row["id"], row["audio"]) for row in finding["utterances"]] == [
        (f"bad-{n}", str(path)) for n, path in enumerate(paths)
    ]


def test_several_manifests_are_checked_together_also_gzipped(builder, tmp_path):
    builder.add("clean-0", manifest="more")
    with gzip.open(tmp_path / "more.jsonl.gz", "wt") as file:
        file.write(Path(builder.manifest("more")).read_text())
    assert main(["check", builder.manifest()]) == 0
    assert main(["check", builder.manifest(), str(tmp_path / "more.jsonl.gz"), "--json", str(tmp_path / "r.json")]) == 1
    findings = {f["name"]: f["count"] for f in json.loads((tmp_path / "r.json").read_text())["findings"]}
    assert findings["duplicated id"] == 2


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("", "is a folder, not a manifest: run `python -m w2v_lightning prepare"),
        ("missing.jsonl", "Manifest not found: "),
        ("empty.jsonl", "empty.jsonl: no utterances. Give a manifest that has some."),
        ("broken.jsonl", "broken.jsonl:1: invalid JSON"),
    ],
)
def test_what_is_no_manifest_ends_in_one_line_and_status_2(tmp_path, capsys, argument, message):
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "broken.jsonl").write_text("{")
    assert main(["check", str(tmp_path / argument)]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert (captured.err.count("\n"), captured.out) == (1, "")


@pytest.mark.parametrize("option", ["--report", "--json"])
def test_report_that_cannot_be_written_is_named_after_the_findings_were_shown(builder, tmp_path, capsys, option):
    (tmp_path / "file").write_text("")
    assert main(["check", builder.manifest(), option, str(tmp_path / "file" / "report")]) == 2
    captured = capsys.readouterr()
    assert captured.err.lstrip().startswith(f"error: {option} {tmp_path}/file/report cannot be written: ")
    assert "would hurt training" in captured.out


def test_decoded_audio_is_not_kept(builder, monkeypatch):
    from w2v_lightning.check import measure

    monkeypatch.setattr(measure, "BLOCK_S", 1)
    blocks = []
    window_powers = measure._window_powers
    monkeypatch.setattr(
        measure, "_window_powers", lambda block, window: (blocks.append(len(block)), window_powers(block, window))[1]
    )
    builder.add("long", "A" * 75, waveform=np.tile(spell("ABCDE"), 15))  # 6 s
    assert builder.found("--decode") == (0, {})
    assert max(blocks) == 16_000
