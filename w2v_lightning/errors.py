"""The one exception that means: the input is wrong, the program is not."""

import difflib
from collections.abc import Sequence


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message names the file or option, what was found there, and the remedy. The command line prints it without a
    traceback; in a script it is an ordinary ValueError.
    """

    @property
    def line(self) -> str:
        """The message, also of one that torch hands on from a loader worker as the text of its traceback."""
        text = str(self)
        if not text.startswith("Caught InputError in DataLoader worker"):
            return text
        return text.rstrip().rpartition("w2v_lightning.errors.InputError: ")[2]


MAX_LISTED = 10  # examples in a message; the count is always given


def listed(items: list[str]) -> str:
    """The first few items for a message."""
    more = f" and {len(items) - MAX_LISTED} more" if len(items) > MAX_LISTED else ""
    return ", ".join(items[:MAX_LISTED]) + more


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """What to append to a message about `word`: the nearest known one, unless it is known itself."""
    nearest = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f". Did you mean {nearest[0]}?" if nearest and word not in known else ""
