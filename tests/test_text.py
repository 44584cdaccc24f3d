import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Wav2Vec2CTCTokenizer

from w2v_lightning.errors import InputError
from w2v_lightning.text import Vocabulary, count_repeats

BASE_960H = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ETAONIHSRDLUMWCFGYPBVK'XJQZ"]
LOWER = Vocabulary(("<pad>", "<unk>", "|", "a", "b", "c", "'"))
SPECIALS = {1, 2, 3}  # <s> </s> <unk>


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Wav2Vec2CTCTokenizer:
    return Wav2Vec2CTCTokenizer(str(Vocabulary().save(tmp_path_factory.mktemp("vocabulary"))))


def write_vocabulary(folder, table) -> None:
    (folder / "vocab.json").write_text(json.dumps(table))


def test_default_is_the_vocabulary_of_wav2vec2_base_960h():
    vocabulary = Vocabulary()
    assert list(vocabulary.tokens) == BASE_960H
    assert (len(vocabulary), vocabulary.blank_id) == (32, 0)


@pytest.mark.parametrize(
    ("written", "normal"),
    [
        ("Hello there", "HELLO THERE"),
        ("DON\u2019T \u2018TIS O\u02bcCLOCK", "DON'T 'TIS O'CLOCK"),
        ("  two\t spaces\u00a0and a\nline ", "TWO SPACES AND A LINE"),
        ("WHAT? 42 \u00c9", "WHAT? 42 \u00c9"),
        ("", ""),
    ],
)
def test_normalise_folds_case_apostrophes_and_spaces_and_removes_nothing(written, normal):
    assert Vocabulary().normalise(written) == normal


def test_letter_case_follows_the_vocabulary():
    assert LOWER.normalise("A CAB") == "a cab"
    assert LOWER.encode("a cab") == [3, 2, 5, 3, 4]
    mixed = Vocabulary(("<pad>", "|", "a", "B"))
    assert mixed.normalise("aB Ab") == "aB Ab"


def test_encode_gives_positions_and_the_delimiter_for_a_space(tokenizer):
    text = "THE QUICK BROWN FOX JUMPS OVER A LAZY DOG'S BACK"
    ids = Vocabulary().encode(text)
    assert ids == [BASE_960H.index("|" if character == " " else character) for character in text]
    assert ids == tokenizer(text)["input_ids"]


@pytest.mark.parametrize("character", ["1", "?", "|", "e", "\u00c9"])
def test_encode_refuses_a_character_without_token_instead_of_training_on_unk(character):
    with pytest.raises(KeyError):
        Vocabulary().encode(f"A{character}B")
    assert Vocabulary().unknown_characters(f"A {character}B") == {character}


def test_decode_merges_repeats_except_across_a_blank():
    frames = [*"|HH_EELL_LOO||_|Y", "<s>", *"OU_|"]
    ids = [BASE_960H.index("<pad>" if token == "_" else token) for token in frames]
    assert Vocabulary().decode(ids) == "HELLO YOU"
    assert Vocabulary().decode([]) == ""


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(sorted(set(range(32)) - SPECIALS)), max_size=60))
def test_decode_agrees_with_transformers(tokenizer, ids):
    # transformers keeps the double space that a blank between two delimiters makes; a word error count does not see it.
    assert Vocabulary().decode(ids) == " ".join(tokenizer.decode(ids).split())


@settings(max_examples=50, deadline=None)
@given(st.text(alphabet="ABC' ", max_size=30))
def test_decode_undoes_encode_with_a_blank_after_each_label(text):
    vocabulary = Vocabulary()
    text = vocabulary.normalise(text)
    assert vocabulary.decode([i for label in vocabulary.encode(text) for i in (label, vocabulary.blank_id)]) == text


def test_one_character_blank_and_longer_delimiter_are_no_letters():
    vocabulary = Vocabulary(("_", "[SPACE]", "A", "B"), blank="_", word_delimiter="[SPACE]")
    assert vocabulary.decode([2, 0, 2, 1, 3, 3, 0]) == "AA B"
    assert vocabulary.unknown_characters("A_B") == {"_"}


def test_save_and_load_round_trip(tmp_path):
    LOWER.save(tmp_path)
    assert Vocabulary.load(tmp_path) == LOWER


def test_load_reads_what_transformers_saves_with_tokens_of_its_own(tmp_path):
    write_vocabulary(tmp_path, {"b": 2, "a": 1, "/": 0, "[UNK]": 3, "[PAD]": 4})
    tokenizer = Wav2Vec2CTCTokenizer(
        str(tmp_path / "vocab.json"),
        *(None, None),  # begin and end of sentence
        pad_token="[PAD]",
        unk_token="[UNK]",
        word_delimiter_token="/",
    )
    tokenizer.save_pretrained(tmp_path / "saved")
    vocabulary = Vocabulary.load(tmp_path / "saved")
    assert vocabulary == Vocabulary(("/", "a", "b", "[UNK]", "[PAD]"), blank="[PAD]", word_delimiter="/")
    assert vocabulary.blank_id == tokenizer.pad_token_id == 4


def test_load_reads_special_tokens_saved_as_objects(tmp_path):
    write_vocabulary(tmp_path, {"[PAD]": 0, "|": 1, "a": 2})
    settings = {"pad_token": {"content": "[PAD]", "lstrip": False}, "word_delimiter_token": "|"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    assert Vocabulary.load(tmp_path).blank == "[PAD]"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "vocab.json is missing; a CTC model folder needs it"),
        ('{"<pad>": 0,', "vocab.json is not valid JSON"),
        ('["<pad>", "|"]', "vocab.json must hold a JSON object, found list"),
        ('{"<pad>": 0, "|": 2}', r"vocab.json: the ids must be 0 to 1, each once; found \[0, 2\]"),
        ('{"<pad>": 0, "|": 1, "A": 1}', r"the ids must be 0 to 2, each once; found \[0, 1, 1\]"),
        ('{"<pad>": 0, "|": "1"}', r"the ids must be 0 to 1, each once; found \[0, '1'\]"),
        ('{"eng": {"<pad>": 0}, "fra": {"<pad>": 0}}', "the ids must be 0 to 1, each once; found"),
        ('{"|": 0, "A": 1}', "no token '<pad>' to serve as CTC blank; add it to vocab.json"),
        ('{"<pad>": 0, "A": 1}', r"no token '\|' to serve as word delimiter; add it to vocab.json"),
    ],
)
def test_load_says_what_is_wrong_with_a_vocabulary_file(tmp_path, content, message):
    if content is not None:
        (tmp_path / "vocab.json").write_text(content)
    with pytest.raises(InputError, match=message):
        Vocabulary.load(tmp_path)


@pytest.mark.parametrize(("labels", "repeats"), [([], 0), ([5], 0), ([5, 5], 1), ([5, 6, 5], 0), ([5, 5, 5, 6, 6], 3)])
def test_count_repeats_counts_adjacent_pairs(labels, repeats):
    assert count_repeats(labels) == repeats


def test_a_built_vocabulary_is_in_the_order_of_code_points_whatever_the_order_of_texts():
    texts = ["don\u2019t go", "\u00c4pfel  Zoo\n"]
    expected = ("<pad>", "<s>", "</s>", "<unk>", "|", *"'DEFGLNOPTZ", "\u00c4")
    assert Vocabulary.build(texts).tokens == Vocabulary.build(reversed(texts)).tokens == expected
    assert Vocabulary.build(texts).blank_id == 0


def test_a_built_vocabulary_encodes_the_texts_that_it_was_built_from():
    texts = ["Stra\u00dfe", "\u03ba\u03cc\u03c3\u03bc\u03bf\u03c2", "\u05e9\u05dc\u05d5\u05dd", "don't"]
    for vocabulary in (Vocabulary.build(texts), Vocabulary.build(texts, mixed_case=True)):
        for text in map(vocabulary.normalise, texts):
            assert "".join(vocabulary.tokens[i] for i in vocabulary.encode(text)) == text
    assert Vocabulary.build(["aB"], mixed_case=True).normalise("Ab aB") == "Ab aB"
    assert Vocabulary.build(["aB"]).normalise("Ab aB") == "AB AB"


def test_what_separates_words_is_no_letter_of_a_built_vocabulary():
    assert Vocabulary.build(["a|b\u00a0c"]).tokens[5:] == ("A", "B", "C")
    with pytest.raises(InputError, match="no character"):
        Vocabulary.build([" ", ""])
