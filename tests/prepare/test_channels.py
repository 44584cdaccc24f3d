import json
import tarfile

import numpy as np
import pytest
import soundfile

from w2v_lightning.data.decode import as_float, load
from w2v_lightning.data.manifest import Manifest
from w2v_lightning.data.reader import AudioReader
from w2v_lightning.errors import InputError
from w2v_lightning.prepare.command import main

RATE = 16000
UNSCALED = "float samples far beyond [-1, 1], where nothing tells their scale"
FILES = ("manifest.jsonl", "rejected.jsonl")


@pytest.fixture
def corpus(tmp_path):
    """A folder of stereo whose channels cancel, and of floats in the range of 16 bits."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    left_T = np.random.default_rng(0).normal(0, 0.1, RATE)
    soundfile.write(folder / "inverted.wav", np.stack([left_T, -left_T], axis=1), RATE, subtype="PCM_16")
    soundfile.write(folder / "integers.wav", left_T * 32768, RATE, subtype="FLOAT")
    soundfile.write(folder / "plain.wav", np.stack([left_T, left_T], axis=1), RATE, subtype="PCM_16")
    for path in list(folder.glob("*.wav")):
        path.with_suffix(".txt").write_text("some words")
    return folder


@pytest.fixture
def prepared(tmp_path, corpus):
    """Function that runs `prepare` with options; returns (channel by id, reason by id)."""

    def run(*options: str) -> tuple[dict, dict]:
        main([str(corpus), "--out", str(tmp_path / "out"), *options])
        rows, rejected = ([json.loads(line) for line in open_lines(tmp_path / "out" / name)] for name in FILES)
        return {row["id"]: row.get("channel") for row in rows}, {row["id"]: row["reason"] for row in rejected}

    return run


def open_lines(path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def test_channels_that_cancel_are_left_out_of_the_mix(prepared):
    used, rejected = prepared()
    assert used == {"plain": None}
    assert rejected == {"inverted": "channels that cancel each other: their mean is silent", "integers": UNSCALED}


def test_a_channel_may_be_chosen(prepared):
    used, rejected = prepared("--channel", "1")
    assert used == {"inverted": 1, "plain": 1}
    assert rejected == {"integers": UNSCALED}


def test_each_channel_may_be_an_utterance(prepared):
    used, _ = prepared("--channel", "each")
    assert used == {"inverted-0": 0, "inverted-1": 1, "plain-0": 0, "plain-1": 1}


def test_a_channel_is_converted_alone(prepared, tmp_path):
    used, rejected = prepared("--channel", "each", "--resample", "8000")
    assert used == {"inverted-0": None, "inverted-1": None, "plain-0": None, "plain-1": None}
    left_T, right_T = (soundfile.read(tmp_path / "out" / "audio" / f"inverted-{i}.flac")[0] for i in (0, 1))
    np.testing.assert_allclose(left_T, -right_T, atol=1e-4)
    assert np.abs(left_T).max() > 0.1
    assert rejected == {"integers": UNSCALED}


def test_a_channel_that_is_not_there_is_named(prepared):
    with pytest.raises(InputError, match="2 x no such channel"):
        prepared("--channel", "2")


def test_an_unknown_channel_is_refused(prepared):
    with pytest.raises(InputError, match="--channel is 'left': must be mix, each, or a number"):
        prepared("--channel", "left")


def test_the_output_of_a_version_without_channels_is_accepted(prepared, tmp_path):
    prepared()
    stats = tmp_path / "out" / "stats.json"
    content = json.loads(stats.read_text())
    del content["options"]["channel"]
    stats.write_text(json.dumps(content))
    assert prepared()[0] == {"plain": None}


@pytest.mark.parametrize("channel", ["each", "1"])
def test_packed_audio_has_channels_too(tmp_path, corpus, channel):
    archive = tmp_path / "corpus.tar"
    with tarfile.open(archive, "w") as tar:
        for path in sorted(corpus.glob("inverted.*")):
            tar.add(path, path.name)
    main([str(archive), "--out", str(tmp_path / "out"), "--channel", channel])
    manifest = Manifest.load(tmp_path / "out" / "manifest.jsonl")
    assert manifest.ids == (["inverted-0", "inverted-1"] if channel == "each" else ["inverted"])
    stereo_TC, _ = soundfile.read(corpus / "inverted.wav", dtype="float32")
    waveforms = map(as_float, load([manifest.audio(i) for i in range(len(manifest))], AudioReader()))
    for waveform_T, expected_T in zip(waveforms, stereo_TC.T if channel == "each" else stereo_TC.T[1:], strict=True):
        np.testing.assert_array_equal(waveform_T, expected_T)
