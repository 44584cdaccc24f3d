"""What the errors look like: a reference and a hypothesis side by side, differences marked."""

from typing import NamedTuple

import jiwer
from rich.text import Text

WRONG = "bold red"
NOTHING_HEARD = "_"


class Pair(NamedTuple):
    """One utterance: what was said (reference) and what was heard (hypothesis)."""

    id: str
    reference: str
    hypothesis: str


def marked(pair: Pair) -> tuple[Text, Text]:
    """Reference and hypothesis, the words that differ in red; a word that was not heard leaves a red gap."""
    if not pair.reference.split():
        return Text(), Text(pair.hypothesis, style=WRONG)
    output = jiwer.process_words(pair.reference, pair.hypothesis)
    reference, hypothesis = [], []
    for chunk in output.alignments[0]:
        style = "" if chunk.type == "equal" else WRONG
        said = output.references[0][chunk.ref_start_idx : chunk.ref_end_idx]
        heard = output.hypotheses[0][chunk.hyp_start_idx : chunk.hyp_end_idx]
        reference += [Text(word, style) for word in said]
        hypothesis += [Text(word, style) for word in heard or [NOTHING_HEARD] * len(said)]
    return Text(" ").join(reference), Text(" ").join(hypothesis)
