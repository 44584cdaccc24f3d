"""Tokenizer folders as on the Hugging Face Hub: we read the same as transformers."""

import json

import numpy as np
import pytest
import torch
import transformers
from packaging.version import Version
from tiny import TINY_CONFIG
from transformers import (
    AutoProcessor,
    AutoTokenizer,
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2ForCTC,
    Wav2Vec2PhonemeCTCTokenizer,
    Wav2Vec2Processor,
)

from w2v_lightning.errors import InputError
from w2v_lightning.model import wav2vec2
from w2v_lightning.text.vocabulary import LIBRISPEECH_TOKENS, Vocabulary

BASE_960H = list(LIBRISPEECH_TOKENS)
UNK_PAD = {"unk_token": "[UNK]", "pad_token": "[PAD]"}
ABC_UNK_PAD = ["|", *"abc", "[UNK]", "[PAD]"]
BEGIN_END = ["<s>", "</s>"]  # transformers adds these after vocab.json unless a file names them
SEVERAL = [*BASE_960H[:5], "a", "ch", "c", "h", "sch", "s", "e\u0303", "\u0254\u0303"]
NI_HAO, SIGMA = "\u4f60\u597d", "\u0391\u03a3"


def as_object(content, special):
    plain = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    return {"content": content, "special": special, **plain}


ADDED_TOKENS_DECODER = {
    "4": as_object("[UNK]", False),
    "5": as_object("[PAD]", False),
    "6": as_object("<s>", True),
    "7": as_object("</s>", True),
}

# The tokens of vocab.json, the tokens that transformers adds after them, and the other files.
FOLDERS = {
    "facebook's": (BASE_960H, [], {}),
    "added_tokens.json": (
        ABC_UNK_PAD,
        BEGIN_END,
        {"added_tokens": {"<s>": 6, "</s>": 7}, "special_tokens_map": UNK_PAD, "tokenizer_config": UNK_PAD},
    ),
    "added_tokens_decoder": (
        ABC_UNK_PAD,
        BEGIN_END,
        {"tokenizer_config": {**UNK_PAD, "added_tokens_decoder": ADDED_TOKENS_DECODER}},
    ),
    "no file for what is added": (ABC_UNK_PAD, BEGIN_END, {"tokenizer_config": UNK_PAD}),
    "all special tokens added": (
        ["|", *"abc"],
        ["<pad>", "<s>", "</s>", "<unk>"],
        {"added_tokens": {"<pad>": 4, "<s>": 5, "</s>": 6, "<unk>": 7}},
    ),
    "letters added": (BASE_960H, ["NG"], {"added_tokens": {"NG": 32}}),
    "special tokens as objects": (
        ABC_UNK_PAD,
        BEGIN_END,
        {"tokenizer_config": {**UNK_PAD, "pad_token": as_object("[PAD]", True)}},
    ),
    "no begin and end": (ABC_UNK_PAD, [], {"tokenizer_config": {**UNK_PAD, "bos_token": None, "eos_token": None}}),
    "another delimiter": (
        ["<pad>", "<unk>", "_", *"ab"],
        BEGIN_END,
        {"tokenizer_config": {"word_delimiter_token": "_"}},
    ),
    "a long delimiter": (
        ["<pad>", "<unk>", "[SPACE]", *"ab|"],
        BEGIN_END,
        {"tokenizer_config": {"word_delimiter_token": "[SPACE]"}},
    ),
    "no delimiter": (["<pad>", "<unk>", *NI_HAO], BEGIN_END, {"tokenizer_config": {"word_delimiter_token": None}}),
    "in lower case": (BASE_960H, [], {"tokenizer_config": {"do_lower_case": True}}),
    "sigma in lower case": (
        ["<pad>", "|", *SIGMA],
        [*BEGIN_END, "<unk>"],
        {"tokenizer_config": {"do_lower_case": True}},
    ),
    "a hyphen for the delimiter": (BASE_960H, [], {"tokenizer_config": {"replace_word_delimiter_char": "-"}}),
    "words written together": (BASE_960H, [], {"tokenizer_config": {"replace_word_delimiter_char": ""}}),
    "several characters": (SEVERAL, [], {}),
}


def write_tokenizer(folder, tokens, **files):
    folder.mkdir(exist_ok=True)
    for name, content in {"vocab": {token: i for i, token in enumerate(tokens)}, **files}.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(params=FOLDERS.values(), ids=FOLDERS)
def pair(request, tmp_path):
    """Return our vocabulary, for a head with an output for every token, and the tokenizer of transformers."""
    tokens, added, files = request.param
    folder = write_tokenizer(tmp_path / "tokenizer", tokens, **files)
    vocabulary = Vocabulary.load(folder, len(tokens) + len(added))
    assert vocabulary.tokens == (*tokens, *added)
    return vocabulary, read_by_transformers(folder, **files.get("tokenizer_config", {}))


def read_by_transformers(folder, pad_token="<pad>", word_delimiter_token="|", **_):
    """Check two cases of tokenizer_config.json that transformers 5.24 ignores: word delimiters, and bare objects."""
    content = pad_token["content"] if isinstance(pad_token, dict) else pad_token
    tokenizer = Wav2Vec2CTCTokenizer.from_pretrained(folder, pad_token=content)
    tokenizer._word_delimiter_token = word_delimiter_token
    return tokenizer


def decoded_by_transformers(tokenizer, ids):
    """Compare after cleaning: transformers keeps tokens such as <s>, and double spaces around a blank."""
    text = tokenizer.decode(ids)
    for token in filter(None, (tokenizer.unk_token, tokenizer.bos_token, tokenizer.eos_token)):
        text = text.replace(token.lower() if tokenizer.do_lower_case else token, "")
    return " ".join(text.split())


def test_ids_and_texts_are_those_of_transformers(pair):
    vocabulary, tokenizer = pair
    assert list(vocabulary.tokens) == tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    assert vocabulary.blank_id == tokenizer.pad_token_id
    rng = np.random.default_rng(0)
    for _ in range(200):
        ids = rng.integers(0, len(tokenizer), 12).repeat(rng.integers(1, 3, 12))
        if vocabulary.lowercase:  # a final sigma is recognised also before <s>
            ids = ids[[vocabulary.tokens[i] not in vocabulary.silent - {vocabulary.blank} for i in ids]]
        assert vocabulary.decode(ids) == decoded_by_transformers(tokenizer, ids)


def test_labels_are_those_of_transformers(pair):
    """Compare without spaces: transformers loses them next to multi-character tokens, and splits such delimiters."""
    vocabulary, tokenizer = pair
    no_letters = {*vocabulary.silent, vocabulary.word_delimiter}
    letters = [token for token in vocabulary.tokens if token not in no_letters]
    has_words = vocabulary.space and len(vocabulary.word_delimiter) == max(map(len, letters)) == 1
    rng = np.random.default_rng(0)
    for _ in range(50):
        words = ["".join(rng.choice(letters, rng.integers(1, 6))) for _ in range(3 if has_words else 1)]
        text = vocabulary.normalise(" ".join(words))
        ids = vocabulary.encode(text)
        assert ids == tokenizer(" ".join(words)).input_ids
        assert vocabulary.decode(i for label in ids for i in (label, vocabulary.blank_id)) == text
        assert not vocabulary.unknown_characters(text)


def test_what_is_saved_transformers_and_we_read_back_the_same(pair, tmp_path):
    vocabulary, tokenizer = pair
    (tmp_path / "saved").mkdir()
    vocabulary.save(tmp_path / "saved")
    assert Vocabulary.load(tmp_path / "saved") == Vocabulary.load(tmp_path / "saved", len(vocabulary)) == vocabulary
    again = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert type(again) is Wav2Vec2CTCTokenizer
    assert {i: token for token, i in again.get_vocab().items()} == dict(enumerate(vocabulary.tokens))
    for role in ("pad_token", "unk_token", "bos_token", "eos_token"):
        assert getattr(again, role) == getattr(tokenizer, role)
    assert again._word_delimiter_token == (vocabulary.word_delimiter or None)
    ids = list(range(len(vocabulary)))
    assert again.decode(ids) == tokenizer.decode(ids)


def test_a_head_has_outputs_for_tokens_that_were_added_or_not(tmp_path):
    folder = write_tokenizer(tmp_path, ABC_UNK_PAD, added_tokens={"<s>": 6, "</s>": 7}, tokenizer_config=UNK_PAD)
    assert Vocabulary.load(folder, 8).tokens == (*ABC_UNK_PAD, *BEGIN_END)
    assert Vocabulary.load(folder, 6) == Vocabulary.load(folder)
    assert Vocabulary.load(folder).tokens == tuple(ABC_UNK_PAD)
    assert len(Vocabulary.load(folder, 5)) == 6  # a head of 5 outputs does not fit, and is not cut to
    assert len(Vocabulary.load(folder, 9)) == 8


def test_a_new_head_has_outputs_for_added_letters_blank_and_delimiter(tmp_path):
    assert Vocabulary.load(write_tokenizer(tmp_path, BASE_960H, added_tokens={"NG": 32})).tokens[32] == "NG"
    vocabulary = Vocabulary.load(write_tokenizer(tmp_path / "letters", "ab"))
    assert {"<pad>", "|"} < set(vocabulary.tokens)
    assert vocabulary.decode(vocabulary.encode("ab b")) == "ab b"


def test_of_several_languages_the_target_is_read(tmp_path):
    write_tokenizer(tmp_path, [], tokenizer_config={"target_lang": "fra"})
    tables = {"eng": {"<pad>": 0, "|": 1, "a": 2}, "fra": {"<pad>": 0, "|": 1, "\u00e9": 2}}
    (tmp_path / "vocab.json").write_text(json.dumps(tables))
    assert Vocabulary.load(tmp_path).tokens == ("<pad>", "|", "\u00e9")


def test_an_id_without_a_token_stands_for_no_text(tmp_path):
    table = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "|": 4, "a": 6}
    (tmp_path / "vocab.json").write_text(json.dumps(table))
    vocabulary, tokenizer = Vocabulary.load(tmp_path), Wav2Vec2CTCTokenizer.from_pretrained(tmp_path)
    assert vocabulary.tokens == ("<pad>", "<s>", "</s>", "<unk>", "|", "", "a")
    ids = [6, 5, 6, 4, 6]
    assert vocabulary.decode(ids) == decoded_by_transformers(tokenizer, ids) == "aa a"
    vocabulary.save(tmp_path)
    assert Vocabulary.load(tmp_path) == vocabulary


@pytest.mark.parametrize("num_outputs", [6, 8])
def test_a_model_whose_special_tokens_were_added_is_loaded_heard_and_exported(tmp_path, num_outputs):
    files = {"added_tokens": {"<s>": 6, "</s>": 7}, "tokenizer_config": UNK_PAD, "special_tokens_map": UNK_PAD}
    folder = write_tokenizer(tmp_path / "model", ABC_UNK_PAD, **files)
    sizes = {**TINY_CONFIG, "vocab_size": num_outputs, "pad_token_id": 5}
    Wav2Vec2ForCTC(Wav2Vec2Config(**sizes)).save_pretrained(folder)
    model, vocabulary, _ = wav2vec2.from_pretrained(str(folder), {})
    assert len(vocabulary) == num_outputs
    for given in (Vocabulary.load(folder), vocabulary):  # the head has these outputs, and is kept
        again, its_vocabulary, _ = wav2vec2.from_pretrained(str(folder), {}, given)
        assert its_vocabulary == vocabulary
        assert torch.equal(again.lm_head.weight, model.lm_head.weight)
    wav2vec2.save_pretrained(tmp_path / "export", model, vocabulary, normalise=True)
    assert wav2vec2.from_pretrained(str(tmp_path / "export"), {})[1] == vocabulary
    processor = AutoProcessor.from_pretrained(tmp_path / "export")
    assert type(processor) is Wav2Vec2Processor
    ids = [1, 1, 5, 1, 0, 2, 4, 3]
    assert processor.decode(ids) == Wav2Vec2CTCTokenizer.from_pretrained(folder).decode(ids) == "aa b[UNK]c"
    assert vocabulary.decode(ids) == "aa bc"


def test_an_exported_model_keeps_its_delimiter_and_its_case(tmp_path):
    vocabulary = Vocabulary(("<pad>", "_", "|", "A", "B"), word_delimiter="_", lowercase=True)
    model = wav2vec2.from_scratch(TINY_CONFIG, vocabulary)
    wav2vec2.save_pretrained(tmp_path / "export", model, vocabulary, normalise=True)
    assert wav2vec2.from_pretrained(str(tmp_path / "export"), {})[1] == vocabulary
    processor, ids = AutoProcessor.from_pretrained(tmp_path / "export"), [3, 2, 1, 4, 0, 4]
    assert processor.decode(ids) == vocabulary.decode(ids) == "a| bb"


PHONEMES = ["<pad>", "<s>", "</s>", "<unk>", "n", "o\u028a", "t\u0283", "\u0259", "t"]


def test_phonemes_are_written_with_spaces_between_them(tmp_path):
    settings = {"tokenizer_class": "Wav2Vec2PhonemeCTCTokenizer", "word_delimiter_token": None, "do_phonemize": True}
    write_tokenizer(tmp_path, PHONEMES, tokenizer_config={**settings, "phone_delimiter_token": " "})
    vocabulary = Vocabulary.load(tmp_path, len(PHONEMES))
    assert vocabulary.tokens == tuple(PHONEMES)
    assert vocabulary.encode(vocabulary.normalise(" n o\u028a  t t\u0283")) == [4, 5, 8, 6]
    assert vocabulary.unknown_characters("n o\u028at\u0283 t") == {"o\u028at\u0283"}
    vocabulary.save(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert type(tokenizer) is Wav2Vec2PhonemeCTCTokenizer
    ids = [0, 4, 4, 5, 0, 0, 6, 0, 6, 8]
    assert vocabulary.decode(ids) == tokenizer.decode(ids) == "n o\u028a t\u0283 t\u0283 t"
    if Version(transformers.__version__) >= Version("5.18"):  # a call of the tokenizer of transformers 5.2 fails
        assert vocabulary.encode("n o\u028a t") == tokenizer("n o\u028a t").input_ids
    assert Vocabulary.load(tmp_path, len(PHONEMES)) == Vocabulary.load(tmp_path) == vocabulary
    model = wav2vec2.from_scratch(TINY_CONFIG, vocabulary)
    wav2vec2.save_pretrained(tmp_path / "model", model, vocabulary, normalise=True)
    assert wav2vec2.from_pretrained(str(tmp_path / "model"), {})[1] == vocabulary
    assert AutoProcessor.from_pretrained(tmp_path / "model").decode(ids) == vocabulary.decode(ids)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "vocab.json is missing: a CTC model folder needs it"),
        ('{"<pad>": 0,', "vocab.json is not valid JSON"),
        ('["<pad>", "|"]', "vocab.json must hold a JSON object, found list"),
        ('{"<pad>": 0, "|": 1, "A": 1}', r"the ids must be unique whole numbers, found <pad>: 0, \|: 1, A: 1"),
        ('{"<pad>": 0, "|": "1"}', r"the ids must be unique whole numbers, found <pad>: 0, \|: 1"),
        ('{"eng": {"<pad>": 0}, "fra": {"<pad>": 0}}', "has a table for each of the languages eng, fra"),
    ],
)
def test_what_is_wrong_with_a_vocabulary_file_is_said(tmp_path, content, message):
    if content is not None:
        (tmp_path / "vocab.json").write_text(content)
    with pytest.raises(InputError, match=message):
        Vocabulary.load(tmp_path)


def test_what_transformers_cannot_read_is_named(tmp_path):
    write_tokenizer(tmp_path, BASE_960H, added_tokens=["NG"])
    with pytest.raises(InputError, match="transformers cannot read this tokenizer"):
        Vocabulary.load(tmp_path)
