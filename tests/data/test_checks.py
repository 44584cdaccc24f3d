import logging
from types import SimpleNamespace

import numpy as np
import pytest

from w2v_lightning.data.batch import InputSpec
from w2v_lightning.data.checks import check_trainer, usable
from w2v_lightning.data.manifest import Manifest
from w2v_lightning.errors import InputError
from w2v_lightning.text.vocabulary import Vocabulary

GOOD = ("HELLO THERE", 2.0)


def manifest_of(*utterances: tuple[str, float]) -> Manifest:
    ids = [f"u{i}" for i in range(len(utterances))]
    texts, durations_s = zip(*utterances, strict=True)
    return Manifest(ids, [f"/{i}.flac" for i in ids], np.array(durations_s), list(texts), ["7"] * len(ids))


def seconds(num_samples: int) -> float:
    return num_samples / 16_000


BAD = {
    "unknown character": ("WHAT? 4", 2.0),
    "empty transcript": (" ", 2.0),
    "too short": ("A", seconds(399)),
    "more labels than frames": ("ABCDEFGHIJ", seconds(400 + 8 * 320)),
}


def test_good_utterances_pass_as_they_are():
    manifest = manifest_of(GOOD, ("don\u2019t shout", 2.0))
    assert usable(manifest, InputSpec(), split="train").ids == ["u0", "u1"]


def test_tokens_of_several_characters_are_labels_and_their_characters_need_not_be():
    spec = InputSpec(vocabulary=Vocabulary(("<pad>", "|", "a", "ch")))
    fits = ("ch" * 5, seconds(400 + 8 * 320))  # 5 labels and 4 blanks between them in 9 frames
    assert usable(manifest_of(("cha ach", 2.0), fits), spec, split="train").ids == ["u0", "u1"]
    with pytest.raises(InputError, match=r"u0 \(11 needed, 9 frames\)"):
        usable(manifest_of(("ch" * 6, fits[1])), spec, split="train")
    for text in ("ca", "cah", "hac"):
        with pytest.raises(InputError, match="1 utterances have characters outside the vocabulary: u1"):
            usable(manifest_of(("cha", 2.0), (text, 2.0)), spec, split="train")


def test_spaces_need_a_token():
    spec = InputSpec(vocabulary=Vocabulary(("<pad>", *"ab")))
    assert usable(manifest_of(("ab", 2.0)), spec, split="train").ids == ["u0"]
    with pytest.raises(InputError, match=r"outside the vocabulary: u1 \( \)"):
        usable(manifest_of(("ab", 2.0), ("a b", 2.0)), spec, split="train")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("unknown character", r"1 utterances have characters outside the vocabulary: u1 \(4 \?\)"),
        ("empty transcript", r"1 utterances have an empty transcript: u1\."),
        ("too short", r"1 utterances are too short for the model \(under 400 samples\): u1 \(25 ms\)"),
        (
            "more labels than frames",
            r"1 utterances have more labels than the model has frames for: u1 \(10 needed, 9 frames\)",
        ),
    ],
)
def test_each_defect_is_named_with_the_utterance_and_the_remedy(kind, message):
    with pytest.raises(InputError, match=message) as raised:
        usable(manifest_of(GOOD, BAD[kind], GOOD), InputSpec(), split="train")
    assert str(raised.value).startswith("train: ")
    assert "Correct them, or set data.skip_unusable=true to leave them out." in str(raised.value)


def test_all_defects_are_reported_at_once():
    with pytest.raises(InputError) as raised:
        usable(manifest_of(*BAD.values()), InputSpec(), split="train")
    assert all(f"u{i}" in str(raised.value) for i in range(4))


def test_skip_unusable_leaves_out_exactly_the_bad_ones_and_says_so(caplog):
    utterances = [GOOD, *BAD.values(), GOOD]
    kept = usable(manifest_of(*utterances), InputSpec(), split="dev", skip_unusable=True)
    assert kept.ids == ["u0", "u5"]
    assert kept.texts == [GOOD[0]] * 2
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert sum("They are left out (data.skip_unusable=true)" in warning for warning in warnings) == 4


def test_unknown_characters_are_counted_over_the_split(caplog):
    with pytest.raises(InputError):
        usable(manifest_of(("A?", 1.0), ("B??", 1.0), ("C7", 1.0)), InputSpec(), split="train")
    assert "Characters without a token: '?' (in 2), '7' (in 1)." in caplog.text


@pytest.mark.parametrize(
    ("text", "num_frames", "enough"),
    [
        ("ABCDE", 5, True),
        ("ABCDE", 4, False),
        ("ABBBE", 7, True),  # a blank between each pair of equal neighbours
        ("ABBBE", 6, False),
        ("A  B", 3, True),  # spaces count after normalisation
    ],
)
def test_ctc_needs_a_frame_for_each_label_and_each_repeat(text, num_frames, enough):
    manifest = manifest_of((text, seconds(400 + (num_frames - 1) * 320)))
    if enough:
        assert len(usable(manifest, InputSpec(), split="train")) == 1
    else:
        with pytest.raises(InputError, match=f"{num_frames + 1} needed, {num_frames} frames"):
            usable(manifest, InputSpec(), split="train")


def test_shortest_length_follows_the_model():
    manifest = manifest_of(("A", seconds(150)))
    assert len(usable(manifest, InputSpec(conv_kernel=(10, 8), conv_stride=(5, 4)), split="train")) == 1
    with pytest.raises(InputError, match="too short"):
        usable(manifest, InputSpec(), split="train")


def test_long_utterances_are_left_out_as_asked_and_counted(caplog):
    manifest = manifest_of(GOOD, ("LONG", 20.001), ("JUST", 20.0), ("LONGER", 35.0))
    with caplog.at_level(logging.INFO):
        assert usable(manifest, InputSpec(), split="train", max_seconds=20).ids == ["u0", "u2"]
    assert "train: 2 utterances over data.max_seconds=20 are left out." in caplog.text
    assert len(usable(manifest, InputSpec(), split="train")) == 4


@pytest.mark.parametrize("options", [{"max_seconds": 1}, {"skip_unusable": True}])
def test_nothing_left_is_an_error(options):
    with pytest.raises(InputError, match="dev: none of its 1 utterances can be used"):
        usable(manifest_of(("?", 2.0) if "skip_unusable" in options else GOOD), InputSpec(), split="dev", **options)


def trainer(**options):
    defaults = {"overfit_batches": 0.0, "limit_train_batches": 1.0, "limit_val_batches": 1.0}
    return SimpleNamespace(**{**defaults, "val_check_interval": 1.0, "check_val_every_n_epoch": 1, **options})


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"val_check_interval": 10},
        {"val_check_interval": 11, "check_val_every_n_epoch": None},
        {"val_check_interval": 11, "limit_val_batches": 0},
        {"val_check_interval": 0.5, "limit_train_batches": 1},
        {"val_check_interval": 11, "limit_train_batches": 0},
    ],
)
def test_options_of_the_trainer_that_go_with_ten_micro_batches_an_epoch(options):
    check_trainer(trainer(**options), 10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_check_interval": 11}, r"is 11 micro-batches, but an epoch has 10 of .*check_val_every_n_epoch=null"),
        ({"val_check_interval": 10, "limit_train_batches": 9}, "an epoch has 9 "),
        ({"val_check_interval": 6, "limit_train_batches": 0.5}, "an epoch has 5 "),
        ({"overfit_batches": 2}, r"overfit_batches is 2, .*data\.train_splits and data\.val_splits"),
        ({"overfit_batches": 0.1}, r"overfit_batches is 0\.1"),
    ],
)
def test_options_of_the_trainer_that_do_not_go_with_the_plan(options, message):
    with pytest.raises(InputError, match=message):
        check_trainer(trainer(**options), 10)
