"""Rows of manifests and of lhotse's files: what has another type or size is named with file, line, key and value."""

import json

import pytest

from w2v_lightning.data import rows
from w2v_lightning.data.audio_ref import AudioRef
from w2v_lightning.data.manifest import Manifest
from w2v_lightning.errors import InputError

ROW = {"id": "a", "audio_filepath": "a.flac", "duration": 1.5, "text": "ONE", "speaker": "7"}


def write(path, *lines):
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


def message(path):
    with pytest.raises(InputError) as raised:
        Manifest.load(path)
    text = str(raised.value)
    assert len(text) < 400 + len(str(path))
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"duration": 10**400}, "duration must be a positive number of seconds, found 1000"),
        ({"duration": 1e300}, "duration must be a positive number of seconds, found 1e+300"),
        ({"duration": True}, "duration must be a positive number of seconds, found True"),
        ({"duration": [1.5]}, "duration must be a positive number of seconds, found [1.5]"),
        ({"offset": 2**63}, "offset must be a number of seconds"),
        ({"offset": float("nan")}, "offset must be a number of seconds"),
        ({"offset": -0.5}, "offset must be a number of seconds"),
        ({"offset": "1.5"}, "offset must be a number of seconds"),
        ({"byte_offset": 2**63, "num_bytes": 1}, "byte_offset must be a whole number of bytes"),
        ({"byte_offset": 512, "num_bytes": 10**30}, "num_bytes must be a whole number of bytes"),
        ({"byte_offset": 1.0}, "byte_offset must be a whole number of bytes"),
        ({"byte_offset": -1}, "byte_offset must be a whole number of bytes"),
        ({"num_bytes": 0}, "num_bytes must be a whole number of bytes"),
        ({"channel": -1}, "channel must be a channel, counted from 0"),
        ({"channel": "left"}, "channel must be a channel, counted from 0"),
        ({"channel": 2**63}, "channel must be a channel, counted from 0"),
        ({"audio_filepath": "a\0.flac"}, r"audio_filepath must be a path or URL, found 'a\x00.flac'"),
        ({"audio_filepath": ""}, "audio_filepath must be a path or URL, found ''"),
        ({"audio_filepath": {"a": 1}}, "audio_filepath must be a path or URL, found {'a': 1}"),
        ({"text": "A \udc00"}, r"text must be a string, found 'A \udc00'"),
        ({"text": ["ONE"]}, "text must be a string, found ['ONE']"),
        ({"text": ["ONE"] * 10**5}, "text must be a string, found ['ONE', "),
        ({"id": ["a"]}, "id must be a string or a number, found ['a']"),
        ({"id": "\ud800"}, "id must be a string or a number"),
        ({"speaker": {"name": "x"}}, "speaker must be a string or a number, found {'name': 'x'}"),
        ({"speaker": False}, "speaker must be a string or a number, found False"),
        ({"split": []}, "split must be a string or a number, found []"),
    ],
)
def test_a_value_of_another_type_or_size_is_named(tmp_path, change, expected):
    path = write(tmp_path / "m.jsonl", ROW, ROW | change)
    assert message(path).startswith(f"{path}:2: {expected}")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("[" * 10**5, "invalid JSON (maximum recursion depth exceeded"),
        ('{"duration": ' + "1" * 10**4 + "}", "invalid JSON (Exceeds the limit"),
        ('"text"', "must be a JSON object, found str"),
        ("[" + json.dumps(ROW) + "]", "must be a JSON object, found list. Write one per line."),
        ("{", "invalid JSON"),
    ],
)
def test_a_line_that_is_not_a_row_is_named(tmp_path, line, expected):
    path = write(tmp_path / "m.jsonl", "", ROW, line)
    assert message(path).startswith(f"{path}:3: {expected}")


def test_text_in_another_encoding_is_named_with_its_line(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_bytes(
        json.dumps(ROW).encode() + b"\n" + json.dumps(ROW | {"text": "é"}, ensure_ascii=False).encode("latin1")
    )
    assert message(path).startswith(f"{path}:2: not UTF-8 text")
    path.write_bytes(json.dumps(ROW).encode("utf-16"))
    assert message(path).startswith(f"{path}:1: not UTF-8 text")


def test_an_endless_line_is_named_before_it_fills_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "MAX_LINE_BYTES", 2**20)
    path = write(tmp_path / "m.jsonl", '{"text": "' + "x" * 2**22)
    assert message(path).startswith(f"{path}:1: invalid JSON (the line is over 1 MiB)")


def test_null_means_that_an_optional_key_is_absent(tmp_path):
    keys = ("id", "speaker", "split", "offset", "byte_offset", "num_bytes", "channel")
    path = write(tmp_path / "m.jsonl", ROW | dict.fromkeys(keys), {**ROW, "id": "b", "offset": 0})
    manifest = Manifest.load(path)
    assert (manifest.ids, manifest.speakers) == (["a", "b"], ["", "7"])
    assert manifest.audio(0) == AudioRef(f"{tmp_path}/a.flac", duration_s=1.5)
    assert manifest.audio(1).start_s == 0.0


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_a_manifest_without_utterances_is_refused(tmp_path, content):
    (tmp_path / "m.jsonl").write_text(content)
    assert message(tmp_path / "m.jsonl") == f"{tmp_path}/m.jsonl: no utterances. Give a manifest that has some."


def test_a_channel_is_kept_and_written_only_where_it_is_set(tmp_path):
    path = write(tmp_path / "m.jsonl", ROW | {"channel": 1}, ROW)
    manifest = Manifest.load(path)
    assert [manifest.audio(i).channel for i in range(2)] == [1, None]
    manifest.save(tmp_path / "again.jsonl")
    written = [json.loads(line) for line in (tmp_path / "again.jsonl").read_text().splitlines()]
    assert [row.get("channel", "absent") for row in written] == [1, "absent"]


def test_characters_that_no_file_can_hold_become_escapes_where_asked(tmp_path):
    path = write(tmp_path / "m.jsonl", ROW | {"text": "A\ud800\0"})
    assert Manifest.load(path, escape=True).texts == [r"A\ud800\x00"]


# ---- lhotse ---------------------------------------------------------------------------------------------------------

RECORDING = {
    "id": "r",
    "sources": [{"type": "file", "channels": [0, 1], "source": "call.wav"}],
    "sampling_rate": 16000,
    "num_samples": 160000,
    "duration": 10.0,
}


def said(text, channel, start=0.0):
    return {
        "id": f"s{channel}",
        "start": start,
        "duration": 1.0,
        "channel": channel,
        "text": text,
        "speaker": f"p{channel}",
    }


CUT = {"id": "c", "start": 0, "duration": 10.0, "channel": 1, "type": "MonoCut", "recording": RECORDING}
CUT |= {"supervisions": [said("ONE", 1), said("TWO", 1, 2.0)]}


def test_a_cut_of_one_channel_of_a_stereo_file_is_read(tmp_path):
    manifest = Manifest.load(write(tmp_path / "cuts.jsonl", CUT))
    assert manifest.audio(0) == AudioRef(f"{tmp_path}/call.wav", duration_s=10.0, channel=1)
    assert (manifest.texts, manifest.speakers) == (["ONE TWO"], ["p1"])


def test_a_cut_of_several_channels_is_one_utterance_per_channel(tmp_path):
    cut = CUT | {"type": "MultiCut", "channel": [0, 1], "supervisions": [said("ONE", 0), said("TWO", 1)]}
    manifest = Manifest.load(write(tmp_path / "cuts.jsonl", cut))
    assert (manifest.ids, manifest.texts) == (["c-0", "c-1"], ["ONE", "TWO"])
    assert [manifest.audio(i).channel for i in range(2)] == [0, 1]
    both = cut | {"supervisions": [said("ONE", [0, 1])]}  # the same voice on every channel
    manifest = Manifest.load(write(tmp_path / "cuts.jsonl", both))
    assert (manifest.ids, manifest.audio(0).channel) == (["c"], None)


def test_a_channel_in_a_file_of_its_own_needs_no_choice(tmp_path):
    sources = [{"type": "file", "channels": [n], "source": f"{n}.wav"} for n in (0, 1)]
    cut = CUT | {"recording": RECORDING | {"sources": sources}}
    assert Manifest.load(write(tmp_path / "cuts.jsonl", cut)).audio(0) == AudioRef(f"{tmp_path}/1.wav", duration_s=10.0)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"supervisions": None}, "invalid lhotse cut: supervisions must be a list, found None"),
        ({"supervisions": ["x"]}, "invalid lhotse cut: supervisions[0] must be a JSON object, found 'x'"),
        ({"supervisions": [said(5, 1)]}, "invalid lhotse cut: supervisions[0].text must be a string or null, found 5"),
        ({"supervisions": [said("A", 1, "0")]}, "invalid lhotse cut: supervisions[0].start must be a number"),
        ({"recording": "r"}, "invalid lhotse cut: recording must be a JSON object, found 'r'"),
        ({"recording": RECORDING | {"sources": {}}}, "invalid lhotse cut: recording.sources must be a list, found {}"),
        ({"recording": RECORDING | {"sources": []}}, "recording 'r' is not a single audio file"),
        ({"recording": RECORDING | {"duration": "10"}}, "invalid lhotse cut: recording.duration must be a number"),
        ({"recording": RECORDING | {"transforms": [{"name": "Speed"}]}}, "recording 'r' has transforms"),
        ({"start": None}, "invalid lhotse cut: start must be a number, found None"),
        ({"duration": 10**400}, "invalid lhotse cut: duration must be a number"),
        ({"duration": 0}, "duration must be a positive number of seconds"),
        ({"channel": 7, "supervisions": []}, "recording 'r' is not a single audio file"),
        ({"type": ["MonoCut"]}, "lhotse ['MonoCut'] is unsupported"),
        ({"type": "MixedCut"}, "lhotse MixedCut is unsupported"),
    ],
)
def test_a_cut_with_other_values_is_named(tmp_path, change, expected):
    path = write(tmp_path / "cuts.jsonl", CUT, CUT | change)
    assert message(path).startswith(f"{path}:2: {expected}")
