"""Restoring of a checkpoint by the Trainer, with errors that name the file and say what does not fit."""

from collections.abc import Iterator
from contextlib import contextmanager

from lightning.fabric.utilities.exceptions import MisconfigurationException

from w2v_lightning.data.trial import is_out_of_memory
from w2v_lightning.errors import InputError

# What Lightning, torch and callbacks raise for a state that is not theirs; none of them names the file.
MISFITS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


MAX_REASON = 200  # characters: torch names all weights that are missing


@contextmanager
def naming(path: str) -> Iterator[None]:
    """Turn an error of restoring a checkpoint into an InputError of one line that names it; for `guard_restoring`."""
    try:
        yield
    except MISFITS as error:
        if isinstance(error, InputError | MisconfigurationException) or is_out_of_memory(error):
            raise
        raise InputError(
            f"{path} does not fit this run: {_reason(error)}. Name another checkpoint, or the options it was trained"
            " with."
        ) from error


def _reason(error: Exception) -> str:
    """Return the first detail of an error: torch lists every tensor that does not fit, one a line."""
    lines = [line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].startswith("Error(s) in loading state_dict"):
        return lines[1][:MAX_REASON]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:MAX_REASON]
