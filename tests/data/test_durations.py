"""Durations of a manifest that are rounded to whole seconds."""

import json

import numpy as np
import pytest
import soundfile
from corpus import SAMPLE_RATE

from w2v_lightning.data.batch import InputSpec
from w2v_lightning.data.durations import load_manifest
from w2v_lightning.data.loader import UtteranceDataset
from w2v_lightning.data.samplers import Slot
from w2v_lightning.errors import InputError

ACTUAL_S = [1.3, 2.9, 2.0, 3.5]


@pytest.fixture
def write(tmp_path):
    """Function that writes recordings, and a manifest with other durations; returns its path."""

    def run(stated_s, actual_s=ACTUAL_S, **keys):
        rows = []
        for i, (stated, actual) in enumerate(zip(stated_s, actual_s, strict=True)):
            soundfile.write(tmp_path / f"{i}.wav", np.full(round(actual * SAMPLE_RATE), 0.1), SAMPLE_RATE)
            rows.append({"audio_filepath": f"{i}.wav", "duration": stated, "text": "A", **keys})
        path = tmp_path / "nemo.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return run


@pytest.mark.parametrize("stated_s", [[1, 3, 2, 4], [1, 2, 2, 3], [2.0, 3.0, 2.0, 4.0]])
def test_rounded_durations_are_read_from_the_audio(write, stated_s, caplog):
    path = write(stated_s)
    manifest = load_manifest(path)
    assert manifest.durations_s_N.tolist() == ACTUAL_S
    (message,) = caplog.messages
    assert message.startswith(f"{path}: its durations are whole seconds, and those of the audio are not")
    assert len(UtteranceDataset(manifest, InputSpec())[Slot(np.arange(4))]) == 4


def test_a_wrong_file_is_refused_also_among_rounded_durations(write):
    manifest = load_manifest(write([1, 3, 2, 5]))
    assert manifest.durations_s_N.tolist() == [1.3, 2.9, 2.0, 5.0]
    with pytest.raises(InputError, match=r"3\.wav: 3\.500 s of audio, but its manifest says 5\.000 s"):
        UtteranceDataset(manifest, InputSpec())[Slot(np.array([3]))]


@pytest.mark.parametrize(
    ("stated_s", "actual_s", "keys"),
    [
        ([1, 2.0, 3], [1.0, 2.04, 3.0], {}),  # cut to whole seconds
        ([1, 2, 2.9], [1.3, 2.4, 2.9], {}),  # not all are rounded, so these files are wrong
        ([1, 2, 1], [1.3, 2.4, 2.9], {"offset": 0}),  # segments
    ],
)
def test_other_durations_stay_what_the_manifest_says(write, stated_s, actual_s, keys, caplog):
    manifest = load_manifest(write(stated_s, actual_s, **keys))
    assert manifest.durations_s_N.tolist() == stated_s
    assert not caplog.messages
