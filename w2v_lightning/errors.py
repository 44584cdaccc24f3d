"""InputError, the exception for wrong input, and helpers for its messages."""

import difflib
from collections.abc import Sequence


class InputError(ValueError):
    """Error of the input, not of the program.

    The message names the file or option, its value, and the remedy. The command line prints it without a traceback; in
    a script it is an ordinary ValueError.
    """

    @property
    def line(self) -> str:
        """Message alone, even if torch re-raised the error from a loader worker, with the traceback in its text."""
        text = str(self)
        if not text.startswith("Caught InputError in DataLoader worker"):
            return text
        return text.rstrip().rpartition("w2v_lightning.errors.InputError: ")[2]


MAX_LISTED = 10  # items in a message; the rest is counted


def listed(items: list[str]) -> str:
    """Join the first items for a message, and count the rest."""
    more = f" and {len(items) - MAX_LISTED} more" if len(items) > MAX_LISTED else ""
    return ", ".join(items[:MAX_LISTED]) + more


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """Return a suggestion to append to a message about an unknown `word`; "" if nothing is similar or it is known."""
    nearest = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f". Did you mean {nearest[0]}?" if nearest and word not in known else ""
