"""The writing of transcripts: what `check` finds, and the vocabulary that `build` would make of them."""

import pytest
from check_corpus import CorpusBuilder, clean_corpus
from corpus import spell

from w2v_lightning.__main__ import main


@pytest.fixture
def builder(tmp_path) -> CorpusBuilder:
    return clean_corpus(tmp_path)


@pytest.mark.parametrize(
    ("text", "name", "detail"),
    [
        ("CAFE\u0301", "letters not in NFC", "COMBINING ACUTE ACCENT"),
        ("FA\u200bCADE", "invisible characters", "(U+200B ZERO WIDTH SPACE)"),
        ("FACADE 4", "digits", "4 (U+0034 DIGIT FOUR)"),
        ("FACADE [FADE]", "brackets", "[ (U+005B LEFT SQUARE BRACKET), ] (U+005D RIGHT SQUARE BRACKET)"),
        ("F\u0410CADE", "letters of another script", "U+0410 CYRILLIC CAPITAL LETTER A"),
        ("BEE' 'A`B", "several kinds of apostrophe, quotation mark or hyphen", "U+0060 GRAVE ACCENT"),
    ],
)
def test_odd_writing_is_found(builder, text, name, detail):
    builder.add("odd", text, waveform=spell("FACADE FE"))
    _, report = builder.check()
    findings = {finding["name"]: finding for finding in report["findings"]}
    assert findings[name]["level"] == "warning"
    ((utterance),) = findings[name]["utterances"]
    assert utterance["id"] == "odd"
    assert detail in utterance["detail"]
    others = {"out of vocabulary", name}
    assert {finding["name"] for finding in findings.values() if finding["count"]} <= others


def test_words_in_two_scripts_are_found_where_both_are_common(builder):
    for number in range(8):
        builder.add(f"russian-{number}", "\u0414\u0410 \u041d\u0415\u0422", waveform=spell("FACADE FE")[number:])
    builder.add("mixed", "\u041d\u0415\u0422 C\u0410B", waveform=spell("FED CAB")[7:])
    _, report = builder.check()
    (finding,) = [f for f in report["findings"] if f["name"] == "letters of another script"]
    assert [row["id"] for row in finding["utterances"]] == ["mixed"]


def test_check_shows_the_vocabulary_that_build_would_make(builder, capsys, tmp_path):
    builder.add("odd", "caf\u0435 7 \u0131\u011f\u0131r", waveform=spell("FACADE FE"))
    builder.add("val-0", "Z", manifest="val")
    _, report = builder.check("--report", str(tmp_path / "report.html"))
    rows = {row["character"]: row for row in report["built_vocabulary"]}
    assert set(rows) == set("ABCDEF7I\u011e\u0415R")  # not the validation's Z; dotless I and its vocabulary's case
    assert rows["\u0415"] == {
        "character": "\u0415",
        "code_point": "U+0415",
        "name": "CYRILLIC CAPITAL LETTER IE",
        "count": 1,
        "utterances": 1,
        "example": "odd",
        "remark": "letter of another script (Cyrillic)",
    }
    assert (rows["7"]["remark"], rows["R"]["remark"], rows["A"]["remark"]) == ("digit", "rare", "")
    out = capsys.readouterr().out
    assert "model.vocabulary=build would make 11 labels, with the letter case of the language tr:" in out
    assert "7 (U+0037 DIGIT SEVEN): digit, once, in odd" in out
    page = (tmp_path / "report.html").read_text()
    assert "The 11 labels that model.vocabulary=build would make" in page
    assert "letter of another script (Cyrillic)" in page


def test_a_corpus_without_letters_has_no_vocabulary(builder, capsys):
    builder.rows.clear()
    builder.add("empty", " \u200b", waveform=spell("FACADE"))
    assert main(["check", builder.manifest()]) == 1
    assert "would make" not in capsys.readouterr().out
