import json

import numpy as np
import pytest
import soundfile
import torch
from corpus import random_texts, write_split
from tiny import TINY_CONFIG

from w2v_lightning.__main__ import main
from w2v_lightning.bench import pipeline, transcribe
from w2v_lightning.bench.pipeline import Pipelines, Variant, usable_feeds, variants
from w2v_lightning.bench.transcript_parity import agreements, plain
from w2v_lightning.data.audio_ref import AudioRef
from w2v_lightning.data.manifest import Manifest
from w2v_lightning.inference.inputs import load_inputs
from w2v_lightning.model import wav2vec2
from w2v_lightning.text.vocabulary import Vocabulary


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    network = wav2vec2.from_scratch(TINY_CONFIG, Vocabulary())
    wav2vec2.save_pretrained(tmp_path / "model", network, Vocabulary(), normalise=True)
    return tmp_path / "model"


@pytest.fixture
def corpus(tmp_path):
    write_split(tmp_path / "corpus", "dev", random_texts(6, seed=1))
    return tmp_path / "corpus"


def bench(corpus, folder, *options) -> int:
    quick = ["--trial-seconds", "2", "--seconds", "0.01", "--batch-sizes", "1,2", "--dtypes", "float32"]
    return main(["bench", "transcribe", str(corpus), "--model", str(folder), "--device", "cpu", *quick, *options])


def test_both_sides_are_measured_in_turn_and_hear_the_same(corpus, folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(pipeline.shutil, "which", lambda name: None)  # without ffmpeg
    report = tmp_path / "report.json"
    assert bench(corpus, folder, "--repetitions", "2", "--workers", "1", "--json", str(report)) == 0
    found = json.loads(report.read_text())
    ours, theirs = found["audio_s_per_s"]
    assert (ours, theirs.partition(":")[0]) == ("w2v_lightning", "pipeline")
    assert [p["side"] for p in found["passes"]] == [ours, theirs] * 2
    for p in found["passes"]:
        assert p["audio_s_per_s"] == pytest.approx(p["audio_s"] / p["elapsed_s"])
    medians = [found["audio_s_per_s"][side]["median"] for side in (ours, theirs)]
    assert found["ratio"] == pytest.approx(medians[0] / medians[1])
    tried = {(t["feed"], t["batch_size"], t["is_sorted"]) for t in found["trials"]}
    assert tried == {(feed, *rest) for feed in ("arrays", "loader") for rest in ((1, False), (2, False), (2, True))}
    alone = found["agreements"][0]
    assert alone == {"way": "w2v_lightning: each alone, float32", "equal": 1.0, "cer": 0.0}
    assert found["settings"]["precision"] == "32-true"
    assert (found["settings"]["benchmark"], found["settings"]["source"]) == ("transcribe", str(corpus))
    assert {"torch", "transformers"} <= found["versions"].keys()
    printed = capsys.readouterr().out
    assert "Speed-up: " in printed
    assert all(stage in printed for stage in found["stages"])


@pytest.mark.parametrize("feed", ["arrays", "loader"])
def test_every_feed_gives_the_texts_of_the_same_utterances(corpus, folder, feed):
    manifest, pipelines = load_inputs([corpus]), Pipelines(folder, torch.device("cpu"), num_workers=1)
    alone = dict(pipelines.transcribe(manifest, Variant("arrays", 1, "float32")))
    assert len(set(alone.values())) > 3
    found = dict(pipelines.transcribe(manifest, Variant(feed, 1, "float32", is_sorted=True)))
    assert found == alone


def test_audio_is_fed_at_the_sample_rate_of_the_model(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros(16_000), 16_000)
    assert [len(pipeline._Arrays([AudioRef(str(path))], rate)[0]) for rate in (16_000, 8_000)] == [16_000, 8_000]


def test_files_are_fed_by_name_only_where_ffmpeg_can_read_them(corpus, monkeypatch):
    monkeypatch.setattr(pipeline.shutil, "which", lambda name: "/usr/bin/ffmpeg")
    manifest = load_inputs([corpus])
    assert usable_feeds(manifest) == ("files", "arrays", "loader")
    in_shard = Manifest(**{**vars(manifest), "num_bytes_N": np.ones(len(manifest), dtype=np.int64)})
    assert usable_feeds(in_shard) == ("arrays", "loader")
    monkeypatch.setattr(pipeline.shutil, "which", lambda name: None)
    assert usable_feeds(manifest) == ("arrays", "loader")


def test_a_batch_of_one_is_not_sorted():
    found = variants(("arrays",), [1, 4], ["float16"])
    assert [(v.batch_size, v.is_sorted) for v in found] == [(1, False), (4, False), (4, True)]


def test_an_excerpt_lasts_as_long_as_asked_whatever_there_is(corpus):
    manifest = load_inputs([corpus])
    all_s = manifest.durations_s_N.sum()
    for audio_s in (0.01, all_s / 2, all_s, 7.3 * all_s):
        found = transcribe.excerpt(manifest, audio_s)
        assert audio_s <= found.durations_s_N.sum() < audio_s + manifest.durations_s_N.max() + 1e-6
    assert {found.ids.count(i) for i in manifest.ids} <= {7, 8, 9}
    assert transcribe.excerpt(manifest, all_s / 2).ids == found.ids[: len(transcribe.excerpt(manifest, all_s / 2))]


def test_a_variant_without_memory_does_not_end_the_benchmark(corpus, folder, monkeypatch):
    original = Pipelines.transcribe

    def transcribe_(self, manifest, variant):
        if variant.batch_size == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(self, manifest, variant)

    monkeypatch.setattr(Pipelines, "transcribe", transcribe_)
    assert bench(corpus, folder, "--feeds", "arrays", "--repetitions", "1") == 0


def test_texts_are_compared_without_the_tokens_that_only_the_pipeline_prints():
    assert plain("<s>A</s> <unk> B<s>", Vocabulary()) == "A B"
    (found,) = agreements(["<s>AB", "CD"], {"way": [(1, "CX"), (0, "AB")]}, Vocabulary())
    assert (found.equal, found.cer) == (0.5, 0.25)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--batch-sizes", "many"], "--batch_sizes is 'many': give numbers such as 1,8,32."),
        (["--dtypes", "int4"], "--dtypes: 'int4' is not supported here; choose from float32, bfloat16, float16."),
        (["--feeds", "tapes"], "--feeds: 'tapes' is not supported here; choose from"),
    ],
)
def test_wrong_options_end_in_one_line(corpus, folder, capsys, options, message):
    assert bench(corpus, folder, *options) == 2
    assert message in capsys.readouterr().err
