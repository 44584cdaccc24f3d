"""Tables whose rows are segments of recordings."""

import re

import numpy as np
import pytest
import soundfile
from corpus import SAMPLE_RATE, spell

from w2v_lightning.errors import InputError

TALK = spell("ABCDEF " * 20)  # 11.2 s


@pytest.fixture
def table(tmp_path):
    """Function table(HEADER, ROW, ...) that writes a CSV file beside talk.wav, to which all rows belong."""
    soundfile.write(tmp_path / "talk.wav", TALK, SAMPLE_RATE)

    def write(header: str, *lines: str, suffix: str = ".csv"):
        path = tmp_path / f"table{suffix}"
        content = "".join(f"{line}\n" for line in (f"path,text,{header}", *(f"talk.wav,A B,{line}" for line in lines)))
        path.write_text(content.replace(",", "\t") if suffix == ".tsv" else content)
        return path

    return write


def reasons(rejected: list[dict]) -> dict[str, str]:
    return {row["id"]: f"{row['reason']}: {row.get('detail', '')}" for row in rejected}


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
@pytest.mark.parametrize("options", [(), ("--segment",)], ids=["references", "cut"])
@pytest.mark.parametrize(
    ("header", "first", "second"),
    [
        ("start,end", "0.5,1.5", "2,4.25"),
        ("start_time,end_time", "0.5,1.5", "2,4.25"),
        ("begin,stop", "0.5,1.5", "2,4.25"),
        ("Begin_Time, stop_time ", " 0.5, 1.5", "2.0,4.25"),
        ("offset,duration", "0.5,1.0", "2,2.25"),
        ("start,duration", "0.5,1", "2e0,2.25"),
        ("start,end,duration", "0.5,1.5,11.2", "2,4.25,11.2"),  # the duration is that of the recording
    ],
)
def test_rows_are_segments_of_their_recordings(table, prepare, rows, audio_of, suffix, options, header, first, second):
    out = prepare(table(header, first, second, suffix=suffix), *options)
    segments = rows(out / "manifest.jsonl")
    assert [(row["id"], row["duration"]) for row in segments] == [("talk-00000500", 1.0), ("talk-00002000", 2.25)]
    assert [row.get("offset") for row in segments] == ([None, None] if options else [0.5, 2.0])
    waveforms = audio_of(out / "manifest.jsonl")
    for name, start, end in (("talk-00000500", 8_000, 24_000), ("talk-00002000", 32_000, 68_000)):
        np.testing.assert_allclose(waveforms[name], TALK[start:end], atol=1 / 2**15)


@pytest.mark.parametrize(("header", "line"), [("duration", "11.2"), ("duration", "2.5"), ("start,end", ",")])
def test_rows_without_a_start_are_whole_recordings(table, prepare, rows, header, line):
    (row,) = rows(prepare(table(header, line)) / "manifest.jsonl")
    assert (row["id"], row["duration"], "offset" in row) == ("talk", len(TALK) / SAMPLE_RATE, False)


def test_a_table_may_name_its_segments(table, prepare, rows):
    out = prepare(table("start,end,id", "0.5,1.5,one", "2,4.25,two"))
    assert [row["id"] for row in rows(out / "manifest.jsonl")] == ["one", "two"]


@pytest.mark.parametrize(
    ("header", "named"),
    [
        ("start", "start"),
        ("end", "end"),
        ("end,duration", "end"),
        ("offset", "offset"),
        ("start,offset,duration", "start, offset"),
        ("start,end,stop", "start, end, stop"),
        ("start_ms,end_ms", "start_ms, end_ms"),
        ("Start_Sample,duration", "Start_Sample"),
        ("segment_start,segment_end", "segment_start, segment_end"),
        ("starttime,endtime", "starttime, endtime"),
        ("start,end_frame", "start, end_frame"),
    ],
)
def test_columns_that_are_not_clear_are_refused(table, prepare, header, named):
    path = table(header, ",".join("1" for _ in header.split(",")))
    with pytest.raises(
        InputError, match=f"{path}: columns {named}: cannot tell which part .* Give seconds in one of start"
    ):
        prepare(path)


@pytest.mark.parametrize("header", ["ending", "startup", "frames", "client,samples", "time"])
def test_columns_of_something_else_are_passed_over(table, prepare, rows, header):
    assert len(rows(prepare(table(header, re.sub("[^,]+", "1", header))) / "manifest.jsonl")) == 1


@pytest.mark.parametrize(
    ("header", "lines"),
    [
        ("start,end", ["500,1500", "2000,4250", "0,1"]),  # milliseconds
        ("offset,duration", ["8000,16000", "32000,36000", "0,1"]),  # samples
        ("begin_time,end_time", ["1250.5,1254.25"]),  # times within the book that the file was cut from
    ],
)
def test_times_that_are_no_seconds_of_their_recordings_are_refused_before_anything_is_written(
    table, prepare, tmp_path, header, lines
):
    path = table(header, *lines)
    late = sum(line != "0,1" for line in lines)
    with pytest.raises(InputError, match=f"{path}: {late} of its first {len(lines)} segments end after") as raised:
        prepare(path)
    assert "s of the 11.200 s of" in str(raised.value)
    assert not (tmp_path / "out" / "manifest.jsonl").exists()


def test_a_segment_after_the_end_is_left_out_with_both_ends(table, prepare, rows):
    out = prepare(table("start,end", "0.5,1.5", "11,12.5"))
    assert [row["id"] for row in rows(out / "manifest.jsonl")] == ["talk-00000500"]
    (detail,) = reasons(rows(out / "rejected.jsonl")).values()
    assert detail.startswith("a segment that ends after its recording: ")
    assert detail.endswith("talk.wav: the segment ends at 12.500 s, the recording at 11.200 s")


@pytest.mark.parametrize("times", ["0:01,0:03", "3,2", "2,2", "-1,2", "nan,2", "1,inf", "1,", ",2", '1,"2,5"', "1"])
def test_times_that_are_no_segment_are_left_out_with_line_and_times(table, prepare, rows, times):
    path = table("start,end", "0.5,1.5", times)
    out = prepare(path)
    assert [row["id"] for row in rows(out / "manifest.jsonl")] == ["talk-00000500"]
    (detail,) = reasons(rows(out / "rejected.jsonl")).values()
    assert detail.startswith(f"invalid segment times: {path}:3: start '{times.split(',')[0]}', end '")


def test_missing_recordings_are_left_out_one_by_one(table, prepare, rows):
    path = table("start,end", "0.5,1.5")
    path.write_text(path.read_text() + "".join(f"gone{i}.wav,A B,0,1\n" for i in range(5)))
    out = prepare(path)
    assert len(rows(out / "manifest.jsonl")) == 1
    assert {row["reason"] for row in rows(out / "rejected.jsonl")} == {"no audio file"}
