"""Columns of tables: usual names of other toolkits, names that the user gives, and tables in JSON."""

import json

import pytest
from layouts import items_of, write_sound, write_text

from w2v_lightning.errors import InputError


@pytest.fixture
def folder(tmp_path):
    write_sound(tmp_path / "wavs" / "a.wav")
    return tmp_path


@pytest.mark.parametrize("header", ["wav_filename,wav_filesize,transcript", "filename,x,text", "Audio_File,x,Sentence"])
def test_usual_names_of_columns(folder, prepare, rows, header):
    table = write_text(folder / "t.csv", f'{header}\nwavs/a.wav,16044,"one, two"\n')
    (row,) = rows(prepare(table) / "manifest.jsonl")
    assert (row["text"], row["duration"], row["audio_filepath"]) == ("one, two", 0.5, f"{folder}/wavs/a.wav")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", 'audio_file|text|speaker_name\nwavs/a.wav|one, "two|ann\n'),
        ("t.csv", 'path;text;speaker\nwavs/a.wav;"one, ""two";ann\n'),
        ("t.csv", 'path\ttext\tspeaker\nwavs/a.wav\tone, "two\tann\n'),
        ("t.tsv", 'path,text,speaker\nwavs/a.wav,"one, ""two",ann\n'),
    ],
)
def test_delimiters_of_another_kind_than_the_suffix_says(folder, name, content):
    (utterance,), _ = items_of(write_text(folder / name, content))
    assert (utterance.text, utterance.speaker) == ('one, "two', "ann")


def test_columns_that_the_user_names(folder, prepare, rows):
    table = write_text(folder / "t.csv", "path,clip,text,Spoken Words,who\nno.wav,wavs/a.wav,no,one two,ann\n")
    options = ["--path_column", "clip", "--text_column", "Spoken Words", "--speaker_column", "who"]
    (row,) = rows(prepare(table, *options) / "manifest.jsonl")
    assert (row["text"], row["speaker"], row["duration"]) == ("one two", "ann", 0.5)
    with pytest.raises(InputError, match=r"the output of another run: source .* has changed"):
        prepare(table, *options[:-1], "text")


@pytest.mark.parametrize("key", ["path", "text", "speaker"])
def test_a_named_column_that_is_missing(folder, key):
    table = write_text(folder / "t.tsv", "path\ttext\nwavs/a.wav\tone\n")
    with pytest.raises(InputError, match=rf"t\.tsv: no column 'x' \(--{key}_column\); its header is path, text\.$"):
        items_of(table, **{key: "x"})


def test_an_unknown_column_names_the_option(folder):
    table = write_text(folder / "t.csv", "clip,text\nwavs/a.wav,one\n")
    with pytest.raises(InputError, match=r"no column for the path; .* or give its name as --path_column"):
        items_of(table)


ROW = {"path": "wavs/a.wav", "sentence": "one", "speaker": 3}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.jsonl", json.dumps(ROW)),
        ("t.json", json.dumps([ROW], indent=1)),
        ("t.json", json.dumps([{"audio_filepath": "wavs/a.wav", "duration": 0.5, "text": "one", "speaker": "3"}])),
        ("t.json", json.dumps({"audio_filepath": "wavs/a.wav", "text": "one", "speaker": "3"})),
        ("t.jsonl", json.dumps({"audio": {"path": "wavs/a.wav"}, "text": "one", "speaker": "3"})),
    ],
)
def test_tables_in_json(folder, prepare, rows, name, content):
    (row,) = rows(prepare(write_text(folder / name, content)) / "manifest.jsonl")
    assert (row["text"], row["speaker"], row["duration"]) == ("one", "3", 0.5)


def test_segments_in_json(folder):
    table = write_text(folder / "t.jsonl", json.dumps(ROW | {"start": 0.1, "end": 0.3}))
    (utterance,), _ = items_of(table)
    assert (utterance.audio.start_s, round(utterance.audio.duration_s, 6)) == (0.1, 0.2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"path": "a.wav", "text": "x"}', r"t\.json: invalid JSON"),
        ("[" * 100_000, r"t\.json: invalid JSON"),
        ('["a.wav"]', r"t\.json: element 1 must be a JSON object, found 'a\.wav'"),
        ('[{"path": ["a.wav"], "text": "x"}]', r"t\.json:1: 'path' must be a string or a number, found \['a\.wav'\]"),
        ('[{"path": "a.wav", "text": "x"}, {"path": "b.wav"}]', r"t\.json:2: no column for the text"),
    ],
)
def test_damaged_json_is_refused(folder, content, message):
    with pytest.raises(InputError, match=message):
        items_of(write_text(folder / "t.json", content))


def test_an_array_in_utf_16(folder):
    path = folder / "t.json"
    path.write_text(json.dumps([{"path": "wavs/a.wav", "text": "schön"}], ensure_ascii=False), encoding="utf-16")
    (utterance,), _ = items_of(path)
    assert utterance.text == "schön"
