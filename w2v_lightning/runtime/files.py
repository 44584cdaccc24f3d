"""Files that appear under their name complete, or not at all."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO


@contextmanager
def atomic_text_file(path: Path) -> Iterator[TextIO]:
    """``with atomic_text_file(path) as file``: the file appears under its name complete, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        with temporary.open("x", encoding="utf-8") as file:  # the user's umask, not mkstemp's 0600: caches are shared
            yield file
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)  # it was never made where the folder cannot be written to
        raise
