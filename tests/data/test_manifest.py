import gzip
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from w2v_lightning.data.audio_ref import AudioRef
from w2v_lightning.data.manifest import Manifest
from w2v_lightning.errors import InputError
from w2v_lightning.runtime.files import atomic_text_file
from w2v_lightning.runtime.user_cache import cache_root

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


@pytest.mark.parametrize(("speaker", "read"), [(None, ""), ("", ""), (0, "0"), (19, "19"), ("ann", "ann")])
def test_a_speaker_may_be_a_number_or_none(tmp_path, speaker, read):
    assert Manifest.load(write_lines(tmp_path / "manifest.jsonl", GOOD | {"speaker": speaker})).speakers == [read]


@pytest.mark.parametrize(("utterance_id", "read"), [(None, "a"), ("", "a"), (0, "0")])
def test_an_id_may_be_a_number_or_left_to_the_name_of_the_file(tmp_path, utterance_id, read):
    assert Manifest.load(write_lines(tmp_path / "manifest.jsonl", GOOD | {"id": utterance_id})).ids == [read]


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path, suffix):
    data = f"{json.dumps(GOOD)}\n".encode("utf-8-sig")
    path = tmp_path / f"manifest{suffix}"
    path.write_bytes(gzip.compress(data) if suffix.endswith(".gz") else data)
    assert Manifest.load(path).ids == ["a"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "b", "audio_file', "invalid JSON"),
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
    with pytest.raises(InputError, match="'b' occurs more than once; ids must be unique over all splits"):
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


@pytest.mark.parametrize("damage", [lambda data: data[:-20], lambda data: data[:30] + b"xxxx" + data[34:]])
def test_damaged_gzip_is_named(tmp_path, damage):
    path = tmp_path / "train.jsonl.gz"
    path.write_bytes(damage(gzip.compress(b'{"audio_filepath": "a.flac", "duration": 1, "text": "A"}\n' * 50)))
    with pytest.raises(InputError, match=r"train\.jsonl\.gz"):
        Manifest.load(path)


def test_missing_manifest_is_named(tmp_path):
    with pytest.raises(InputError, match=r"Manifest not found: .*nowhere\.jsonl"):
        Manifest.load(tmp_path / "nowhere.jsonl")


def test_gzipped_manifest_is_read(tmp_path):
    path = tmp_path / "train.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"audio_filepath": "a.flac", "duration": 1, "text": "A"}\n'))
    assert Manifest.load(path).audio_paths == [f"{tmp_path}/a.flac"]


def test_place_in_a_shard_and_in_a_recording_survives_writing(tmp_path):
    manifest = replace(
        manifest_of("a", "b", "c"),
        byte_offsets_N=np.array([512, 0, 0]),
        num_bytes_N=np.array([99, 0, 0]),
        starts_s_N=np.array([np.nan, 2.5, np.nan]),
    )
    manifest.save(tmp_path / "m.jsonl")
    read = Manifest.load(tmp_path / "m.jsonl")
    assert [read.audio(i) for i in range(3)] == [manifest.audio(i) for i in range(3)]
    assert read.audio(0) == AudioRef("/audio/a.flac", 512, 99, None, 1 / 3)
    assert read.audio(1).start_s == 2.5
    rows = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert [row.keys() & {"offset", "byte_offset"} for row in rows] == [{"byte_offset"}, {"offset"}, set()]


CUT = {
    "id": "cut-1",
    "start": 1.5,
    "duration": 2.0,
    "channel": 0,
    "type": "MonoCut",
    "supervisions": [
        {"id": "s2", "start": 1.0, "duration": 1.0, "text": "WORLD", "speaker": "7"},
        {"id": "s1", "start": 0.0, "duration": 1.0, "text": "HELLO", "speaker": "7"},
    ],
    "recording": {
        "id": "r",
        "sources": [{"type": "file", "channels": [0], "source": "long.flac"}],
        "sampling_rate": 16000,
        "num_samples": 160000,
        "duration": 10.0,
    },
}


def test_lhotse_cuts_are_read(tmp_path):
    whole = CUT | {"id": "cut-2", "start": 0, "duration": 10.0}
    manifest = Manifest.load(write_lines(tmp_path / "cuts.jsonl", json.dumps(CUT), json.dumps(whole)))
    assert (manifest.ids, manifest.texts, manifest.speakers) == (["cut-1", "cut-2"], ["HELLO WORLD"] * 2, ["7", "7"])
    assert manifest.audio(0) == AudioRef(f"{tmp_path}/long.flac", start_s=1.5, duration_s=2.0)
    assert manifest.audio(1).start_s is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"type": "MixedCut"}, "lhotse MixedCut is unsupported; export it as MonoCut"),
        ({"recording": {"id": "r"}}, "invalid lhotse cut: key 'sources' in recording is missing"),
        ({"recording": CUT["recording"] | {"sources": [{"type": "command", "source": "rm -rf", "channels": [0]}]}},
         r"recording 'r' is not a single audio file of one channel \(type 'command'"),
    ],
)  # fmt: skip
def test_other_cuts_are_refused(tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        Manifest.load(write_lines(tmp_path / "cuts.jsonl", json.dumps(CUT | change)))


def test_nemo_segments_get_ids_of_their_own(tmp_path):
    rows = [{"audio_filepath": "call.wav", "duration": 2, "text": "A", "offset": offset} for offset in (0, 12.25)]
    manifest = Manifest.load(write_lines(tmp_path / "nemo.json", *map(json.dumps, rows)))
    assert manifest.ids == ["call-00000000", "call-00012250"]
