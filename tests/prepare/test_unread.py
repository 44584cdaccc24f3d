"""What a folder holds that is not read is said once."""

import pytest
from layouts import items_of, write_sound, write_text

HEADER = "file_name,text\n"


@pytest.fixture
def said(capsys):
    """Function that reads a source; returns (ids, what is printed)."""

    def run(source) -> tuple[list[str], str]:
        utterances, rejected = items_of(source)
        assert not rejected
        return [utterance.id for utterance in utterances], capsys.readouterr().out

    return run


def test_audio_that_no_row_lists_is_counted(tmp_path, said):
    for name in ("a", "b", "c"):
        write_sound(tmp_path / f"{name}.wav")
    table = write_text(tmp_path / "metadata.csv", HEADER + "a.wav,one\n")
    ids, out = said(tmp_path)
    assert ids == ["a"]
    assert out == f"{tmp_path}: 2 audio files that no row lists are not used, such as {tmp_path / 'b.wav'}.\n"
    assert said(table) == (["a"], "")  # who names a table wants its rows
    write_text(table, HEADER + "a.wav,one\nb.wav,two\nc.wav,three\n")
    assert said(tmp_path) == (["a", "b", "c"], "")


@pytest.mark.parametrize(
    ("listing", "text", "audio"),
    [
        ("metadata.csv", "{}|one|one\n", "wavs/{}.wav"),
        ("metadata.jsonl", '{{"file_name": "x/{}.wav", "text": "one"}}\n', "x/{}.wav"),
        ("transcripts.txt", "{}\tone\n", "audio/1/2/{}.flac"),
        ("train.tsv", "path\tsentence\n{}.mp3\tone\n", "clips/{}.mp3"),
    ],
)
def test_unlisted_audio_of_every_layout(tmp_path, said, listing, text, audio):
    for name in ("1_2_0", "1_2_1"):
        write_sound(tmp_path / audio.format(name))
    write_text(tmp_path / listing, text.format("1_2_0"))
    ids, out = said(tmp_path)
    assert [utterance_id.removeprefix("x/") for utterance_id in ids] == ["1_2_0"]
    assert "1 audio files that no row lists" in out


def test_unlisted_audio_of_kaldi(tmp_path, said):
    for name in ("r1", "r2"):
        write_sound(tmp_path / "wav" / f"{name}.wav")
    write_text(tmp_path / "data" / "wav.scp", "r1 wav/r1.wav\n")
    write_text(tmp_path / "data" / "text", "r1 ONE\n")
    ids, out = said(tmp_path)
    assert ids == ["r1"]
    assert out.endswith(f"such as {tmp_path / 'wav' / 'r2.wav'}.\n")


def test_unlisted_audio_does_not_fail_the_command(tmp_path, prepare, rows):
    for name in ("a", "b"):
        write_sound(tmp_path / "corpus" / f"{name}.wav")
    write_text(tmp_path / "corpus" / "metadata.csv", HEADER + "a.wav,one\n")
    out = prepare(tmp_path / "corpus", "--max-rejected", "0")
    assert [row["id"] for row in rows(out / "manifest.jsonl")] == ["a"]
    assert not (out / "rejected.jsonl").exists()


def test_a_corpus_of_another_layout_is_named(tmp_path, said):
    write_sound(tmp_path / "a.wav")
    write_text(tmp_path / "metadata.csv", HEADER + "a.wav,one\n")
    write_sound(tmp_path / "mls" / "dev" / "audio" / "1" / "2" / "1_2_3.flac")
    write_text(tmp_path / "mls" / "dev" / "transcripts.txt", "1_2_3\ttwo\n")
    ids, out = said(tmp_path)
    assert ids == ["a"]
    layout = f"{tmp_path} is read as audiofolder: {tmp_path / 'mls' / 'dev'} (Multilingual LibriSpeech) is not read"
    assert out.startswith(f"{layout}. To use it, name it.\n")
    assert "1 audio files that no row lists" in out


@pytest.mark.parametrize("name", ["train.tsv", "list.csv", "list.jsonl"])
def test_a_table_beside_audio_with_transcripts_is_named(tmp_path, said, name):
    write_sound(tmp_path / "a.wav")
    write_text(tmp_path / "a.txt", "one")
    rows = {".tsv": "path\ttext\na.wav\tother\n", ".csv": "path,text\na.wav,other\n"}
    write_text(tmp_path / name, rows.get(name[-4:], '{"path": "a.wav", "text": "other"}\n'))
    write_text(tmp_path / "speakers.csv", "speaker,sex\n19,F\n")
    ids, out = said(tmp_path)
    assert ids == ["a"]
    assert out == f"{tmp_path} is read as folder: {tmp_path / name} (table) is not read. To use it, name it.\n"


def test_audio_beside_a_dataset_is_named(tmp_path, said):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    content = write_sound(tmp_path / "b" / "a.wav").read_bytes()
    write_text(tmp_path / "b" / "a.txt", "two")
    table = pyarrow.table({"audio": [{"bytes": content, "path": "x.wav"}], "text": ["one"]})
    parquet.write_table(table, tmp_path / "0.parquet")
    ids, out = said(tmp_path)
    assert ids == ["x"]
    assert f"is read as Hugging Face dataset: {tmp_path / 'b'} (audio with transcripts) is not read" in out
