"""Quotation marks in tables: CSV's quoting or characters of the text, and those that nothing closes."""

import csv
import io

import pytest
from layouts import items_of, write_text

from w2v_lightning.errors import InputError

TEXTS = ['"No," she said', "plain", "two\nlines", "a\ttab", 'he said "maybe']


def written(texts: list[str], **options) -> str:
    file = io.StringIO()
    table = csv.writer(file, delimiter="\t", **options)
    table.writerows([["path", "sentence", "up_votes"], *([f"{i}.wav", text, i] for i, text in enumerate(texts))])
    return file.getvalue()


def texts_of(path) -> list[str]:
    return [utterance.text for utterance in items_of(path)[0]]


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("texts", [TEXTS, TEXTS[:1], TEXTS[2:3], TEXTS[3:4]])
def test_a_tsv_file_that_a_program_has_quoted_is_unquoted(tmp_path, quoting, line_end, texts):
    path = write_text(tmp_path / "validated.tsv", "")
    path.write_text(written(texts, quoting=quoting, lineterminator=line_end), newline="")
    assert texts_of(path) == texts


@pytest.mark.parametrize(
    "texts",
    [
        ['"No," she said', 'he said "maybe', '"plain"'],  # as in Common Voice
        ['"Hello"', '"How, then?"', "plain"],  # a sentence in quotation marks is in quotation marks
        ['"""No,"" she said"', '"No," she said'],  # not the whole file
        ['"', "plain", '"'],
    ],
)
def test_other_quotation_marks_in_tsv_are_characters(tmp_path, texts):
    lines = ["path\tsentence", *(f"{i}.wav\t{text}" for i, text in enumerate(texts))]
    assert texts_of(write_text(tmp_path / "validated.tsv", "\n".join(lines) + "\n")) == texts


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        ('a.wav,one\nb.wav,"two\nc.wav,three\n', 3),
        ('a.wav,one\nb.wav,"two\nc.wav,"three"\n', 3),
        ('a.wav,one\nb.wav,"two\nc.wav,three\nd.wav,four"\n', 3),
        ('"a.wav,one\nb.wav,two"\n', 2),
    ],
)
def test_a_quotation_mark_that_its_cell_does_not_close_is_named_with_its_line(tmp_path, rows, line):
    path = write_text(tmp_path / "list.csv", f"path,text\n{rows}")
    with pytest.raises(InputError, match=rf"list\.csv:{line}: invalid table: .* close the quotation mark"):
        items_of(path)


def test_rows_without_a_suffix_that_a_quotation_mark_joins_are_found(tmp_path):
    path = write_text(tmp_path / "list.csv", 'path,text,speaker\na,one,x\nb,"two,x\nc,three,x\nd,four",x\n')
    with pytest.raises(InputError, match=r"list\.csv:3: .* ends at line 5 only, and holds other rows"):
        items_of(path)


def test_a_quoted_text_of_several_lines_is_one_text(tmp_path):
    path = write_text(tmp_path / "list.csv", 'path,text,speaker\na.wav,"one,\ntwo",x\nb.wav,three,x\n')
    assert texts_of(path) == ["one,\ntwo", "three"]


def test_a_text_with_commas_that_is_not_quoted_is_not_truncated_silently(tmp_path):
    path = write_text(tmp_path / "list.csv", "path,text\na.wav,one, two\nb.wav,three,\n")
    (utterance,), (rejected,) = items_of(path)
    assert utterance.text == "three"
    assert (rejected.reason, rejected.detail) == ("more cells than columns", f"{path}:2: 3 cells for 2 columns")


def test_utf16_is_read_and_other_encodings_are_named_with_the_remedy(tmp_path):
    path = tmp_path / "list.tsv"
    path.write_text("path\ttext\na.wav\tzażółć\n", encoding="utf-16")
    assert texts_of(path) == ["zażółć"]
    path.write_text("path\ttext\na.wav\tcafé\n", encoding="cp1252")
    with pytest.raises(InputError, match=r"list\.tsv: not UTF-8 text .* iconv -f WINDOWS-1252 -t UTF-8"):
        items_of(path)
