"""A checkpoint as a file: complete or invisible, and known to be what was written.

The file is what `torch.save` writes, a zip archive, with a comment at its end (`unzip -z FILE` shows it): the global
step, and as its last 64 characters the SHA-256 of all that comes before them. So the checksum cannot be parted from its
file, and everything that reads a torch checkpoint reads this one.
"""

import hashlib
import io
import os
import pickle
import re
import secrets
from pathlib import Path
from typing import Any, BinaryIO

import torch
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from w2v_lightning.errors import InputError
from w2v_lightning.runtime.files import atomic_text_file

COMMENT = "w2v_lightning checkpoint, global step {step:012}, SHA-256 of all before it: "
DIGEST_LENGTH = 64
COMMENT_LENGTH = len(COMMENT.format(step=0)) + DIGEST_LENGTH
COMMENT_PATTERN = re.compile(COMMENT.replace("{step:012}", r"(\d{12})").encode() + rb"([0-9a-f]{64})")
NO_CHECKSUM = "it ends without its checksum: it was cut off, or written by another program"
TEMPORARY = ".incomplete-"  # a name with it is not yet, or never became, a checkpoint
CHUNK = 1 << 22


def save(checkpoint: dict[str, Any], path: str) -> None:
    """Write `checkpoint` so that `path`, a file or a URL, is at any moment what it was before or all of it.

    A local file survives a loss of power once this has returned.

    Raises:
        OSError: it could not be written; `path` is what it was.
    """
    filesystem, place = url_to_fs(str(path))
    if isinstance(filesystem, LocalFileSystem):
        _save_local(checkpoint, Path(place))
        return
    buffer = io.BytesIO()
    _write(checkpoint, buffer)
    filesystem.makedirs(os.path.dirname(place), exist_ok=True)
    with filesystem.transaction:  # an object store shows an object when it is complete, others rename at the end
        filesystem.pipe(place, buffer.getvalue())


def damage(path: str) -> str | None:
    """What is wrong with the checkpoint at `path`, in words; None if it is what was written. Reads all of it."""
    filesystem, place = url_to_fs(str(path))
    try:
        size = filesystem.size(place)
        with filesystem.open(place, "rb") as file:
            return _damage(file, size)
    except FileNotFoundError:
        return "it is missing"
    except OSError as error:
        return f"it cannot be read ({error.strerror or error})"


def global_step(path: str) -> int | None:
    """The step that a checkpoint says it was made after, without reading the rest; None if it does not say."""
    filesystem, place = url_to_fs(str(path))
    try:
        with filesystem.open(place, "rb") as file:
            comment = _comment(file, filesystem.size(place))
    except OSError:
        return None
    return comment[0] if comment else None


def peek(path: str) -> dict[str, Any]:
    """As `load`, without its checks and, of a local file, without reading what is not looked at: for plain values."""
    filesystem, place = url_to_fs(str(path))
    if isinstance(filesystem, LocalFileSystem):
        return _load(place, path, map_location="cpu", weights_only=True, mmap=True)
    with filesystem.open(place, "rb") as file:
        return _load(file, path, map_location="cpu", weights_only=True)


def load(path: str, map_location: Any = "cpu", weights_only: bool | None = True) -> dict[str, Any]:
    """Read any torch checkpoint, a file or a URL.

    Raises:
        InputError: there is none, it has a checksum and does not match it, it is no torch checkpoint, or `weights_only`
            is true and it holds more than tensors and plain values, which could run code.
    """
    filesystem, place = url_to_fs(str(path))
    if not filesystem.isfile(place):
        raise InputError(
            f"ckpt_path={path}: there is no such file; give the path or URL of a checkpoint,"
            " or the folder of a model as model.pretrained."
        )
    with filesystem.open(place, "rb") as file:
        size = filesystem.size(place)
        if _comment(file, size) is not None and (what := _damage(file, size)):
            raise InputError(f"{path} is damaged: {what}. Go on from another checkpoint.")
        file.seek(0)
        return _load(file, path, map_location=map_location, weights_only=weights_only)


def remove(path: str) -> None:
    """Remove a checkpoint if it is there, also one that is a folder."""
    filesystem, place = url_to_fs(str(path))
    if filesystem.exists(place):
        filesystem.rm(place, recursive=True)


def write_text(path: str, text: str) -> None:
    """Write a small file, or replace it whole.

    Raises:
        OSError: it could not be written.
    """
    filesystem, place = url_to_fs(str(path))
    if isinstance(filesystem, LocalFileSystem):
        with atomic_text_file(Path(place)) as file:
            file.write(text)
    else:
        filesystem.pipe_file(place, text.encode())


def set_aside(path: str) -> str:
    """Rename a file, if it is there, to what is not looked for, and was not there before; returns the new name."""
    filesystem, place = url_to_fs(str(path))
    ending, number = ".set-aside", 1
    while filesystem.exists(place + ending):
        number += 1
        ending = f".set-aside-{number}"
    if filesystem.exists(place):
        filesystem.mv(place, place + ending)
    return f"{path}{ending}"


def found_in(folder: str) -> list[str]:
    """Paths of the checkpoints of a folder, which need not exist: what ends in .ckpt and is a file."""
    filesystem, place = url_to_fs(str(folder))
    filesystem.invalidate_cache()
    names = filesystem.ls(place, detail=True) if filesystem.isdir(place) else []
    files = [os.path.basename(row["name"]) for row in names if row["type"] == "file" or row.get("islink")]
    return [join(folder, name) for name in sorted(files) if name.endswith(".ckpt")]


def join(folder: str, name: str) -> str:
    """`name` in a folder, which may be a URL."""
    return f"{str(folder).rstrip('/')}/{name}"


def remove_leftovers(folder: str) -> None:
    """Remove what a process that was killed while it saved has left in a local folder."""
    filesystem, place = url_to_fs(str(folder))
    if isinstance(filesystem, LocalFileSystem):
        for path in Path(place).glob(f"*{TEMPORARY}*"):
            path.unlink(missing_ok=True)


def _load(source: str | BinaryIO, path: str, **options: Any) -> dict[str, Any]:
    try:
        return torch.load(source, **options)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else "it is empty."
        raise InputError(f"{path} cannot be loaded as a checkpoint: {reason} Go on from another one.") from error


def _save_local(checkpoint: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}{TEMPORARY}{secrets.token_hex(4)}")
    try:
        with temporary.open("x+b") as file:
            _write(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _write(checkpoint: dict[str, Any], file: BinaryIO) -> None:
    try:
        torch.save(checkpoint, file)
    except RuntimeError as error:  # of torch's writer, which counts its bytes; what the file said is behind it
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise
    file.seek(-2, os.SEEK_END)  # the length of the archive's comment, until now 0
    file.write(COMMENT_LENGTH.to_bytes(2, "little"))
    file.write(COMMENT.format(step=checkpoint.get("global_step", 0)).encode())
    file.seek(0)
    digest = hashlib.file_digest(file, "sha256").hexdigest()
    file.seek(0, os.SEEK_END)
    file.write(digest.encode())


def _comment(file: BinaryIO, size: int) -> tuple[int, str] | None:
    """The global step and the checksum that a file names at its end; None without them."""
    file.seek(max(0, size - COMMENT_LENGTH))
    found = COMMENT_PATTERN.fullmatch(file.read(COMMENT_LENGTH))
    return (int(found[1]), found[2].decode()) if found else None


def _damage(file: BinaryIO, size: int) -> str | None:
    if size == 0:
        return "it is empty"
    comment = _comment(file, size)
    if comment is None:
        return NO_CHECKSUM
    file.seek(0)
    digest, left = hashlib.sha256(), size - DIGEST_LENGTH
    while left and (chunk := file.read(min(left, CHUNK))):
        digest.update(chunk)
        left -= len(chunk)
    return None if digest.hexdigest() == comment[1] else "its bytes are not those that were written (SHA-256)"


def _sync_folder(folder: Path) -> None:
    """The new name, too, is to survive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
