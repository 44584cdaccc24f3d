import json

import numpy as np
import pytest
import soundfile
from corpus import SAMPLE_RATE, spell

from w2v_lightning.errors import InputError
from w2v_lightning.inference.inputs import load_inputs


def write(path, text="AB", sample_rate=SAMPLE_RATE):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, spell(text, sample_rate), sample_rate)
    return path


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_files_folders_and_manifests_come_in_the_order_given(tmp_path):
    alone = write(tmp_path / "alone.wav", "ABC", 48_000)
    below = [write(tmp_path / "folder" / name) for name in ("b/2.flac", "a.ogg")]
    (tmp_path / "folder" / "notes.txt").write_text("no audio")
    row = {"audio_filepath": "alone.wav", "duration": 0.5, "text": "said", "id": "row"}
    (tmp_path / "list.jsonl").write_text(json.dumps(row))
    manifest = load_inputs([tmp_path / "list.jsonl", alone, str(tmp_path / "folder"), alone])
    paths = [str(path) for path in (alone, below[1], below[0], alone)]
    assert manifest.ids == ["row", *paths]
    assert manifest.texts == ["said", "", "", "", ""]
    assert [manifest.audio(i).url for i in range(1, 5)] == paths
    np.testing.assert_allclose(manifest.durations_s_N, [0.5, 0.24, 0.16, 0.16, 0.24], atol=1e-6)


def test_a_flac_that_went_through_a_pipe_and_lacks_its_length_is_counted_by_decoding(tmp_path):
    path = write(tmp_path / "a.flac", "ABCD")
    data = bytearray(path.read_bytes())
    data[21] &= 0xF0  # the upper bits of the number of samples
    data[22:26] = bytes(4)
    path.write_bytes(data)
    assert load_inputs([path]).durations_s_N.tolist() == [0.32]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, r"there\.wav: cannot be read: No such file"),
        (
            lambda path: cut(write(path, "ABCD")),
            r"there\.wav: truncated: its header says 0\.320 s of audio, 0\.159 s",
        ),
        (lambda path: path.write_text("not audio"), r"there\.wav: cannot be read as audio"),
        (lambda path: soundfile.write(path, np.zeros(0), SAMPLE_RATE), r"there\.wav: contains no audio"),
        (lambda path: path.mkdir(), r"there\.wav: no audio files found \(\.flac, "),
    ],
)
def test_what_cannot_be_heard_is_named(tmp_path, make, message):
    path = tmp_path / "there.wav"
    make(path)
    with pytest.raises(InputError, match=message):
        load_inputs([path])


def test_a_manifest_whose_audio_is_missing_is_named_before_anything_is_heard(tmp_path):
    row = {"audio_filepath": "gone.wav", "duration": 1.0, "text": ""}
    (tmp_path / "list.jsonl").write_text(json.dumps(row))
    with pytest.raises(InputError, match=r"list\.jsonl: 1 of its 1 audio files are missing: .*gone\.wav"):
        load_inputs([tmp_path / "list.jsonl"])


@pytest.mark.parametrize("name", ["list.csv", "train.tsv", "0.parquet", "shard-0.tar"])
def test_tables_and_archives_name_prepare(tmp_path, name):
    (tmp_path / name).write_text("path,text\n")
    with pytest.raises(
        InputError, match=rf"{name}: is a table or an archive, not audio: make a manifest of it \(prepare"
    ):
        load_inputs([tmp_path / name])
