import logging
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
from corpus import LETTER_S, SAMPLE_RATE, random_texts, spell, write_split

from w2v_lightning.data.audio_ref import AudioRef
from w2v_lightning.data.decode import read_audio
from w2v_lightning.data.librispeech import load_split
from w2v_lightning.errors import InputError

TEXTS = ["BAD CAB", "A BED", "FACE"]
IDS = ["19-1-0000", "19-1-0001", "19-1-0002"]


@pytest.fixture
def chapter(tmp_path) -> Path:
    """Folder of three utterances of ROOT/train, where ROOT is `tmp_path / "corpus"`."""
    chapter = write_split(tmp_path / "corpus", "train", TEXTS)
    for path in (*chapter.iterdir(), *chapter.parents[:3]):  # older than the resolution of the file system's clock
        os.utime(path, (1e9, 1e9))
    return chapter


def root_of(chapter: Path) -> Path:
    return chapter.parents[2]


def load(chapter: Path, **options):
    return load_split(root_of(chapter), "train", **options)


def write_empty_wav(path: Path) -> None:
    soundfile.write(path, np.zeros(0, dtype=np.float32), SAMPLE_RATE, format="WAV")


def write_empty_flac(path: Path) -> None:
    soundfile.write(path, np.zeros(0, dtype=np.float32), SAMPLE_RATE)


def truncate(path: Path) -> None:
    """Truncate a file whose header still gives the full length."""
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, 3 * SAMPLE_RATE), SAMPLE_RATE)
    path.write_bytes(path.read_bytes()[:20_000])
    assert soundfile.info(path).frames == 3 * SAMPLE_RATE


def truncate_wav(path: Path) -> None:
    soundfile.write(path, np.zeros(3 * SAMPLE_RATE), SAMPLE_RATE, format="WAV")
    path.write_bytes(path.read_bytes()[: 44 + 2 * SAMPLE_RATE])


def write_text_as_audio(path: Path) -> None:
    path.write_text("this is no audio\n" * 100)


def test_manifest_holds_what_lies_in_the_folder(chapter):
    write_split(root_of(chapter), "train", ["CAFE"], speaker="7")
    manifest = load(chapter)
    assert manifest.ids == [*IDS, "7-1-0000"]
    assert manifest.texts == [*TEXTS, "CAFE"]
    assert manifest.speakers == ["19", "19", "19", "7"]
    assert [Path(path).name for path in manifest.audio_paths] == [f"{i}.flac" for i in manifest.ids]
    np.testing.assert_allclose(manifest.durations_s_N, [LETTER_S * len(text) for text in manifest.texts])


def test_real_speech_is_found_whole_and_lasts_as_long_as_the_manifest_says(librispeech):
    manifest = load_split(librispeech, "dev-clean")
    files = sorted((librispeech / "dev-clean").rglob("*.flac"))
    assert sorted(manifest.ids) == [path.stem for path in files]
    assert {(i.split("-")[0], speaker) for i, speaker in zip(manifest.ids, manifest.speakers, strict=True)} == {
        (path.parts[-3], path.parts[-3]) for path in files
    }
    lines = [line for table in (librispeech / "dev-clean").rglob("*.trans.txt") for line in table.open()]
    assert dict(zip(manifest.ids, manifest.texts, strict=True)).items() <= {
        tuple(line.strip().split(" ", 1)) for line in lines
    }
    for path, duration_s in zip(manifest.audio_paths[:5], manifest.durations_s_N, strict=False):
        assert len(read_audio(AudioRef(path))) == round(duration_s * SAMPLE_RATE)


def test_wav_and_ogg_are_read_too(chapter):
    for number, suffix in enumerate(("wav", "WAV", "ogg"), 3):
        soundfile.write(chapter / f"19-1-000{number}.{suffix}", spell("ABBA"), SAMPLE_RATE)
        with (chapter / "19-1.trans.txt").open("a") as file:
            file.write(f"19-1-000{number} ABBA\n")
    manifest = load(chapter)
    assert len(manifest) == 6
    np.testing.assert_allclose(manifest.durations_s_N[3:], 4 * LETTER_S)


def test_a_byte_order_mark_is_no_part_of_the_first_id(chapter):
    table = chapter / "19-1.trans.txt"
    table.write_text(table.read_text(), encoding="utf-8-sig")
    assert load(chapter, strict=True).ids == IDS


def test_missing_root_is_named(tmp_path):
    with pytest.raises(InputError, match=f"data.root: folder {tmp_path / 'nowhere'} not found. Give the folder"):
        load_split(tmp_path / "nowhere", "train")


def test_missing_split_names_those_that_are_there(chapter):
    write_split(root_of(chapter), "dev", ["A"])
    (root_of(chapter) / "README.TXT").touch()
    with pytest.raises(
        InputError,
        match=r"data.root: .* has no split 'test', neither as a folder nor as test\.jsonl; it holds dev, train\.$",
    ):
        load_split(root_of(chapter), "test")


def test_folder_without_audio_asks_whether_it_is_a_split(tmp_path):
    (tmp_path / "train" / "19").mkdir(parents=True)
    with pytest.raises(InputError, match=r"train holds no audio file \(.flac, .wav, .ogg\); is it a LibriSpeech split"):
        load_split(tmp_path, "train")


@pytest.mark.parametrize(
    ("damage", "message", "left"),
    [
        (
            lambda chapter: (chapter / "19-1.trans.txt").write_text("19-1-0001 A BED\n"),
            "2 utterances without a transcript: 19-1-0000, 19-1-0002",
            IDS[1:2],
        ),
        (
            lambda chapter: (chapter / "19-1-0001.flac").unlink(),
            "1 utterances whose audio file is missing: 19-1-0001",
            [IDS[0], IDS[2]],
        ),
    ],
)
def test_utterances_without_partner_are_counted_listed_and_left_out(chapter, caplog, damage, message, left):
    damage(chapter)
    for _ in range(2):  # repeated on every run, not only before the manifest is cached
        caplog.clear()
        assert load(chapter).ids == left
        assert message in caplog.text
        assert "data.strict=true refuses them" in caplog.text
    with pytest.raises(InputError, match=f"{message}. Repair the corpus, or set data.strict=false"):
        load(chapter, strict=True)


def test_long_lists_are_cut_and_counted(tmp_path):
    chapter = write_split(tmp_path, "train", ["A"] * 15)
    (chapter / "19-1.trans.txt").unlink()
    with pytest.raises(InputError, match=r"15 utterances without a transcript: .*19-1-0009 and 5 more\."):
        load_split(tmp_path, "train", strict=True)


def test_corpus_without_a_single_pair_is_refused(chapter):
    (chapter / "19-1.trans.txt").unlink()
    with pytest.raises(InputError, match="train: no utterance has both readable audio and a transcript"):
        load(chapter)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (write_empty_wav, "contains no audio"),
        (write_empty_flac, "it is an empty file: download or export it again."),
        (truncate, "truncated or damaged"),
        (truncate_wav, r"truncated: its header says 3\.000 s of audio, 1\.000 s are there"),
        (write_text_as_audio, "Format not recognised."),
        (Path.touch, "it is an empty file: download or export it again."),
    ],
)
def test_unusable_audio_is_named_with_its_reason_and_left_out_only_when_asked(chapter, caplog, damage, reason):
    bad = chapter / "19-1-0001.flac"
    bad.unlink()
    damage(bad)
    message = rf"1 audio files cannot be used: {bad} \({reason}\)\. "
    for _ in range(2):  # the second pass must not use a cached manifest of the first, which left the file out
        with pytest.raises(InputError, match=f"{message}Replace or remove them, or set data.skip_unusable=true"):
            load(chapter)
        assert load(chapter, skip_unusable=True).ids == [IDS[0], IDS[2]]
    assert f"1 audio files cannot be used: {bad}" in caplog.text


@pytest.mark.parametrize("place", ["19/1/19-1-0000.wav", "20/3/19-1-0000.flac"])
def test_second_audio_file_for_an_utterance_is_refused(chapter, place):
    second = root_of(chapter) / "train" / place
    second.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(second, spell("A"), SAMPLE_RATE)
    with pytest.raises(InputError, match=f"Two audio files for utterance 19-1-0000: {chapter}.*{second}"):
        load(chapter)


def test_second_transcript_for_an_utterance_is_refused_with_its_line(chapter):
    table = chapter / "19-1.trans.txt"
    table.write_text(table.read_text() + "\n19-1-0001 ANOTHER\n")
    with pytest.raises(InputError, match=f"{table}:5: a second transcript for utterance 19-1-0001"):
        load(chapter)


def test_transcripts_that_are_not_utf8_are_named(chapter):
    table = chapter / "19-1.trans.txt"
    table.write_bytes("19-1-0000 CAF\u00c9\n".encode("latin-1"))
    with pytest.raises(InputError, match=f"{table} is not UTF-8 text"):
        load(chapter)


def test_second_load_opens_no_audio(chapter, monkeypatch):
    first = load(chapter)

    def refuse(*_):
        raise AssertionError("audio opened")

    monkeypatch.setattr(soundfile, "SoundFile", refuse)
    second = load(chapter)
    assert (second.ids, second.texts, second.audio_paths) == (first.ids, first.texts, first.audio_paths)
    np.testing.assert_array_equal(second.durations_s_N, first.durations_s_N)


def test_splits_and_corpora_do_not_share_a_cached_manifest(tmp_path):
    for corpus, split, text in (("a", "train", "ABBA"), ("a", "dev", "BED"), ("b", "train", "CAFE")):
        write_split(tmp_path / corpus, split, [text])
    loaded = [
        load_split(tmp_path / c, s).texts for _ in range(2) for c, s in (("a", "train"), ("a", "dev"), ("b", "train"))
    ]
    assert loaded == [["ABBA"], ["BED"], ["CAFE"]] * 2


def test_added_file_is_seen(chapter):
    load(chapter)
    soundfile.write(chapter / "19-1-0003.flac", spell("ABBA"), SAMPLE_RATE)
    with (chapter / "19-1.trans.txt").open("a") as file:
        file.write("19-1-0003 ABBA\n")
    assert load(chapter).ids == [*IDS, "19-1-0003"]


def test_added_speaker_is_seen(chapter):
    load(chapter)
    write_split(root_of(chapter), "train", ["ABBA"], speaker="20")
    assert load(chapter).ids == [*IDS, "20-1-0000"]


def test_removed_audio_is_seen(chapter):
    load(chapter)
    (chapter / "19-1-0002.flac").unlink()
    assert load(chapter).ids == IDS[:2]


def test_edited_transcript_is_seen(chapter):
    load(chapter)
    table = chapter / "19-1.trans.txt"
    table.write_text(table.read_text().replace("FACE", "CAFE"))
    assert load(chapter).texts[2] == "CAFE"


def test_replaced_audio_is_seen(chapter):
    load(chapter)
    (chapter / "19-1-0002.flac").unlink()
    soundfile.write(chapter / "19-1-0002.flac", spell("FACE FACE"), SAMPLE_RATE)
    assert load(chapter).durations_s_N[2] == pytest.approx(9 * LETTER_S)


def test_unusable_cache_folder_does_not_stop_loading(chapter, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("W2V_LIGHTNING_CACHE", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING):
        assert load(chapter).ids == IDS
    assert "cannot be cached" in caplog.text


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write and read everything")
@pytest.mark.parametrize("mode", [0o500, 0o000])
def test_forbidden_cache_folder_does_not_stop_loading(chapter, tmp_path, monkeypatch, mode):
    cache = tmp_path / "forbidden"
    cache.mkdir()
    monkeypatch.setenv("W2V_LIGHTNING_CACHE", str(cache))
    cache.chmod(mode)
    try:
        assert load(chapter).ids == IDS
    finally:
        cache.chmod(0o700)


def test_transcripts_of_any_spacing_are_read(chapter):
    table = chapter / "19-1.trans.txt"
    table.write_text("19-1-0000  BAD CAB \r\n\n19-1-0001\n19-1-0002 FACE", newline="")
    assert load(chapter).texts == ["BAD CAB", "", "FACE"]


def test_root_may_be_a_link_and_relative(tmp_path, monkeypatch):
    texts = random_texts(3, seed=1)
    write_split(tmp_path / "elsewhere", "dev", texts)
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    manifest = load_split(Path("link"), "dev")
    monkeypatch.chdir("/")
    assert manifest.texts == texts
    assert all(Path(path).is_file() for path in manifest.audio_paths)
