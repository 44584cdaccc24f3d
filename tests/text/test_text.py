import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Wav2Vec2CTCTokenizer

from w2v_lightning.errors import InputError
from w2v_lightning.text.vocabulary import Vocabulary, count_repeats

BASE_960H = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ETAONIHSRDLUMWCFGYPBVK'XJQZ"]
LOWER = Vocabulary(("<pad>", "<unk>", "|", "a", "b", "c", "'"))
SPECIALS = {1, 2, 3}  # <s> </s> <unk>


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Wav2Vec2CTCTokenizer:
    folder = tmp_path_factory.mktemp("vocabulary")
    Vocabulary().save(folder)
    return Wav2Vec2CTCTokenizer.from_pretrained(folder)


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
    # transformers keeps a double space where a blank is between two delimiters; it does not affect a word error count.
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


def test_the_longest_token_stands_for_characters_and_spaces_stay():
    vocabulary = Vocabulary(("<pad>", "|", "c", "ch", "h", "a"))
    assert vocabulary.encode("ch a cha hc") == [3, 1, 5, 1, 3, 5, 1, 4, 2]
    assert vocabulary.unknown_characters("chb\u00e9 a") == {"b", "\u00e9"}
    with pytest.raises(KeyError):
        vocabulary.encode("chb")


def test_words_need_a_delimiter():
    vocabulary = Vocabulary(("<pad>", "a"))
    assert vocabulary.encode("aa") == [1, 1]
    assert vocabulary.unknown_characters("a a") == {" "}


def test_an_apostrophe_that_is_a_letter_stays():
    assert Vocabulary(("<pad>", "|", "a", "\u02bc", "'")).normalise("a\u02bca\u2019") == "a\u02bca'"


def test_a_vocabulary_needs_a_blank():
    with pytest.raises(InputError, match="no token '<pad>' to serve as CTC blank"):
        Vocabulary(("|", "A"))


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
    with pytest.raises(InputError, match="the transcripts have no characters"):
        Vocabulary.build([" ", ""])
