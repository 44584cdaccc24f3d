"""Rules for the writing of transcripts: the same for all spellings of a text, saved with the model."""

import json
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import TINY_CONFIG
from transformers import AutoProcessor, AutoTokenizer

from w2v_lightning import Wav2Vec2CTC
from w2v_lightning.errors import InputError
from w2v_lightning.model import wav2vec2
from w2v_lightning.text.rules import TextRules
from w2v_lightning.text.vocabulary import SPECIAL_TOKENS, Vocabulary

VIETNAMESE = ["ti\u1ebfng vi\u1ec7t", "tie\u0302\u0301ng vie\u0323\u0302t", "tie\u0302\u0301ng"]
TURKISH = ["Irak \u0130zmir", "\u0131s\u0131rgan isim", "i\u0307yi"]


def letters(vocabulary):
    return "".join(vocabulary.tokens[len(SPECIAL_TOKENS) :])


def test_both_spellings_of_a_letter_are_one_label():
    vocabulary = Vocabulary.build(VIETNAMESE)
    assert letters(vocabulary) == "GINTV\u1ebe\u1ec6"
    assert vocabulary.normalise(VIETNAMESE[1]) == vocabulary.normalise(VIETNAMESE[0])
    assert vocabulary.remark == ""


def test_a_built_vocabulary_has_the_letter_case_of_turkish():
    vocabulary = Vocabulary.build(TURKISH)
    assert vocabulary.rules.language == "tr"
    assert vocabulary.normalise(TURKISH[1]) == "ISIRGAN \u0130S\u0130M"
    assert vocabulary.normalise(TURKISH[2]) == "\u0130Y\u0130"  # what Python's lower() leaves of a dotted capital I
    small = Vocabulary.build(TURKISH, rules=TextRules(case="lower", language="tr"))
    for text in ("IRAK \u0130ZM\u0130R", "IRAK I\u0307ZMI\u0307R"):  # in NFC and in NFD
        assert small.normalise(text) == "\u0131rak izmir"


def test_georgian_and_german_keep_their_letters():
    assert letters(Vocabulary.build(["\u10d0\u10d1", "\u1c90"])) == "\u10d0\u10d1"
    assert letters(Vocabulary.build(["ma\u00dfe masse"])) == "AEMS\u00df"


@pytest.mark.parametrize(
    ("written", "normal"),
    [
        ("a\u200bb\u200f\ufeff\u00ad", "AB"),
        ("a\x00b\x07 \x7f", "AB"),
        ("a\u00a0b\u3000c\u2800d\u202fe", "A B C D E"),
        ("don\x92t", "DON'T"),  # Windows-1252, read as Latin-1
        ("a\u200cb a\u200d", "AB A"),
        ("\u0645\u06cc\u200c\u062e\u0648 \u06cc\u200c", "\u0645\u06cc\u200c\u062e\u0648 \u06cc"),
        ("\u0d28\u0d4d\u200d", "\u0d28\u0d4d\u200d"),  # Malayalam: the joiner makes another letter
        ("\u09b0\u200d\u09cd\u09af", "\u09b0\u200d\u09cd\u09af"),
    ],
)
def test_invisible_characters_are_left_out_unless_they_belong_to_the_spelling(written, normal):
    assert Vocabulary.build([written]).normalise(written) == normal
    assert set(letters(Vocabulary.build([written]))) == set(normal) - {" "}


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(min_size=1), min_size=1, max_size=5))
def test_a_built_vocabulary_encodes_its_texts_and_normalising_twice_changes_nothing(texts):
    try:
        vocabulary = Vocabulary.build(texts)
    except InputError:
        return
    for text in texts:
        normal = vocabulary.normalise(text)
        assert vocabulary.unknown_characters(normal) <= {"|"}
        assert vocabulary.normalise(normal) == normal


def test_a_model_in_nfd_gets_texts_in_nfd_and_says_so():
    vocabulary = Vocabulary((*SPECIAL_TOKENS, *"eitngv", "\u0302", "\u0301", "\u0323"))
    for text in VIETNAMESE[:2]:
        assert not vocabulary.unknown_characters(vocabulary.normalise(text))
    assert vocabulary.normalise(VIETNAMESE[0]) == vocabulary.normalise(VIETNAMESE[1])
    assert "NFD" in vocabulary.remark
    korean = Vocabulary((*SPECIAL_TOKENS, "\u1112", "\u1161", "\u11ab"))
    assert korean.normalise("\ud55c") == "\u1112\u1161\u11ab"
    assert "NFD" in korean.remark


def test_letters_are_written_as_the_tokens_need_it():
    assert Vocabulary((*SPECIAL_TOKENS, "\u0958")).normalise("\u0915\u093c") == "\u0958"  # no normal form has it
    assert "two spellings" in Vocabulary((*SPECIAL_TOKENS, "e", "\u0301", "\u00e9")).remark
    decomposed = Vocabulary((*SPECIAL_TOKENS, *"ae", "\u0301", "\u00e9"), rules=TextRules(normal_form="NFD"))
    assert decomposed.normalise("\u00e9") == "e\u0301"


def test_a_model_from_before_keeps_what_it_was_trained_with():
    assert Vocabulary((*SPECIAL_TOKENS, *"MASE")).normalise("ma\u00dfe") == "MASSE"
    georgian = Vocabulary((*SPECIAL_TOKENS, "\u1c90"))
    assert georgian.normalise("\u10d0") == "\u1c90"


def test_rules_drop_and_replace_letters_of_either_case():
    rules = TextRules(drop="?y", replace={"&": " and ", "\u0451": "\u0435", "\u200c": " "})
    vocabulary = Vocabulary.build(["a&b", "y", "\u0435 c\u200cd"], rules=rules)
    assert vocabulary.normalise("Y a?&b \u0401") == "A AND B \u0415"
    assert vocabulary.normalise("c\u200cd") == "C D"
    kept = vocabulary.with_rules(TextRules(case="keep", drop="y"))
    assert kept.normalise("Yy") == "Y"
    assert pickle.loads(pickle.dumps(vocabulary)).normalise("a&b") == "A AND B"  # loader workers get a copy


def test_case_of_the_rules_is_that_of_the_built_vocabulary():
    assert letters(Vocabulary.build(["Ab"], rules=TextRules(case="lower"))) == "ab"
    with pytest.raises(InputError, match=r"data\.text\.case=lower contradicts model\.vocabulary=build-mixed"):
        Vocabulary.build(["Ab"], mixed_case=True, rules=TextRules(case="lower"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"replace": {"ab": "c"}}, "'ab' must be a single character"),
        ({"drop": "a", "replace": {"a": "b"}}, "'a' is both in drop and in replace"),
        ({"language": "Turkish!"}, "must be a language tag such as tr or de-AT, found 'Turkish!'"),
    ],
)
def test_invalid_rules_are_refused(values, message):
    with pytest.raises(InputError, match=message):
        TextRules(**values)


# ---- with the exported model ----------------------------------------------------------------------------------------


@pytest.fixture
def exported(tmp_path):
    vocabulary = Vocabulary.build(TURKISH, rules=TextRules(drop="."))
    model = wav2vec2.from_scratch(TINY_CONFIG, vocabulary)
    wav2vec2.save_pretrained(tmp_path / "model", model, vocabulary, normalise=True)
    return tmp_path / "model"


def test_rules_are_saved_with_the_model_and_transformers_keeps_them(exported, tmp_path):
    expected = TextRules(drop=".", language="tr")
    assert Vocabulary.load(exported).rules == expected
    AutoTokenizer.from_pretrained(exported)
    AutoProcessor.from_pretrained(exported).save_pretrained(tmp_path / "again")
    assert Vocabulary.load(tmp_path / "again").rules == expected
    assert wav2vec2.from_pretrained(str(exported), {})[1].normalise("isim.") == "\u0130S\u0130M"


@pytest.mark.parametrize("saved", [[], {"case": "loud"}, {"drop": 1}, {"unknown": 1}, {"replace": {"a": 1}}])
def test_damaged_rules_are_named(exported, saved):
    path = exported / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "text_rules": saved}))
    with pytest.raises(InputError, match=r"tokenizer_config.json .*text_rules.*; restore the file"):
        Vocabulary.load(exported)


def test_a_module_has_the_rules_of_its_model_or_says_what_contradicts_them(exported, caplog):
    module = Wav2Vec2CTC(str(exported))
    assert module.vocabulary.rules.language == "tr"
    assert module.hparams["text"] is None
    assert "contradicts" not in caplog.text
    other = Wav2Vec2CTC(str(exported), text=TextRules(case="keep"))
    assert "drop is '' instead of '.', language is None instead of 'tr'" in caplog.text
    assert other.vocabulary.normalise("a.") == "a."
    again = Wav2Vec2CTC(**other.hparams)
    assert again.vocabulary.rules == TextRules(case="keep")


def test_hyper_parameters_of_default_rules_are_those_of_checkpoints_from_before():
    assert "rules" not in Vocabulary.build(["ab"]).values()
    values = Vocabulary.build(TURKISH).values()
    module = Wav2Vec2CTC(None, config=TINY_CONFIG, vocabulary=values)
    assert module.vocabulary.rules == TextRules(language="tr")
    assert module.hparams["vocabulary"] == values
