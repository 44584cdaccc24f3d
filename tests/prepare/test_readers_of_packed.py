"""Readers of audio that is packed in tars, parquet and arrow files."""

import gzip
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from layouts import RATE, items_of, kind_of, write_sound, write_text

from w2v_lightning.errors import InputError


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def sound(tmp_path: Path, seconds: float = 0.5, channels: int = 1, suffix: str = ".flac") -> bytes:
    return write_sound(tmp_path / f"sound{suffix}", seconds, channels).read_bytes()


@pytest.fixture
def tarred(tmp_path):
    folder = tmp_path / "tarred"
    for shard in (0, 1):
        files = {f"a{shard}.flac": sound(tmp_path, 0.5), f"./b{shard}.flac": sound(tmp_path, 0.7)}
        write_tar(folder / f"audio_{shard}.tar", files)
        manifest = [
            {"audio_filepath": f"{name}{shard}.{suffix}", "duration": s, "text": name, "shard_id": shard}
            for name, s, suffix in (("a", 0.5, "flac"), ("b", 0.7, "wav"))
        ]
        lines = "".join(json.dumps(row) + "\n" for row in manifest)
        write_text(folder / "sharded_manifests" / f"manifest_{shard}.json", lines)
        with (folder / "tarred_audio_manifest.json").open("a") as file:
            file.write(lines)
    return folder


@pytest.mark.parametrize("name", ["", "tarred_audio_manifest.json", "sharded_manifests/manifest__OP_0..1_CL_.json"])
def test_nemo_tarred(tarred, prepare, rows, audio_of, name):
    out = prepare(tarred / name) / "manifest.jsonl"
    expected = [("a0", "a", 0.5), ("b0", "b", 0.7), ("a1", "a", 0.5), ("b1", "b", 0.7)]
    assert [(row["id"], row["text"], row["duration"]) for row in rows(out)] == expected
    assert all(row["audio_filepath"].endswith(".tar") for row in rows(out))
    assert {key: len(waveform) / RATE for key, waveform in audio_of(out).items()} == {i: s for i, _, s in expected}


def test_nemo_tarred_reports_what_is_missing(tarred):
    manifest = tarred / "tarred_audio_manifest.json"
    row = {"audio_filepath": "../../etc/passwd", "duration": 1, "text": "x", "shard_id": 0}
    write_text(manifest, json.dumps(row) + "\n")
    utterances, (rejected,) = items_of(manifest)
    assert (utterances, rejected.reason) == ([], "no audio file")
    assert rejected.detail == f"'../../etc/passwd' is not in {tarred}/audio_0.tar"
    for shard, message in [
        (7, "audio_7.tar is missing beside"),
        ("../x", r"shard_id must be a whole number, found '../x'"),
    ]:
        write_text(manifest, json.dumps(row | {"shard_id": shard}) + "\n")
        with pytest.raises(InputError, match=rf"tarred_audio_manifest\.json:1: {message}"):
            items_of(manifest)
    with pytest.raises(InputError, match=r"CL_\.json: names 3 files, and manifest_2\.json are missing"):
        items_of(tarred / "sharded_manifests" / "manifest__OP_0..2_CL_.json")


@pytest.mark.parametrize("share", [0.1, 0.3, 0.6])
def test_a_truncated_tar_is_named(tarred, share):
    data = (tarred / "audio_1.tar").read_bytes()
    (tarred / "audio_1.tar").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(InputError, match=r"audio_1\.tar: missing, compressed, damaged or truncated"):
        items_of(tarred)


def test_a_tar_truncated_between_two_members_is_named(tarred):
    path = tarred / "audio_1.tar"
    with tarfile.open(path) as archive:
        end = archive.getmembers()[-1].offset
    path.write_bytes(path.read_bytes()[:end])
    with pytest.raises(
        InputError, match=r"audio_1\.tar: missing, compressed, damaged or truncated \(its end is missing"
    ):
        items_of(tarred)


def test_a_tar_whose_member_leads_outside_is_refused(tarred, tmp_path):
    write_tar(tarred / "audio_0.tar", {"../a0.flac": sound(tmp_path)})
    with pytest.raises(InputError, match=r"member '\.\./a0\.flac' leads outside the archive"):
        items_of(tarred)


def cut(name: str, channel: int | list[int], in_recording: list[int], **supervision) -> dict:
    channels = [channel] if isinstance(channel, int) else channel
    recording = {
        "id": f"r{name}",
        "sources": [{"type": "shar", "channels": in_recording, "source": ""}],
        "sampling_rate": RATE,
        "num_samples": RATE // 2,
        "duration": 0.5,
        "channel_ids": in_recording,
    }
    segments = [
        {
            "id": f"{name}{c}",
            "recording_id": f"r{name}",
            "start": 0.0,
            "duration": 0.5,
            "channel": c,
            "speaker": f"s{c}",
        }
        | {"text": f"text {c}"}
        | supervision
        for c in channels
    ]
    kind = "MonoCut" if isinstance(channel, int) else "MultiCut"
    keys = {"id": name, "start": 0, "duration": 0.5, "channel": channel, "type": kind}
    return keys | {"supervisions": segments, "recording": recording}


def write_shar(folder: Path, cuts: list[dict], files: dict[str, bytes]) -> Path:
    folder.mkdir()
    with gzip.open(folder / "cuts.000000.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in cuts)
    write_tar(folder / "recording.000000.tar", files)
    return folder


def test_shar_with_channels(tmp_path, prepare, rows, audio_of):
    cuts = [
        cut("mono", 0, [0]),
        cut("second", 1, [0, 1]),  # lhotse writes the channel of the cut alone
        cut("whole", 1, [0, 1]),
        cut("multi", [0, 1], [0, 1]),
    ]
    mono, stereo = sound(tmp_path), sound(tmp_path, channels=2)
    files = {"mono.flac": mono, "mono.json": b"{}", "second.flac": mono, "whole.flac": stereo, "multi.flac": stereo}
    out = prepare(write_shar(tmp_path / "shar", cuts, files)) / "manifest.jsonl"
    assert {row["id"]: (row["text"], row["speaker"], row["duration"], row.get("channel")) for row in rows(out)} == {
        "mono": ("text 0", "s0", 0.5, None),
        "second": ("text 1", "s1", 0.5, None),
        "whole": ("text 1", "s1", 0.5, 1),
        "multi-0": ("text 0", "s0", 0.5, 0),
        "multi-1": ("text 1", "s1", 0.5, 1),
    }
    assert all(len(waveform) == RATE // 2 for waveform in audio_of(out).values())


def test_shar_reports_what_is_missing(tmp_path):
    folder = write_shar(tmp_path / "shar", [cut("a", 0, [0]), cut("b", 0, [0])], {"a.flac": sound(tmp_path)})
    utterances, (rejected,) = items_of(folder)
    assert [u.id for u in utterances] == ["a"]
    assert (rejected.id, rejected.reason) == ("b", "no audio file")
    for broken in ({"recording": None}, {"channel": "x"}, {"duration": "long"}):
        with gzip.open(folder / "cuts.000000.jsonl.gz", "wt") as file:
            file.write(json.dumps(cut("a", 0, [0]) | broken) + "\n")
        with pytest.raises(InputError, match=r"cuts\.000000\.jsonl\.gz:1: "):
            items_of(folder)


def test_webdataset_with_json(tmp_path, prepare, rows):
    files = {}
    for i in (1, 2, 3):
        files[f"k{i}.flac"] = sound(tmp_path, i / 2)
        files[f"k{i}.json"] = json.dumps({"text": f"words  {i}", "speaker": i}).encode()
        files[f"k{i}.txt"] = f"words {i}".encode()  # the same again
    write_tar(tmp_path / "shards" / "shard-000000.tar", dict(list(files.items())[:3]))
    write_tar(tmp_path / "shards" / "shard-000001.tar", dict(list(files.items())[3:]))
    out = prepare(tmp_path / "shards")
    actual = [(row["id"], row["text"], row["speaker"], row["duration"]) for row in rows(out / "manifest.jsonl")]
    assert actual == [("k1", "words 1", "1", 0.5), ("k2", "words 2", "2", 1.0), ("k3", "words 3", "3", 1.5)]
    assert not (out / "rejected.jsonl").exists()


@pytest.mark.parametrize("content", [b"{", b"[" * 100_000, b'["text"]', b'{"text": 7}', b'{"words": "x"}', b"\xff"])
def test_json_that_is_no_transcript_is_none(tmp_path, content):
    write_tar(tmp_path / "a.tar", {"k.flac": sound(tmp_path), "k.json": content})
    utterances, rejected = items_of(tmp_path / "a.tar")
    assert not utterances
    assert "no transcript" in {r.reason for r in rejected}


def test_archives_beside_their_own_content_are_not_read_twice(tmp_path):
    write_tar(tmp_path / "a.tar", {"k.flac": b"", "k.txt": b"x"})
    write_sound(tmp_path / "a" / "k.flac")
    assert kind_of(tmp_path) == "folder"


@pytest.fixture
def parquet(tmp_path):
    """Function that writes columns to a parquet file."""
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    def write(name: str = "data.parquet", **columns) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pa.table(columns), path)
        return path

    return write


def test_parquet_of_plain_bytes(tmp_path, parquet, prepare, rows):
    path = parquet(audio=[sound(tmp_path)], normalized_text=["first"], raw_text=["First!"])
    (row,) = rows(prepare(path) / "manifest.jsonl")
    assert (row["id"], row["text"], row["duration"]) == ("data-00000000", "first", 0.5)


@pytest.mark.parametrize("is_16bit", [True, False])
def test_parquet_of_samples(parquet, prepare, audio_of, is_16bit):
    samples = np.sin(np.arange(8000) * 0.1)
    samples = np.rint(samples * 32767) / 32768 if is_16bit else samples.astype(np.float32).astype(float)
    path = parquet(audio=[{"array": samples.tolist(), "sampling_rate": 16000, "path": "x/a.wav"}], text=["first"])
    (waveform,) = audio_of(prepare(path) / "manifest.jsonl").values()
    np.testing.assert_array_equal(waveform, samples.astype(np.float32))


def test_parquet_of_samples_beside_their_rate(parquet, prepare, rows):
    path = parquet(speech=[[0, 100, -100] * 1000], sampling_rate=[8000], sentence=["first"])
    (row,) = rows(prepare(path) / "manifest.jsonl")
    assert (row["text"], row["duration"]) == ("first", 3000 / 8000)


@pytest.mark.parametrize("column", ["struct", "string"])
def test_parquet_of_paths_relative_to_the_dataset(tmp_path, parquet, prepare, rows, column):
    write_sound(tmp_path / "set" / "train" / "a.wav")
    cell = {"bytes": None, "path": "train/a.wav"} if column == "struct" else "train/a.wav"
    parquet("set/data/part.parquet", audio=[cell], text=["first"])
    (row,) = rows(prepare(tmp_path / "set") / "manifest.jsonl")
    assert (row["id"], row["text"], row["duration"]) == ("a", "first", 0.5)


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        ({"array": [0.1], "sampling_rate": 0}, "samples with an invalid sample rate (0)"),
        ({"array": [0.1], "sampling_rate": None}, "samples with an invalid sample rate (None)"),
        ({"array": [], "sampling_rate": 16000}, "no audio in it"),
        ({"array": None, "sampling_rate": 16000}, "no audio"),
        (None, "no audio"),
    ],
)
def test_parquet_cells_without_audio_are_rejected(parquet, cell, reason):
    good = {"array": [0.1], "sampling_rate": 16000}
    utterances, (rejected,) = items_of(parquet(audio=[good, cell], text=["a", "b"]))
    assert len(utterances) == 1
    assert (rejected.id, rejected.reason) == ("data-00000001", reason)


def test_parquet_of_features_is_refused(parquet):
    path = parquet(input_values=[[0.1]], labels=[[1]])
    with pytest.raises(InputError, match=r"has no column of audio; its columns are input_values, labels\. .*original"):
        items_of(path)


def test_columns_of_parquet_may_be_named(tmp_path, parquet):
    path = parquet(clip=[sound(tmp_path)], orthographic=["One"], who=[3], audio=["no.wav"], text=["no"])
    (utterance,), _ = items_of(path, path="clip", text="orthographic", speaker="who")
    assert (utterance.text, utterance.speaker) == ("One", "3")
    assert soundfile.info(io.BytesIO(utterance.audio)).duration == 0.5
    with pytest.raises(InputError, match=r"no column 'words' \(--text_column\); its header is clip, ortho"):
        items_of(path, text="words")
