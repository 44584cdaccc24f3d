"""Transcription errors for display: reference and hypothesis side by side, with the differences marked."""

from typing import NamedTuple

import jiwer
from rich.text import Text

WRONG = "bold red"
GAP = "_"  # shown for each missing word


class Pair(NamedTuple):
    """Reference (the true text) and hypothesis (the model's text) of an utterance."""

    id: str
    reference: str
    hypothesis: str


def mark_differences(pair: Pair) -> tuple[Text, Text]:
    """Return reference and hypothesis with differing words in red; a word missing from the hypothesis is a red gap."""
    if not pair.reference.split():
        return Text(), Text(pair.hypothesis, style=WRONG)
    output = jiwer.process_words(pair.reference, pair.hypothesis)
    reference: list[Text] = []
    hypothesis: list[Text] = []
    for chunk in output.alignments[0]:
        style = "" if chunk.type == "equal" else WRONG
        reference_words = output.references[0][chunk.ref_start_idx : chunk.ref_end_idx]
        hypothesis_words = output.hypotheses[0][chunk.hyp_start_idx : chunk.hyp_end_idx]
        reference += [Text(word, style) for word in reference_words]
        hypothesis += [Text(word, style) for word in hypothesis_words or [GAP] * len(reference_words)]
    return Text(" ").join(reference), Text(" ").join(hypothesis)
