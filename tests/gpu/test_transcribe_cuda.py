"""Transcription on a CUDA device: `W2V_TEST_GPUS=0 pytest -n 0 -m gpu tests/gpu/test_transcribe_cuda.py`."""

import json

import pytest
import soundfile
import torch
from corpus import SAMPLE_RATE, random_texts, spell
from rapidfuzz.distance import Levenshtein
from tiny import TINY_CONFIG

from w2v_lightning.__main__ import main
from w2v_lightning.inference.inputs import load_inputs
from w2v_lightning.inference.transcriber import Transcriber, in_order
from w2v_lightning.model import wav2vec2
from w2v_lightning.text.vocabulary import Vocabulary

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def needs_cuda():
    assert torch.cuda.is_available(), "run with W2V_TEST_GPUS=0 on a machine with a GPU"


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    network = wav2vec2.from_scratch(TINY_CONFIG | {"feat_extract_norm": "group"}, Vocabulary())
    wav2vec2.save_pretrained(tmp_path / "model", network, Vocabulary(), normalise=True)
    return tmp_path / "model"


@pytest.fixture
def corpus(tmp_path):
    (tmp_path / "corpus").mkdir()
    for number, text in enumerate(random_texts(60, seed=3)):
        soundfile.write(tmp_path / "corpus" / f"{number:02}.flac", spell(text), SAMPLE_RATE)
    return tmp_path / "corpus"


def similarity(folder, corpus, precision):
    """Return the similarity of the GPU's transcripts in batches to the CPU's of single utterances."""
    manifest = load_inputs([corpus])
    on_cpu = Transcriber.from_pretrained(str(folder), "cpu").transcribe(manifest, 1e-3, 0)
    on_gpu = Transcriber.from_pretrained(str(folder), "cuda", precision).transcribe(manifest, 8.0, 2)
    return Levenshtein.normalized_similarity("\n".join(in_order(on_gpu)), "\n".join(in_order(on_cpu)))


@pytest.mark.parametrize(("precision", "least"), [("32-true", 0.99), ("bf16-mixed", 0.8), ("16-mixed", 0.95)])
def test_the_gpu_hears_what_the_cpu_hears(folder, corpus, precision, least):
    """They differ only in frames whose two best tokens are nearly equal, because the weights are random."""
    assert similarity(folder, corpus, precision) > least


def test_too_large_a_batch_is_heard_in_parts(folder, corpus, tmp_path, caplog):
    """Transcribe 600 utterances: the output of their first convolution alone exceeds the limit."""
    command = ["transcribe", *[str(corpus)] * 10, "--model", str(folder), "--precision", "32-true"]
    assert main([*command, "--out", str(tmp_path / "expected.jsonl")]) == 0
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1e-3)
    try:
        assert main([*command, "--device-seconds", "10000", "--out", str(tmp_path / "found.jsonl")]) == 0
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "600 utterances" in caplog.text
    assert "Splitting the batch." in caplog.text
    expected, actual = ((tmp_path / name).read_text() for name in ("expected.jsonl", "found.jsonl"))
    assert Levenshtein.normalized_similarity(actual, expected) > 0.99


def test_the_benchmark_runs(folder, corpus, tmp_path):
    report = tmp_path / "report.json"
    options = ["--batch-sizes", "1,4", "--trial-seconds", "20", "--seconds", "0.3", "--repetitions", "2"]
    assert main(["bench", "transcribe", str(corpus), "--model", str(folder), *options, "--json", str(report)]) == 0
    results = json.loads(report.read_text())
    assert results["settings"]["precision"] in ("bf16-mixed", "16-mixed")
    assert results["agreements"][0]["equal"] > 0.9
