import json
import os
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from corpus import SAMPLE_RATE, random_texts, spell, write_split

from w2v_lightning.errors import InputError
from w2v_lightning.prepare.command import main
from w2v_lightning.prepare.options import PrepareOptions

TEXTS = random_texts(12, seed=3)


@pytest.fixture
def split(tmp_path) -> Path:
    """Folder of a chapter, ROOT/dev-clean/19/1, with the utterances from 19-1-0000 on."""
    return write_split(tmp_path / "corpus", "dev-clean", TEXTS)


def write_pair(folder: Path, name: str, waveform: np.ndarray, rate: int = SAMPLE_RATE, **options) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    soundfile.write(folder / name, waveform, rate, **options)
    (folder / name).with_suffix(".txt").write_text("A B C")
    return folder / name


def test_audio_in_files_stays_where_it_is(split, prepare, rows):
    out = prepare(split.parents[2])
    assert sorted(path.name for path in out.iterdir()) == [".lock", "dev-clean.jsonl", "manifest.jsonl", "stats.json"]
    first = rows(out / "manifest.jsonl")[0]
    assert list(first) == ["id", "audio_filepath", "duration", "text", "speaker", "split"]
    assert first["audio_filepath"] == str(split / "19-1-0000.flac")


def test_audio_below_the_output_folder_is_named_relative_to_it(split, prepare, rows, audio_of):
    manifest = prepare(split.parents[2]) / "manifest.jsonl"
    out = prepare(manifest, out=".")
    assert rows(out / "manifest.jsonl")[0]["audio_filepath"] == "corpus/dev-clean/19/1/19-1-0000.flac"
    assert len(audio_of(out / "manifest.jsonl")) == len(TEXTS)


def test_shards_are_plain_tars_with_the_files_byte_for_byte(split, prepare, rows):
    out = prepare(split.parents[2], "--shard-size", "40KB")
    shards = sorted((out / "shards").iterdir())
    assert [path.name for path in shards] == [f"dev-clean-{i:06}.tar" for i in range(len(shards))]
    assert len(shards) > 2
    names = []
    for shard in shards:
        assert shard.stat().st_size < 44_000
        with tarfile.open(shard, "r|") as archive:  # "r|" reads sequentially
            for member in archive:
                names.append(member.name)
                assert (member.mtime, member.uid, member.gid) == (0, 0, 0)
                if member.name.endswith(".flac"):
                    assert archive.extractfile(member).read() == (split / member.name).read_bytes()
                else:
                    assert archive.extractfile(member).read().decode() == TEXTS[int(member.name[5:9])]
    assert names == [f"19-1-{i:04}{suffix}" for i in range(len(TEXTS)) for suffix in (".flac", ".txt")]
    for row in rows(out / "manifest.jsonl"):
        with open(out / row["audio_filepath"], "rb") as file:
            file.seek(row["byte_offset"])
            assert file.read(row["num_bytes"]) == (split / f"{row['id']}.flac").read_bytes()


def test_a_shard_holds_one_split(tmp_path, prepare, rows):
    for name, speaker in (("a", "19"), ("b", "84")):
        write_split(tmp_path / "corpus", name, TEXTS[:3], speaker)
    out = prepare(tmp_path / "corpus", "--shard-size", "1GB")
    assert sorted(path.name for path in (out / "shards").iterdir()) == ["a-000000.tar", "b-000000.tar"]
    assert {(row["split"], row["audio_filepath"]) for row in rows(out / "manifest.jsonl")} == {
        ("a", "shards/a-000000.tar"),
        ("b", "shards/b-000000.tar"),
    }


def test_wav_is_copied_with_its_own_suffix(tmp_path, prepare, rows, audio_of):
    wav = write_pair(tmp_path / "corpus", "one.wav", spell("A B C", 22_050), 22_050)
    out = prepare(tmp_path / "corpus", "--shard-size", "1MB")
    (row,) = rows(out / "manifest.jsonl")
    with tarfile.open(out / row["audio_filepath"]) as archive:
        assert archive.getnames() == ["one.wav", "one.txt"]
        assert archive.extractfile("one.wav").read() == wav.read_bytes()
    assert json.loads((out / "stats.json").read_text())["sample_rates"] == {"22050": 1}


def test_ids_with_dots_and_slashes_become_names_that_webdataset_can_cut(tmp_path, prepare, rows, audio_of):
    ids = ["a.b", "a/b", "a b", "a%2Eb", "\u00e9" * 150, "x" * 150 + ".y" * 60]
    audio = write_pair(tmp_path / "audio", "one.flac", spell("A B C"))
    lines = [{"id": i, "audio_filepath": str(audio), "duration": 1, "text": "A B C"} for i in ids]
    (tmp_path / "nemo.json").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    out = prepare(tmp_path / "nemo.json", "--shard-size", "1MB")
    assert [row["id"] for row in rows(out / "manifest.jsonl")] == ids
    with tarfile.open(out / "shards" / "000000.tar") as archive:
        names = archive.getnames()
    keys = [name.removesuffix(".flac") for name in names[::2]]
    assert names == [f"{key}{suffix}" for key in keys for suffix in (".flac", ".txt")]
    assert len(set(keys)) == len(ids)
    assert not any("." in key or "/" in key for key in keys)
    assert len(audio_of(out / "manifest.jsonl")) == len(ids)  # also after a long header


@pytest.mark.parametrize("options", [(), ("--shard-size", "1MB")], ids=["files", "shards"])
def test_resample_converts_only_what_differs(tmp_path, prepare, rows, audio_of, options):
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(44_100) / 44_100)
    kept = write_pair(tmp_path / "corpus", "kept.wav", spell("A B C"))
    write_pair(tmp_path / "corpus", "other.wav", np.stack([tone, np.zeros_like(tone)], axis=1), 44_100)
    loud_left = np.stack([spell("A B C"), 0 * spell("A B C")], axis=1)
    stereo = write_pair(tmp_path / "corpus", "stereo.wav", loud_left)
    out = prepare(tmp_path / "corpus", "--resample", "16000", *options)
    waveforms = audio_of(out / "manifest.jsonl")
    np.testing.assert_array_equal(waveforms["kept"], soundfile.read(kept, dtype="float32")[0])
    np.testing.assert_allclose(waveforms["stereo"], soundfile.read(stereo)[0].mean(axis=1), atol=1 / 32768)
    expected = 0.25 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    np.testing.assert_allclose(waveforms["other"][100:-100], expected[100:-100], atol=2e-3)
    stats = json.loads((out / "stats.json").read_text())
    assert stats["sample_rates"] == {"16000": 3}
    if not options:
        paths = [row["audio_filepath"] for row in rows(out / "manifest.jsonl")]
        assert paths == [str(kept), "audio/other.flac", "audio/stereo.flac"]
        assert soundfile.info(out / "audio" / "stereo.flac").subtype == "PCM_16"
        assert soundfile.info(out / "audio" / "stereo.flac").channels == 1


def segments(tmp_path: Path) -> tuple[Path, np.ndarray]:
    """Write a NeMo manifest with two segments of one long recording; return it and the recording."""
    audio = write_pair(tmp_path / "long", "talk.flac", spell("A B C D E F " * 4))
    rows = [{"audio_filepath": str(audio), "offset": s, "duration": 0.5, "text": "A", "id": f"t{s}"} for s in (0.25, 1)]
    (tmp_path / "nemo.json").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return tmp_path / "nemo.json", soundfile.read(audio, dtype="float32")[0]


@pytest.mark.parametrize("options", [(), ("--segment",), ("--shard-size", "1MB")], ids=["references", "cut", "shards"])
def test_segments_are_cut_or_stay_references_and_sound_the_same(tmp_path, prepare, rows, audio_of, options):
    manifest, recording = segments(tmp_path)
    out = prepare(manifest, *options)
    for utterance_id, waveform in audio_of(out / "manifest.jsonl").items():
        start = int(float(utterance_id[1:]) * SAMPLE_RATE)
        np.testing.assert_array_equal(waveform, recording[start : start + 8000])
    segment_rows = rows(out / "manifest.jsonl")
    assert [row["duration"] for row in segment_rows] == [0.5, 0.5]
    assert [row.get("offset") for row in segment_rows] == ([None, None] if options else [0.25, 1])
    assert (out / "audio").exists() == (options == ("--segment",))


def test_segment_that_ends_after_its_recording_is_left_out(tmp_path, prepare, rows):
    manifest, recording = segments(tmp_path)
    audio, end_s = str(tmp_path / "long" / "talk.flac"), len(recording) / SAMPLE_RATE
    late = {"id": "late", "audio_filepath": audio, "offset": end_s - 0.4, "duration": 0.5, "text": "A"}
    rounded = late | {"id": "rounded", "offset": end_s - 0.495}
    with manifest.open("a") as file:
        file.write(f"{json.dumps(late)}\n{json.dumps(rounded)}\n")
    out = prepare(manifest)
    assert [(r["id"], r["reason"]) for r in rows(out / "rejected.jsonl")] == [
        ("late", "a segment that ends after its recording")
    ]
    assert rows(out / "manifest.jsonl")[-1]["duration"] == pytest.approx(0.495, abs=1e-4)


def test_long_id_of_cut_audio_is_still_a_file_name(tmp_path, prepare, audio_of):
    manifest, recording = segments(tmp_path)
    manifest.write_text(manifest.read_text().replace('"t1"', f'"1{"x" * 300}"'))
    waveforms = audio_of(prepare(manifest, "--segment") / "manifest.jsonl")
    np.testing.assert_array_equal(waveforms[f"1{'x' * 300}"], recording[SAMPLE_RATE : SAMPLE_RATE + 8000])


def test_what_cannot_be_used_is_left_out_with_the_reason(split, prepare, rows, capsys):
    (split / "19-1-0000.flac").write_bytes(b"")
    (split / "19-1-0001.flac").write_bytes(b"no audio at all")
    cut = split / "19-1-0002.flac"
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    (split / "19-1-0003.flac").unlink()
    soundfile.write(split / "19-1-0003.wav", np.zeros(0, dtype=np.float32), SAMPLE_RATE)
    (split / "19-1-0004.flac").unlink()
    soundfile.write(split / "19-1-0099.flac", spell("A"), SAMPLE_RATE)
    transcripts = split / "19-1.trans.txt"
    transcripts.write_text(transcripts.read_text().replace(f"19-1-0005 {TEXTS[5]}\n", "19-1-0005\n"))
    (split / "19-1-0006.flac").unlink()
    os.symlink("nowhere", split / "19-1-0006.flac")
    out = prepare(split.parents[2])
    reasons = {row["id"]: row["reason"] for row in rows(out / "rejected.jsonl")}
    assert reasons == {
        "19-1-0000": "an empty file",
        "19-1-0001": "cannot be decoded: Format not recognised.",
        "19-1-0002": "truncated or damaged",
        "19-1-0003": "no audio in it",
        "19-1-0004": "no audio file",
        "19-1-0005": "an empty transcript",
        "19-1-0006": "no audio file",
        "19-1-0099": "no transcript",
    }
    assert {row["source"] for row in rows(out / "rejected.jsonl")} == {str(split)}
    assert len(rows(out / "manifest.jsonl")) == len(TEXTS) - 7
    stats = json.loads((out / "stats.json").read_text())
    assert (sum(stats["rejected"].values()), stats["rejected"]["no audio file"]) == (8, 2)
    assert "8 left out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("suffix", "detail"),
    [
        (".wav", r"its header says 2\.400 s of audio, 1\.\d{3} s are there"),
        (".ogg", r"it ends in the middle of a page, \d\.\d{3} s of audio are there"),
    ],
)
def test_audio_that_was_cut_off_is_left_out_with_what_its_header_says(tmp_path, prepare, rows, suffix, detail):
    folder = tmp_path / "corpus"
    write_pair(folder, f"whole{suffix}", spell("A B C D E " * 3))
    cut = write_pair(folder, f"cut{suffix}", spell("A B C D E " * 3))
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size * 2 // 3])
    out = prepare(folder)
    (rejected,) = rows(out / "rejected.jsonl")
    assert re.fullmatch(f"{cut}: {detail}", rejected.pop("detail"))
    assert rejected == {"source": str(folder), "id": "cut", "reason": "truncated or damaged"}
    assert [row["id"] for row in rows(out / "manifest.jsonl")] == ["whole"]
    assert json.loads((out / "stats.json").read_text())["rejected"] == {"truncated or damaged": 1}


@pytest.mark.parametrize("options", [(), ("--resample", "8000")], ids=["files", "converted"])
def test_samples_that_are_not_finite_are_left_out_with_their_number(tmp_path, prepare, rows, options):
    waveform = spell("A B C D E " * 10)  # longer than one block
    write_pair(tmp_path / "corpus", "good.wav", waveform, subtype="FLOAT")
    waveform[[0, -1]] = np.nan, np.inf
    bad = write_pair(tmp_path / "corpus", "bad.wav", waveform, subtype="FLOAT")
    write_pair(tmp_path / "corpus", "clipped.wav", np.clip(waveform, -1, 1), subtype="PCM_16")
    out = prepare(tmp_path / "corpus", *options)
    (rejected,) = rows(out / "rejected.jsonl")
    assert (rejected["id"], rejected["reason"]) == ("bad", "samples that are NaN or infinite")
    assert rejected["detail"] == f"{bad}: 2 of {len(waveform):,} samples are NaN or infinite"
    assert {row["id"] for row in rows(out / "manifest.jsonl")} == {"good", "clipped"}


def test_a_damaged_shard_is_found_when_it_is_a_source(split, prepare, rows):
    first = prepare(split.parents[2], "--shard-size", "1MB", out="first")
    shard = first / "shards" / "dev-clean-000000.tar"
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    second = prepare(first / "manifest.jsonl", out="second")
    reasons = {row["reason"] for row in rows(second / "rejected.jsonl")}
    assert 0 < len(rows(second / "manifest.jsonl")) < len(TEXTS)
    assert reasons <= {"truncated or damaged", "cannot be decoded: Format not recognised."}


def test_our_own_manifest_is_a_source_too(split, prepare, rows):
    first = prepare(split.parents[2], "--shard-size", "40KB", out="first")
    second = prepare(first / "manifest.jsonl", out="second")
    for before, now in zip(rows(first / "manifest.jsonl"), rows(second / "manifest.jsonl"), strict=True):
        assert now == before | {"audio_filepath": str(first / before["audio_filepath"])}


def test_another_recording_of_the_same_id_is_kept_under_another_id(split, prepare, rows):
    write_split(split.parents[2], "test-clean", ["A B"])  # the same speaker and ids
    out = prepare(split.parents[2])
    assert not (out / "rejected.jsonl").exists()
    first = next(row for row in rows(out / "dev-clean.jsonl") if row["id"] == "19-1-0000")
    (second,) = rows(out / "test-clean.jsonl")
    assert (second["id"], second["text"]) == ("test-clean-19-1-0000", "A B")
    assert first["audio_filepath"] != second["audio_filepath"]


def test_two_corpora_with_the_same_file_names_are_kept_whole(tmp_path, prepare, rows):
    for language in ("pl", "de", "fr"):
        write_pair(tmp_path / language / "wavs", "0001.wav", spell("A B"))
        (tmp_path / language / "metadata.csv").write_text(f"path,text\nwavs/0001.wav,{language}\n")
    tables = [tmp_path / language / "metadata.csv" for language in ("pl", "de", "fr", "de")]
    out = prepare(*tables)
    ids = {row["id"]: row["text"] for row in rows(out / "manifest.jsonl")}
    assert ids == {"wavs/0001": "pl", "de-metadata-wavs/0001": "de", "fr-metadata-wavs/0001": "fr"}
    (duplicate,) = rows(out / "rejected.jsonl")
    assert duplicate["reason"] == "the same id and audio as before"


def test_several_tables_are_splits_by_name(tmp_path, prepare, rows):
    names = ("train", "dev", "test", "other")
    for name in names:
        write_pair(tmp_path, f"{name}.wav", spell("A B"))
        (tmp_path / f"{name}.tsv").write_text(f"path\ttext\n{name}.wav\t{name}\n")
    out = prepare(*(tmp_path / f"{name}.tsv" for name in names))
    assert {name: [row["text"] for row in rows(out / f"{name}.jsonl")] for name in names} == {n: [n] for n in names}


def test_a_large_share_left_out_is_an_exit_status(tmp_path, capsys):
    write_pair(tmp_path, "0.wav", spell("A B"))
    table = tmp_path / "list.csv"
    table.write_text("path,text\n0.wav,a\nmissing.wav,b\n")
    command = [str(table), "--out", str(tmp_path / "out")]
    assert main(command) == 1
    assert "WARNING: 50.0 % of the utterances are left out" in capsys.readouterr().out.splitlines()[-1]
    assert main(command) == 1  # it is complete, and the status is the same
    assert main([*command, "--max_rejected", "50"]) == 0


def test_durations_outside_the_limits_are_left_out(split, prepare, rows):
    durations_s = {path.stem: soundfile.info(path).duration for path in split.glob("*.flac")}
    out = prepare(split.parents[2], "--min-duration", "0.5", "--max-duration", "1.2")
    kept = {row["id"] for row in rows(out / "manifest.jsonl")}
    assert kept == {key for key, duration_s in durations_s.items() if 0.5 <= duration_s <= 1.2}
    assert {row["reason"] for row in rows(out / "rejected.jsonl")} == {"shorter than 0.5 s", "longer than 1.2 s"}


def test_nothing_usable_is_an_error_that_says_why(split, prepare, tmp_path):
    with pytest.raises(InputError, match=r"No utterance in the sources is usable: 12 x longer than 0\.01 s"):
        prepare(split.parents[2], "--max-duration", "0.01")
    assert (tmp_path / "out" / "rejected.jsonl").exists()
    assert not (tmp_path / "out" / "manifest.jsonl").exists()


def test_stats_count_what_is_in_the_manifest(split, prepare):
    write_split(split.parents[2], "test-clean", ["BAD CAB"], speaker="84")
    stats = json.loads((prepare(split.parents[2], "--max-duration", "9") / "stats.json").read_text())
    durations_s = [soundfile.info(path).duration for path in split.parents[2].rglob("*.flac")]
    assert stats["utterances"] == len(TEXTS) + 1
    assert stats["hours"] == pytest.approx(sum(durations_s) / 3600, abs=1e-6)
    assert (stats["min_duration_s"], stats["max_duration_s"]) == (min(durations_s), max(durations_s))
    assert stats["mean_duration_s"] == pytest.approx(np.mean(durations_s), abs=1e-6)
    assert stats["bytes"] == sum(path.stat().st_size for path in split.parents[2].rglob("*.flac"))
    assert stats["splits"]["test-clean"]["alphabet"] == {" ": 1, "A": 2, "B": 2, "C": 1, "D": 1}
    assert stats["characters"] == sum(map(len, TEXTS)) + 7
    assert (stats["speakers"], stats["splits"]["test-clean"]["speakers"]) == (2, 1)
    assert (stats["options"]["max_duration"], stats["format_version"], stats["rejected"]) == (9, 1, {})


def test_output_within_a_source_is_refused(split, prepare):
    with pytest.raises(InputError, match=r"is inside the source .* Choose a folder outside"):
        prepare(split.parents[2], out="corpus/prepared")


def test_a_name_that_is_not_utf8_is_left_out(split, prepare, rows):
    folder = split.parents[2] / "more"
    written = write_pair(folder, "cafe.wav", spell("A"))
    for path in (written, written.with_suffix(".txt")):
        path.rename(folder / os.fsdecode(b"caf\xe9" + os.fsencode(path.suffix)))
    out = prepare(split.parents[2])
    assert [row["reason"] for row in rows(out / "rejected.jsonl")] == ["a name or transcript that is not UTF-8 text"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--min-duration", "5", "--max-duration", "1"),
            "--min_duration 5 is more than --max_duration 1, which",
        ),
        (("--workers", "0"), "--workers is 0: must be above 0"),
        (("--to", "bucket/prefix"), "--to is 'bucket/prefix': must be a URL such as s3://bucket/prefix"),
    ],
)
def test_options_that_make_no_sense_are_refused(split, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        main([str(split), "--out", str(tmp_path / "out"), *options])


@pytest.mark.parametrize(
    ("text", "size"),
    [("512MB", 512_000_000), ("1GiB", 2**30), ("1.5m", 1_500_000), ("100", 100), ("10 kb", 10_000)],
)
def test_sizes_are_read_as_people_write_them(text, size):
    options = PrepareOptions([Path("a")], Path("b"), shard_size=text)
    assert options.recipe(is_packed=False).shard_size == size


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--shard-size", "big"), "--shard_size is 'big': must be a size such as 512MB or 1GiB"),
        (("--shard-size", "0"), "--shard_size is '0': must be a size such as 512MB or 1GiB"),
        (("--resample", "16k"), "--resample is 16k: must be a whole number"),
        (("--resample", "16"), "--resample is 16: must be a sample rate from 1000 to 655350 Hz, such as 16000"),
    ],
)
def test_wrong_sizes_and_rates_are_refused_with_an_example(option, message):
    with pytest.raises(InputError, match=message):
        main(["a", "--out", "b", *option])


@pytest.mark.parametrize(
    ("options", "is_packed", "expected"),
    [({}, False, None), ({}, True, 512_000_000), ({"to": "s3://b/p/"}, False, 512_000_000)],
)
def test_uploads_and_packed_audio_imply_shards(options, is_packed, expected):
    recipe = PrepareOptions([Path("a")], Path("b"), **options).recipe(is_packed=is_packed)
    assert recipe.shard_size == expected
    assert recipe.to == (options.get("to") and "s3://b/p")


def test_help_lists_the_sources_and_the_options(capsys):
    with pytest.raises(SystemExit) as raised:
        main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert raised.value.code == 0
    assert "a NeMo manifest, a lhotse CutSet or SupervisionSet" in text
    assert "--shard_size" in text
    assert "number of threads; default: one per CPU core" in text


def test_options_may_come_from_a_config_file(split, tmp_path, rows):
    (tmp_path / "prepare.yaml").write_text("max_duration: 1.2\nshard_size: 1MB\n")
    assert main([str(split), "--config", str(tmp_path / "prepare.yaml"), "--out", str(tmp_path / "out")]) == 0
    assert {row["reason"] for row in rows(tmp_path / "out" / "rejected.jsonl")} == {"longer than 1.2 s"}
    assert (tmp_path / "out" / "shards").exists()


def test_real_speech_comes_through_bit_for_bit(librispeech, prepare, audio_of):
    out = prepare(librispeech / "dev-clean", "--shard-size", "1MB")
    waveforms = audio_of(out / "dev-clean.jsonl")
    paths = list((librispeech / "dev-clean").rglob("*.flac"))
    assert waveforms.keys() == {path.stem for path in paths}
    for path in paths:
        np.testing.assert_array_equal(waveforms[path.stem], soundfile.read(path, dtype="float32")[0])
