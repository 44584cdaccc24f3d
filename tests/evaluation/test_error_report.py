import pytest

from w2v_lightning.evaluation.error_report import WRONG, Pair, mark_differences


def words(text):
    """List (word, is marked wrong) of a text."""
    starts_wrong = {span.start for span in text.spans if span.style == WRONG}
    result, position = [], 0
    for word in text.plain.split(" "):
        result.append((word, position in starts_wrong))
        position += len(word) + 1
    return result


@pytest.mark.parametrize(
    ("reference", "hypothesis", "marked_reference", "marked_hypothesis"),
    [
        ("A B", "A B", [("A", False), ("B", False)], [("A", False), ("B", False)]),
        ("A B", "A C", [("A", False), ("B", True)], [("A", False), ("C", True)]),
        ("A B", "A", [("A", False), ("B", True)], [("A", False), ("_", True)]),
        ("A", "A B", [("A", False)], [("A", False), ("B", True)]),
        ("A B", "", [("A", True), ("B", True)], [("_", True), ("_", True)]),
    ],
)
def test_marks_what_differs_on_both_sides(reference, hypothesis, marked_reference, marked_hypothesis):
    reference_text, hypothesis_text = mark_differences(Pair("x", reference, hypothesis))
    assert words(reference_text) == marked_reference
    assert words(hypothesis_text) == marked_hypothesis


def test_an_empty_reference_marks_all_that_was_heard():
    reference, hypothesis = mark_differences(Pair("x", "", "A B"))
    assert (reference.plain, hypothesis.plain, hypothesis.style) == ("", "A B", WRONG)
