"""Readers of corpora that are folders: right values from small ones, and named errors from damaged ones."""

import json

import pytest
from layouts import RATE, items_of, kind_of, write_sound, write_text

from w2v_lightning.errors import InputError
from w2v_lightning.prepare.readers.kaldi_pipe import audio_of_command


@pytest.fixture
def corpus_of(prepare, rows):
    """Function that prepares a source and returns (text, speaker, split, duration) by id."""

    def run(*source):
        manifest = rows(prepare(*source) / "manifest.jsonl")
        return {row["id"]: (row["text"], row["speaker"], row.get("split", ""), row["duration"]) for row in manifest}

    return run


@pytest.fixture
def common_voice(tmp_path):
    folder = tmp_path / "cv-corpus" / "de"
    for i in range(5):
        write_sound(folder / "clips" / f"common_voice_de_{i}.wav", 0.5 + i / 10)
    header = "client_id\tpath\tsentence_id\tsentence\tup_votes\tlocale\tsegment\n"
    row = 's{0}\tcommon_voice_de_{0}.wav\tx\tSatz "Nummer {0}\t2\tde\t\n'
    for name, numbers in {"train": [0, 1], "dev": [2], "test": [3], "validated": range(4), "invalidated": [4]}.items():
        write_text(folder / f"{name}.tsv", header + "".join(row.format(i) for i in numbers))
    write_text(folder / "clip_durations.tsv", "clip\tduration[ms]\n")
    return folder


@pytest.mark.parametrize("above", [0, 1])
def test_common_voice_has_its_splits_and_nothing_twice(common_voice, corpus_of, above):
    assert corpus_of([common_voice, common_voice.parent][above]) == {
        f"common_voice_de_{i}": (f'Satz "Nummer {i}', f"s{i}", split, 0.5 + i / 10)
        for i, split in enumerate(["train", "train", "dev", "test"])
    }


def test_common_voice_reads_no_row_twice(common_voice):
    utterances, rejected = items_of(common_voice)
    assert (len(utterances), rejected) == (4, [])


def test_common_voice_without_splits_is_what_was_validated(common_voice):
    for name in ("train", "dev", "test"):
        (common_voice / f"{name}.tsv").unlink()
    assert len(items_of(common_voice)[0]) == 4
    (common_voice / "validated.tsv").unlink()
    with pytest.raises(InputError, match=r"de has neither train\.tsv, .* nor validated\.tsv"):
        items_of(common_voice)


def test_ljspeech_has_normalised_text_and_no_header(tmp_path, corpus_of):
    for i in (1, 2, 3):
        write_sound(tmp_path / "LJ" / "wavs" / f"LJ{i}.wav", i / 2)
    table = write_text(tmp_path / "LJ" / "metadata.csv", 'LJ1|In "1436|In "fourteen\nLJ2|Two|\nwavs/LJ3.wav|Three\n')
    expected = {"LJ1": ('In "fourteen', "", "", 0.5), "LJ2": ("Two", "", "", 1.0), "LJ3": ("Three", "", "", 1.5)}
    assert corpus_of(table.parent) == expected
    assert [u.text for u in items_of(table)[0]] == ['In "fourteen', "Two", "Three"]
    write_text(table, "LJ1|One and two|ann\nLJ2|Two and three|ann\n")
    with pytest.raises(InputError, match=r"metadata\.csv: its third column .* Add a header such as path"):
        items_of(table)
    write_text(table, "LJ1|One\n|empty|id\n")
    with pytest.raises(InputError, match=r"metadata\.csv:2: must be ID\|text"):
        items_of(table)


def test_mls_finds_audio_by_speaker_and_book(tmp_path, corpus_of):
    for split in ("dev", "train"):
        write_sound(tmp_path / "mls" / split / "audio" / "12" / "34" / f"12_34_{split}.flac")
        write_text(tmp_path / "mls" / split / "transcripts.txt", f"12_34_{split}\tein satz\n")
        write_text(tmp_path / "mls" / split / "segments.txt", f"12_34_{split}\thttp://x/y.mp3\t1.0\t2.0\n")
    assert corpus_of(tmp_path / "mls") == {
        "12_34_dev": ("ein satz", "12", "dev", 0.5),
        "12_34_train": ("ein satz", "12", "train", 0.5),
    }
    write_text(tmp_path / "mls" / "dev" / "transcripts.txt", "../../../../etc/passwd\tx\n12_34_dev\tein satz\n")
    utterances, (rejected,) = items_of(tmp_path / "mls" / "dev")
    assert [u.id for u in utterances] == ["12_34_dev"]
    assert (rejected.id, rejected.reason) == ("../../../../etc/passwd", "an invalid id")


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_audiofolder_is_read_below_a_root(tmp_path, corpus_of, name):
    for split in ("train", "test"):
        folder = tmp_path / "data" / split
        write_sound(folder / f"{split}.wav")
        row = {"file_name": f"{split}.wav", "transcription": "first, second", "speaker_id": 7}
        quoted = f'file_name,transcription,speaker_id\n{split}.wav,"first, second",7\n'
        write_text(folder / name, quoted if name.endswith(".csv") else json.dumps(row) + "\n")
    assert corpus_of(tmp_path / "data") == {s: ("first, second", "7", s, 0.5) for s in ("train", "test")}


def test_audiofolder_without_text_names_the_option(tmp_path):
    write_sound(tmp_path / "a.wav")
    write_text(tmp_path / "metadata.jsonl", '{"file_name": "a.wav", "label": "x"}\n')
    with pytest.raises(InputError, match=r"metadata\.jsonl:1: no column for the text; .* as --text_column"):
        items_of(tmp_path)
    assert items_of(tmp_path, text="label")[0][0].text == "x"


def test_metadata_of_something_else_does_not_make_an_audiofolder(tmp_path):
    write_sound(tmp_path / "a.wav")
    write_text(tmp_path / "a.txt", "first")
    write_text(tmp_path / "metadata.csv", "speaker,sex\n19,F\n")
    assert kind_of(tmp_path) == "folder"


@pytest.fixture
def kaldi(tmp_path):
    folder = tmp_path / "data" / "train"
    write_sound(tmp_path / "rec" / "r1.wav", 2.0)
    write_text(folder / "wav.scp", f"r1 {tmp_path}/rec/r1.wav\n")
    write_text(folder / "text", "u1 FIRST PART\nu2\tSECOND  PART\n")
    write_text(folder / "utt2spk", "u1 s1\nu2 s2\n")
    write_text(folder / "segments", "u1 r1 0.00 0.90\nu2 r1 0.90 1.80\n")
    return folder


def test_kaldi_segments(kaldi, prepare, rows):
    manifest = rows(prepare(kaldi.parent) / "manifest.jsonl")
    assert [(r["id"], r["text"], r["speaker"], r["split"], r["offset"], r["duration"]) for r in manifest] == [
        ("u1", "FIRST PART", "s1", "train", 0.0, 0.9),
        ("u2", "SECOND  PART", "s2", "train", 0.9, 0.9),
    ]


def test_kaldi_without_segments_and_with_pipes(kaldi, tmp_path):
    (kaldi / "segments").unlink()
    sound = tmp_path / "rec" / "r1.wav"
    witness = tmp_path / "executed"
    write_text(kaldi / "wav.scp", f"u1 sph2pipe -f wav -p -c 2 {sound} |\nu2 touch {witness}; cat {sound} |\n")
    (utterance,), (rejected,) = items_of(kaldi)
    assert (utterance.id, utterance.audio.url, utterance.audio.channel) == ("u1", str(sound), 1)
    assert (rejected.id, rejected.reason) == ("u2", "a command or an archive in place of an audio file")
    assert f"touch {witness}" in rejected.detail
    assert not witness.exists()


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("flac -c -d -s /a/b.flac |", ("/a/b.flac", None)),
        ("/opt/kaldi/tools/sph2pipe_v2.5/sph2pipe -f wav -c 1 a.sph|", ("a.sph", 0)),
        ("sox a.mp3 -t wav -r 16k -b 16 -e signed - |", ("a.mp3", None)),
        ("cat 'a b.wav' |", ("a b.wav", None)),
        ("ffmpeg -v quiet -i a.opus -f wav -ar 16000 -ac 1 - |", ("a.opus", None)),
        ("sox a.wav -t wav - trim 1 2 |", None),  # a part of the file
        ("sox a.wav b.wav -t wav - |", None),
        ("sox -r 8000 a.wav -t wav - |", None),  # slower than its header says
        ("ffmpeg -f s16le -i a.raw -f wav - |", None),
        ("flac -c -d -s $(rm -r x) |", None),
        ("cat a.wav; rm b |", None),
        ("cat a.wav | rm b |", None),
        ("cat /a b.wav |", None),
        ("wget -O - http://x/a.wav |", None),
        ("cat -rf |", None),
        ("|", None),
    ],
)
def test_commands_of_kaldi_that_only_decode_one_file(command, expected):
    assert audio_of_command(command) == expected


def test_kaldi_reports_what_does_not_fit(kaldi, tmp_path):
    write_text(kaldi / "wav.scp", f"r1 {tmp_path}/rec/r1.wav\nr2 {tmp_path}/rec/all.ark:17\n")
    write_text(kaldi / "text", "u1 A\nu2 B\nu3 C\nu4 D\nu5 E\n")
    write_text(kaldi / "segments", "u0 r1 0 1\nu1 r1 0 nan\nu2 r1 1 0.5\nu3 r9 0 1\nu4 r2 0 1\n")
    utterances, rejected = items_of(kaldi)
    assert not utterances
    assert [(r.id, r.reason) for r in rejected] == [
        ("u0", "no transcript"),
        ("u1", "invalid segment times"),
        ("u2", "invalid segment times"),
        ("u3", "no audio file"),
        ("u4", "a command or an archive in place of an audio file"),
        ("u5", "no audio file"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("segments", "u1 r1 0\n", r"segments: 'u1': must be UTTERANCE RECORDING START END, found 'r1 0'"),
        ("text", "u1 A\nu1 B\n", r"text:2: 'u1' occurs more than once"),
        ("segments", "u1 r1 0 900\nu2 r1 900 1800\n", "segments end after their recordings"),
    ],
)
def test_kaldi_of_another_format_is_refused(kaldi, name, content, message):
    write_text(kaldi / name, content)
    with pytest.raises(InputError, match=message):
        items_of(kaldi)


@pytest.fixture
def fairseq(tmp_path):
    for name in ("a", "b"):
        write_sound(tmp_path / "audio" / "s1" / f"{name}.wav")
    write_text(tmp_path / "lists" / "train.tsv", f"{tmp_path}/audio\ns1/a.wav\t8000\ns1/b.wav\t8000\n")
    write_text(tmp_path / "lists" / "train.ltr", "F I R S T | W O R D |\nS E C O N D |\n")
    return tmp_path / "lists"


@pytest.mark.parametrize("suffix", [".ltr", ".wrd"])
def test_fairseq_lists(fairseq, corpus_of, suffix):
    if suffix == ".wrd":
        write_text(fairseq / "train.wrd", "FIRST WORD\nSECOND\n")
    expected = {"s1/a": ("FIRST WORD", "", "train", 0.5), "s1/b": ("SECOND", "", "train", 0.5)}
    assert corpus_of(fairseq) == expected
    assert [u.id for u in items_of(fairseq / "train.tsv")[0]] == ["s1/a", "s1/b"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "train.ltr",
            "F |\n",
            r"train\.tsv lists more files than train\.ltr has transcripts: one of them ends after 1",
        ),
        ("train.ltr", "F |\nS |\nT |\n", r"train\.tsv lists fewer files than train\.ltr has transcripts"),
        ("train.tsv", "/no/such/folder\na.wav\t1\n", r"train\.tsv:1: must be the folder .*; '/no/such/folder' is not"),
    ],
)
def test_fairseq_lists_that_do_not_fit_are_refused(fairseq, name, content, message):
    write_text(fairseq / name, content)
    with pytest.raises(InputError, match=message):
        items_of(fairseq)


def test_timit_without_sample_numbers(tmp_path, corpus_of):
    folder = tmp_path / "TIMIT" / "TEST" / "DR1" / "FAAA0"
    write_sound(folder / "SA1.WAV", 0.8, format="WAV")
    write_text(folder / "SA1.TXT", f"0 {0.8 * RATE + 100:.0f} She had your dark suit.\n")
    write_text(folder / "SA1.PHN", "0 100 h#\n")
    assert corpus_of(tmp_path / "TIMIT") == {
        "TEST/DR1/FAAA0/SA1": ("She had your dark suit.", "FAAA0", "test", 0.8),
    }


@pytest.mark.parametrize("text", ["0 7 is a score", "0 99999999999999999999 is much", "10 12800 words", "0 12800"])
def test_numbers_that_are_not_those_of_the_audio_are_text(tmp_path, text):
    write_sound(tmp_path / "a.wav", 0.8)
    write_text(tmp_path / "a.txt", text)
    assert items_of(tmp_path)[0][0].text == text


def test_lab_and_tabs(tmp_path, corpus_of):
    write_sound(tmp_path / "lab" / "s1" / "u1.wav")
    write_text(tmp_path / "lab" / "s1" / "u1.lab", "first\nwords\n")
    write_sound(tmp_path / "lab" / "s1" / "u2.wav")
    write_text(tmp_path / "lab" / "s1" / "u2.txt", "text comes first")
    write_text(tmp_path / "lab" / "s1" / "u2.lab", "0 100 sil\n100 200 a\n")
    write_sound(tmp_path / "lab" / "s1" / "19-2-0000.flac")
    write_text(tmp_path / "lab" / "s1" / "19-2.trans.txt", "19-2-0000\tTAB\tWORDS\n")
    assert {key: row[0] for key, row in corpus_of(tmp_path / "lab").items()} == {
        "s1/u1": "first words",
        "s1/u2": "text comes first",
        "19-2-0000": "TAB\tWORDS",
    }
