import math

import pytest
import torch
from torchmetrics.functional.text import char_error_rate, word_error_rate

from w2v_lightning.evaluation.wer import ErrorCounts, error_rates

PAIRS = [
    ("THE CAT SAT", "THE CAT SAT"),
    ("A CAT SAT DOWN", "THE CAT SAT"),
    ("", "NOTHING WAS HEARD"),
    ("HELO WORLD", "HELLO WORLD"),
    ("EXTRA WORDS HERE", "WORDS"),
]


def counted(pairs):
    counts = ErrorCounts()
    counts.update([hypothesis for hypothesis, _ in pairs], [reference for _, reference in pairs])
    return counts


def test_equals_torchmetrics_over_a_corpus():
    rates = error_rates(counted(PAIRS).sums)
    hypotheses, references = zip(*PAIRS, strict=True)
    assert rates["wer"] == pytest.approx(float(word_error_rate(list(hypotheses), list(references))))
    assert rates["cer"] == pytest.approx(float(char_error_rate(list(hypotheses), list(references))))


def test_is_a_ratio_of_sums_however_the_corpus_is_cut():
    whole = counted(PAIRS).sums
    parts = counted(PAIRS[:1]).sums + counted(PAIRS[1:]).sums
    assert torch.equal(whole, parts)
    assert whole.dtype == torch.int64
    mean_of_ratios = sum(error_rates(counted([pair]).sums)["wer"] for pair in PAIRS) / len(PAIRS)
    assert error_rates(whole)["wer"] != pytest.approx(mean_of_ratios)  # what this metric must not be


def test_updates_add_up_and_nothing_scored_is_no_score():
    counts = ErrorCounts()
    assert math.isnan(error_rates(counts.sums)["wer"])
    for hypothesis, reference in PAIRS:
        counts.update([hypothesis], [reference])
    assert torch.equal(counts.sums, counted(PAIRS).sums)
