"""Faults of a corpus, one at a time: `check` reports this one only, and its exit status tells errors from warnings."""

import shutil
import tarfile

import fsspec
import numpy as np
import pytest
import soundfile
from check_corpus import clean_corpus
from corpus import SAMPLE_RATE, spell
from tiny import TINY_CONFIG

from w2v_lightning.check import findings
from w2v_lightning.check.findings import Corpus
from w2v_lightning.data.batch import InputSpec
from w2v_lightning.data.librispeech import load_split
from w2v_lightning.data.manifest import Manifest
from w2v_lightning.data.reader import AudioReader
from w2v_lightning.text.vocabulary import Vocabulary

HURTS, PASSES = 1, 0


@pytest.fixture
def builder(tmp_path):
    return clean_corpus(tmp_path)


@pytest.mark.parametrize("options", [[], ["--decode"]])
def test_clean_corpus_has_no_finding(builder, options):
    builder.add("val-0", "DAB FACE", manifest="val")
    assert builder.found(*options) == (PASSES, {})


def test_real_speech_has_no_error(librispeech, builder, tmp_path):
    load_split(librispeech, "dev-clean").save(tmp_path / "train.jsonl")
    builder.manifest = lambda name="train": str(tmp_path / "train.jsonl")
    assert builder.found("--decode") == (PASSES, {})


# ---- audio ----------------------------------------------------------------------------------------------------------


def damage(path, keep):
    path.write_bytes(path.read_bytes()[:keep])


@pytest.mark.parametrize("options", [[], ["--decode"]])
@pytest.mark.parametrize(
    ("spoil", "detail"),
    [
        (lambda path: path.unlink(), "no such file"),
        (lambda path: path.write_text("not audio"), "Format not recognised"),
        (lambda path: damage(path, 0), ""),
        (lambda path: damage(path, path.stat().st_size // 2), ""),
        (lambda path: soundfile.write(path, np.zeros(0), SAMPLE_RATE, format="WAV"), "no audio in the file"),
    ],
    ids=["missing", "text", "empty file", "truncated", "no samples"],
)
def test_unreadable_audio(builder, options, spoil, detail):
    spoil(builder.add("bad"))
    status, report = builder.check(*options)
    (finding,) = [f for f in report["findings"] if f["count"]]
    assert (status, finding["name"]) == (HURTS, "unreadable audio")
    assert [row["id"] for row in finding["utterances"]] == ["bad"]
    assert detail in finding["utterances"][0]["detail"]


@pytest.mark.parametrize("options", [[], ["--decode"]])
@pytest.mark.parametrize(
    ("suffix", "detail"),
    [
        (".wav", "truncated: its header says 0.480 s of audio, 0.23"),
        (".ogg", "truncated: it ends in the middle of a page, "),
    ],
)
def test_what_libsndfile_reads_as_shorter_audio_is_found(builder, options, suffix, detail):
    path = builder.add("bad", suffix=suffix)
    damage(path, path.stat().st_size - 1 if suffix != ".wav" else path.stat().st_size // 2)
    status, report = builder.check(*options)
    (finding,) = [f for f in report["findings"] if f["count"]]
    assert (status, finding["name"]) == (HURTS, "unreadable audio")
    assert [row["id"] for row in finding["utterances"]] == ["bad"]
    assert finding["utterances"][0]["detail"].startswith(detail)


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_samples_that_are_not_finite_are_found_by_decoding(builder, value):
    waveform = spell("FACADE")
    waveform[5:12] = value
    path = builder.add("bad", suffix=".wav")
    soundfile.write(path, waveform, SAMPLE_RATE, subtype="FLOAT")
    assert builder.found() == (PASSES, {})
    status, report = builder.check("--decode")
    (finding,) = [f for f in report["findings"] if f["count"]]
    assert (status, finding["name"]) == (HURTS, "unreadable audio")
    (row,) = finding["utterances"]
    assert (row["id"], row["detail"]) == ("bad", "7 of 7,680 samples are NaN or infinite")


def test_flac_whose_samples_are_not_those_of_its_md5_is_found_by_decoding(builder):
    path = builder.add("bad")
    content = bytearray(path.read_bytes())
    content[30] ^= 0xFF  # within the MD5
    path.write_bytes(content)
    assert builder.found() == (PASSES, {})
    assert builder.found("--decode") == (HURTS, {"unreadable audio": ["bad"]})


@pytest.mark.parametrize("subtype", ["PCM_S8", "PCM_16", "PCM_24"])
@pytest.mark.parametrize("channels", [1, 2])
def test_md5_of_sound_flac_files_of_any_depth_is_right(builder, subtype, channels):
    path = builder.add("other")
    soundfile.write(path, np.stack([spell("FACADE")] * channels, axis=1), SAMPLE_RATE, subtype=subtype)
    assert builder.found("--decode") == (PASSES, {})


@pytest.mark.parametrize("options", [[], ["--decode"]])
@pytest.mark.parametrize(
    ("keys", "is_off"),
    [
        ({"duration": 0.48 + 0.05}, True),
        ({"duration": 0.48 - 0.011}, True),
        ({"duration": 0.48 + 0.009}, False),
        ({"offset": 0.1, "duration": 0.4}, True),  # ends 20 ms after the file does
        ({"offset": 0.08, "duration": 0.405}, False),
    ],
)
def test_wrong_duration(builder, options, keys, is_off):
    builder.add("bad", "FACADE", **keys)
    expected = (HURTS, {"wrong duration": ["bad"]}) if is_off else (PASSES, {})
    assert builder.found(*options) == expected


def test_rounded_duration_of_a_long_recording_is_no_fault(builder):
    builder.add("long", "A" * 250, duration=20.0 + 0.015)  # more than 10 ms, less than 0.1 %
    assert builder.found() == (PASSES, {})


def test_clipping_and_silence_are_found_by_decoding(builder):
    builder.add("loud", waveform=np.clip(20 * spell("FACADE"), -1, 1))
    builder.add("quiet", waveform=spell("FACADE") / 5000)
    builder.add("late", "ABCDEFABCD", waveform=np.concatenate([np.zeros(12_000, np.float32), spell("F")[:800]]))
    status, found = builder.found("--decode")
    assert (status, found) == (PASSES, {"clipping": ["loud"], "silence": ["quiet", "late"]})
    assert builder.found() == (PASSES, {})


@pytest.mark.parametrize(
    ("dbfs", "silent_share", "is_silent"),
    [(-58, 0.0, False), (-62, 0.0, True), (-20, 0.85, False), (-20, 0.95, True), (-56, 0.8, True)],
)
def test_silence_is_below_60_dbfs_on_the_whole_or_in_nearly_all_windows(builder, dbfs, silent_share, is_silent):
    sine = np.sqrt(2) * 10 ** (dbfs / 20) * np.sin(np.arange(16_000) * 0.3)
    sine[: int(silent_share * len(sine))] = 0
    builder.add("quiet", "ABCDEFABCDEF", waveform=sine.astype(np.float32))
    assert builder.found("--decode") == (PASSES, {"silence": ["quiet"]} if is_silent else {})


def test_channels_that_cancel_are_unusable_unless_one_is_chosen(builder):
    left_T = spell("FACADE")
    stereo_TC = np.stack([left_T, -left_T], axis=1)
    builder.add("inverted", waveform=stereo_TC)
    builder.add("left", waveform=stereo_TC * 0.9, channel=0)
    assert builder.found("--decode") == (HURTS, {"unreadable audio": ["inverted"]})


def test_integers_saved_as_floats_are_found_by_decoding(builder):
    path = builder.add("bad", suffix=".wav")
    soundfile.write(path, spell("FACADE") * 32768, SAMPLE_RATE, subtype="FLOAT")
    assert builder.found("--decode") == (HURTS, {"unreadable audio": ["bad"]})


def test_one_peak_at_full_scale_is_no_clipping(builder):
    waveform = spell("FACADE")
    builder.add("peak", waveform=waveform / np.abs(waveform).max())
    assert builder.found("--decode") == (PASSES, {})


@pytest.mark.parametrize(("suffix", "compared"), [(".flac", "FLAC MD5"), (".wav", "bytes of the file")])
@pytest.mark.parametrize("options", [[], ["--decode"]])
def test_duplicated_audio(builder, suffix, compared, options):
    for name in ("one", "two"):
        builder.add(name, suffix=suffix)
    status, report = builder.check(*options)
    (finding,) = [f for f in report["findings"] if f["count"]]
    assert (status, finding["name"]) == (PASSES, "duplicated audio")
    (row,) = finding["utterances"]
    assert (row["id"], row["detail"]) == ("two", f"the same {compared} as one")


def test_same_audio_with_different_text(builder):
    builder.add("two", "FED", waveform=spell("ABC DEF"))
    builder.rows["train"][-1]["text"] = "FED BAD"
    assert builder.found() == (HURTS, {"same audio with different text": ["two"]})


def test_validation_audio_in_training(builder):
    builder.add("val-0", "ABC DEF", manifest="val")
    assert builder.found() == (HURTS, {"validation audio in training": ["val-0"]})


def test_segments_of_one_recording_are_not_duplicates_unless_they_are_the_same_segment(builder):
    path = builder.add("whole", "AABBCCDDEE", suffix=".wav")
    segments = {"first": 0.0, "second": 0.4, "again": 0.4}
    for name, start_s in segments.items():
        builder.add(name, "ABCDE", audio_filepath=str(path), offset=start_s, duration=0.4)
    for options in ([], ["--decode"]):
        assert builder.found(*options) == (PASSES, {"duplicated audio": ["again"]})
    details = [row["detail"] for finding in builder.check()[1]["findings"] for row in finding["utterances"]]
    assert details == ["the same position in the file as second"]  # a long recording is not hashed for each segment


# ---- shards and remote files ----------------------------------------------------------------------------------------


def move_into_shard(builder):
    shard = builder.folder / "shard.tar"
    with tarfile.open(shard, "w") as tar:
        for row in builder.rows["train"]:
            tar.add(row["audio_filepath"], arcname=row["audio_filepath"].rpartition("/")[2])
    shutil.rmtree(builder.folder / "train")
    with tarfile.open(shard) as tar:
        for row, member in zip(builder.rows["train"], tar, strict=True):
            row |= {"audio_filepath": str(shard), "byte_offset": member.offset_data, "num_bytes": member.size}
    return shard


@pytest.mark.parametrize("options", [[], ["--decode"]])
def test_clean_shard_has_no_finding(builder, options):
    builder.add("wav", "FEED", suffix=".wav")
    move_into_shard(builder)
    assert builder.found(*options) == (PASSES, {})


@pytest.mark.parametrize("options", [[], ["--decode"]])
def test_faults_within_a_shard_are_found(builder, options):
    builder.add("two", "ABC DEF")
    builder.add("wrong", "FACADE", duration=0.6)
    builder.add("cut off")
    shard = move_into_shard(builder)
    row = builder.rows["train"][-1]
    damage(shard, row["byte_offset"] + row["num_bytes"] - 1)
    found = {"duplicated audio": ["two"], "wrong duration": ["wrong"], "unreadable audio": ["cut off"]}
    assert builder.found(*options) == (HURTS, found)


def test_only_the_start_of_a_flac_in_a_shard_is_read_unless_decoded(builder, monkeypatch):
    sizes = set()
    read = AudioReader.read
    monkeypatch.setattr(
        AudioReader, "read", lambda self, refs: (sizes.update(ref.num_bytes for ref in refs), read(self, refs))[1]
    )
    builder.add("bad")
    shard = move_into_shard(builder)
    row = builder.rows["train"][-1]
    content = bytearray(shard.read_bytes())
    middle = row["byte_offset"] + row["num_bytes"] // 2
    content[middle : middle + 40] = bytes(40)
    shard.write_bytes(content)
    assert builder.found() == (PASSES, {})
    assert sizes == {42, 1}
    assert builder.found("--decode") == (HURTS, {"unreadable audio": ["bad"]})


@pytest.mark.parametrize("options", [[], ["--decode"]])
def test_manifest_and_shard_in_a_store_are_read_by_url(builder, options):
    builder.add("two", "ABC DEF")
    builder.add("wrong", "FACADE", duration=0.6)
    store = fsspec.filesystem("memory")
    store.pipe("/corpus/shard.tar", move_into_shard(builder).read_bytes())
    for row in builder.rows["train"]:
        row["audio_filepath"] = "shard.tar"
    builder.add("gone", audio_filepath="gone.flac")
    store.put(builder.manifest(), "/corpus/manifest.jsonl")
    builder.manifest = lambda name="train": "memory://corpus/manifest.jsonl"
    found = {"duplicated audio": ["two"], "wrong duration": ["wrong"], "unreadable audio": ["gone"]}
    assert builder.found(*options) == (HURTS, found)


# ---- text -----------------------------------------------------------------------------------------------------------


def test_empty_text(builder):
    builder.add("bad", text=" ", waveform=spell("FACADE"))
    assert builder.found() == (HURTS, {"empty text": ["bad"]})


def test_out_of_vocabulary_text_comes_with_the_characters_and_their_counts(builder):
    waveform = spell("FACADE FED")
    builder.add("one", "FACADE ++\u00c9", waveform=waveform)
    builder.add("two", "FACADE? FE", waveform=waveform[:-100])
    status, report = builder.check()
    (finding,) = [f for f in report["findings"] if f["count"]]
    assert (status, finding["name"], report["unknown_characters"]) == (
        HURTS,
        "out of vocabulary",
        {"+": 2, "\u00c9": 1, "?": 1},
    )
    details = {row["id"]: row["detail"] for row in finding["utterances"]}
    assert details == {"one": "no token for + \u00c9", "two": "no token for ?"}


def test_lower_case_text_against_an_upper_case_vocabulary_is_a_warning(builder):
    builder.add("lower", "facade")
    builder.add("apostrophe", "FAC\u2019D", waveform=spell("FACDE"))  # has no case
    assert builder.found() == (PASSES, {"letter case differs from the vocabulary": ["lower"]})


def test_upper_case_text_against_a_lower_case_model_is_a_warning(builder, tmp_path):
    from w2v_lightning.model import wav2vec2

    vocabulary = Vocabulary(tuple(token if token.startswith("<") else token.lower() for token in Vocabulary().tokens))
    model = wav2vec2.from_scratch(TINY_CONFIG, vocabulary)
    wav2vec2.save_pretrained(tmp_path / "model", model, vocabulary, normalise=True)
    status, found = builder.found("--model", str(tmp_path / "model"))
    assert (status, list(found)) == (PASSES, ["letter case differs from the vocabulary"])
    assert len(found["letter case differs from the vocabulary"]) == 8


def test_more_labels_than_frames(builder):
    builder.add("fits", "A" * 22, waveform=spell("FACADE DEAF"))  # 43 frames: 22 letters and 21 blanks between them
    builder.add("bad", "A" * 23, waveform=spell("FACADE BEAD"))
    status, found = builder.found()
    assert (status, found.pop("more labels than frames"), list(found)) == (HURTS, ["bad"], ["characters per second"])


def test_too_short(builder):
    builder.add("bad", "A", waveform=spell("A")[:399])
    status, found = builder.found()
    assert (status, found.pop("too short"), list(found)) == (HURTS, ["bad"], ["characters per second"])


def test_too_long_is_a_warning_from_the_given_length_on(builder):
    builder.add("long", "FACADE FEED BEAD")
    assert builder.found() == (PASSES, {})
    assert builder.found("--max_seconds", "1.2") == (PASSES, {"longer than 1.2 s": ["long"]})


def test_text_of_other_audio_stands_out_by_its_characters_per_second(builder):
    builder.add("fast", "ABCDEFABCDEFAB", waveform=spell("FACADE"))
    builder.add("slow", "AB", waveform=spell("FACADE FEED ACE"))
    assert builder.found() == (PASSES, {"characters per second": ["fast", "slow"]})


@pytest.mark.parametrize(("rate", "expected"), [(0.9, 3), (1.1, 0), (29.0, 0), (31.0, 3)])
def test_what_nobody_speaks_is_found_even_where_all_utterances_have_it(rate, expected):
    manifest = Manifest(["a", "b", "c"], ["x"] * 3, np.array([100.0] * 3), ["A" * round(rate * 100)] * 3, [""] * 3)
    assert len(findings.rate_outliers(Corpus.join([manifest], [], InputSpec()))) == expected


def test_equal_rates_do_not_make_a_slightly_faster_utterance_an_outlier():
    lengths = [12] * 20 + [19]
    manifest = Manifest(list(map(str, lengths)), ["x"] * 21, np.ones(21), ["A" * n for n in lengths], [""] * 21)
    assert len(findings.rate_outliers(Corpus.join([manifest], [], InputSpec()))) == 0


# ---- ids and speakers -----------------------------------------------------------------------------------------------


def test_duplicated_id(builder):
    builder.add("copy", id="clean-0")
    assert builder.found() == (HURTS, {"duplicated id": ["clean-0", "clean-0"]})


def test_same_id_in_training_and_validation(builder):
    builder.add("clean-0", manifest="val")
    assert builder.found() == (PASSES, {"same id in training and validation": ["clean-0"]})


def test_same_speaker_in_training_and_validation(builder):
    builder.add("known", manifest="val", speaker="train speaker")
    builder.add("new", "FEED", manifest="val")
    assert builder.found() == (PASSES, {"same speaker in training and validation": ["known"]})


def test_unnamed_speakers_are_not_the_same(builder):
    builder.rows["train"][0]["speaker"] = ""
    builder.add("unnamed", manifest="val", speaker="")
    assert builder.found() == (PASSES, {})


# ---- order ----------------------------------------------------------------------------------------------------------


def test_the_worst_come_first():
    manifest = Manifest(
        ids=["mild", "clean", "worst", "bad"],
        audio_paths=["x"] * 4,
        durations_s_N=np.array([40.0, 10.0, 90.0, 60.0]),
        texts=["WHAT?", "GOOD", "1 2 3", "4?"],
        speakers=[""] * 4,
    )
    corpus = Corpus.join([manifest], [], InputSpec())
    for finding in (findings.too_long(corpus, 30), findings.out_of_vocabulary(corpus)):
        assert [manifest.ids[i] for i in finding.details] == ["worst", "bad", "mild"]
