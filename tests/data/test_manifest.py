import json
from pathlib import Path

import numpy as np
import pytest

from w2v_lightning.data.manifest import Manifest, atomic_text_file, cache_root
from w2v_lightning.errors import InputError

GOOD = {"id": "a", "audio_filepath": "a.flac", "duration": 1.5, "text": "ONE", "speaker": "7"}


def manifest_of(*ids: str) -> Manifest:
    return Manifest(
        ids=list(ids),
        audio_paths=[f"/audio/{i}.flac" for i in ids],
        durations_s_N=np.arange(1, len(ids) + 1) / 3,
        texts=[f"text of {i}" for i in ids],
        speakers=[f"speaker of {i}" for i in ids],
    )


def same(one: Manifest, other: Manifest) -> bool:
    np.testing.assert_array_equal(one.durations_s_N, other.durations_s_N)
    columns = ("ids", "audio_paths", "texts", "speakers")
    return all(getattr(one, column) == getattr(other, column) for column in columns)


def write_lines(path: Path, *lines: str | dict) -> Path:
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


def test_saved_manifest_comes_back_the_same(tmp_path):
    manifest = manifest_of("b", "a", 'caf\u00e9 \u2028 "quoted"')
    manifest.save(tmp_path / "new" / "manifest.jsonl")
    assert same(Manifest.load(tmp_path / "new" / "manifest.jsonl"), manifest)


def test_saved_lines_have_the_keys_that_nemo_reads(tmp_path):
    manifest_of("a", "b").save(tmp_path / "manifest.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "manifest.jsonl").read_text().splitlines()]
    assert rows[1] == {
        "id": "b",
        "audio_filepath": "/audio/b.flac",
        "duration": 2 / 3,
        "text": "text of b",
        "speaker": "speaker of b",
    }


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("19/1/a.flac", "{folder}/19/1/a.flac"),
        ("/data/a.flac", "/data/a.flac"),
        ("s3://bucket/key/a.flac", "s3://bucket/key/a.flac"),
    ],
)
def test_relative_audio_paths_are_joined_to_the_manifests_folder_and_others_kept(tmp_path, written, read):
    path = write_lines(tmp_path / "manifest.jsonl", GOOD | {"audio_filepath": written})
    assert Manifest.load(path).audio_paths == [read.format(folder=tmp_path)]


def test_foreign_manifest_without_id_and_speaker_and_with_keys_of_its_own_is_read(tmp_path):
    row = {"audio_filepath": "wavs/0001.wav", "duration": 2, "text": "ONE", "lang": "en"}
    manifest = Manifest.load(write_lines(tmp_path / "manifest.jsonl", row, "", row | {"id": 5}))
    assert (manifest.ids, manifest.speakers) == (["0001", "5"], ["", ""])
    assert manifest.durations_s_N.tolist() == [2.0, 2.0]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "b", "audio_file', "not a JSON line"),
        ('["a.flac", 1.5, "ONE"]', "must be a JSON object, found list"),
        ({"audio_filepath": "b.flac", "text": "ONE"}, "key 'duration' is missing"),
        ({"audio_filepath": "b.flac", "duration": 1.0}, "key 'text' is missing"),
        (GOOD | {"duration": 0}, "duration must be a positive number of seconds, found 0"),
        (GOOD | {"duration": -1.5}, "duration must be a positive number of seconds, found -1.5"),
        (GOOD | {"duration": "1.5"}, "duration must be a positive number of seconds, found '1.5'"),
        (GOOD | {"duration": None}, "duration must be a positive number of seconds, found None"),
        (GOOD | {"duration": float("nan")}, "duration must be a positive number of seconds, found nan"),
        (GOOD | {"duration": float("inf")}, "duration must be a positive number of seconds, found inf"),
        (GOOD | {"text": None}, "text must be a string, found None"),
        (GOOD | {"audio_filepath": 5}, "audio_filepath must be a path or URL, found 5"),
    ],
)
def test_damaged_line_is_named_with_file_number_and_finding(tmp_path, line, message):
    path = write_lines(tmp_path / "manifest.jsonl", GOOD, line)
    with pytest.raises(InputError, match=message) as raised:
        Manifest.load(path)
    assert str(raised.value).startswith(f"{path}:2: ")


def test_concatenate_keeps_every_column_in_order():
    whole = manifest_of("a", "b", "c")
    parts = [whole.select(np.array(keep)) for keep in ([True, False, False], [False, True, True])]
    assert same(Manifest.concatenate(parts), whole)


def test_concatenate_refuses_an_id_that_occurs_twice():
    with pytest.raises(InputError, match="'b' occurs more than once; ids must be unique over the splits"):
        Manifest.concatenate([manifest_of("a", "b"), manifest_of("b", "c")])


def test_select_keeps_whole_rows():
    kept = manifest_of("a", "b", "c").select(np.array([True, False, True]))
    assert (kept.ids, kept.audio_paths) == (["a", "c"], ["/audio/a.flac", "/audio/c.flac"])
    assert (kept.texts, kept.speakers) == (["text of a", "text of c"], ["speaker of a", "speaker of c"])
    assert kept.durations_s_N.tolist() == [1 / 3, 1.0]


@pytest.mark.parametrize("interruption", [ValueError, KeyboardInterrupt])
def test_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path, interruption):
    path = write_lines(tmp_path / "file.txt", "old")

    def write_half() -> None:
        with atomic_text_file(path) as file:
            file.write("half of the new")
            raise interruption

    with pytest.raises(interruption):
        write_half()
    assert path.read_text() == "old\n"
    assert list(tmp_path.iterdir()) == [path]


def test_written_file_is_not_seen_before_it_is_complete(tmp_path):
    path = tmp_path / "file.txt"
    with atomic_text_file(path) as file:
        file.write("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_cache_lies_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("W2V_LIGHTNING_CACHE", str(tmp_path / "own"))
    assert cache_root() == tmp_path / "own"
    monkeypatch.delenv("W2V_LIGHTNING_CACHE")
    assert cache_root() == tmp_path / "xdg" / "w2v_lightning"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_root() == tmp_path / ".cache" / "w2v_lightning"
