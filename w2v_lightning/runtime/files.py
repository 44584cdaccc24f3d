"""Atomic writing of files: a file appears under its name complete, or not at all."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO


@contextmanager
def atomic_text_file(path: Path) -> Iterator[TextIO]:
    """Open a UTF-8 text file for writing that appears under `path` once the block ends, complete, or not at all.

    Missing parent folders are created.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        with temporary.open("x", encoding="utf-8") as file:  # not mkstemp: its mode is 0600, but caches are shared
            yield file
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)  # missing if the folder is not writable
        raise
