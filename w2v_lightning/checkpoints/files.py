"""Checkpoint files: written atomically, and verifiable by a checksum.

A file is what `torch.save` writes, a zip archive, with a comment at its end (`unzip -z FILE` shows it): the global step
and, as the last 64 characters, the SHA-256 of everything before them. So the checksum cannot be separated from its
file, and everything that reads torch checkpoints can read it.
"""

import hashlib
import io
import os
import re
import secrets
import tarfile
from pathlib import Path
from typing import IO, Any, BinaryIO

import torch
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from w2v_lightning.errors import InputError
from w2v_lightning.runtime.files import atomic_text_file

COMMENT = "w2v_lightning checkpoint, global step {step:012}, SHA-256 of all before it: "
DIGEST_LENGTH = 64
COMMENT_LENGTH = len(COMMENT.format(step=0)) + DIGEST_LENGTH
COMMENT_PATTERN = re.compile(COMMENT.replace("{step:012}", r"(\d{12})").encode() + rb"([0-9a-f]{64})")
NO_CHECKSUM = "it ends without a checksum: it is truncated, or was written by another program"
TEMPORARY = ".incomplete-"  # in the names of files that are being written, or were left by a killed process
CHUNK = 1 << 22  # bytes


def save(checkpoint: dict[str, Any], path: str) -> None:
    """Write `checkpoint` atomically to `path`, a file or a URL.

    A local file survives a power failure once this has returned.

    Raises:
        OSError: it could not be written; `path` is unchanged.
    """
    filesystem, target = url_to_fs(str(path))
    if isinstance(filesystem, LocalFileSystem):
        _save_local(checkpoint, Path(target))
        return
    buffer = io.BytesIO()
    _write(checkpoint, buffer)
    filesystem.makedirs(os.path.dirname(target), exist_ok=True)
    with filesystem.transaction:  # object stores show complete objects only; other file systems rename at the end
        filesystem.pipe(target, buffer.getvalue())


def find_damage(path: str) -> str | None:
    """Read the whole checkpoint and describe what is wrong with it; None if it is what was written."""
    filesystem, target = url_to_fs(str(path))
    try:
        size = filesystem.size(target)
        with filesystem.open(target, "rb") as file:
            return _damage(file, size)
    except FileNotFoundError:
        return "it is missing"
    except OSError as error:
        return f"it cannot be read ({error.strerror or error})"


def global_step(path: str) -> int | None:
    """Read the global step of a checkpoint from its comment alone; None without a comment."""
    filesystem, target = url_to_fs(str(path))
    try:
        with filesystem.open(target, "rb") as file:
            comment = _comment(file, filesystem.size(target))
    except OSError:
        return None
    return comment[0] if comment else None


def peek(path: str) -> dict[str, Any]:
    """Load a checkpoint for its plain values: without checking it and, if local, without reading tensors until used."""
    filesystem, target = url_to_fs(str(path))
    if isinstance(filesystem, LocalFileSystem):
        return _load(target, path, map_location="cpu", weights_only=True, mmap=True)
    with filesystem.open(target, "rb") as file:
        return _load(file, path, map_location="cpu", weights_only=True)


def load(path: str, map_location: Any = "cpu", weights_only: bool | None = True) -> dict[str, Any]:
    """Read any torch checkpoint, a file or a URL.

    Raises:
        InputError: it does not exist, does not match its checksum, is not a torch checkpoint, or `weights_only` is true
            and it holds more than tensors and plain values, which could run code.
    """
    filesystem, target = url_to_fs(str(path))
    if not filesystem.isfile(target):
        raise InputError(
            f"ckpt_path={path}: file not found. Give the path or URL of a checkpoint,"
            " or the folder of a model as model.pretrained."
        )
    with filesystem.open(target, "rb") as file:
        size = filesystem.size(target)
        if _comment(file, size) is not None and (problem := _damage(file, size)):
            raise InputError(f"{path} is damaged: {problem}. Resume from another checkpoint.")
        file.seek(0)
        return _load(file, path, map_location=map_location, weights_only=weights_only)


def remove(path: str) -> None:
    """Remove a checkpoint, a file or a folder, if it exists."""
    filesystem, target = url_to_fs(str(path))
    if filesystem.exists(target):
        filesystem.rm(target, recursive=True)


def write_text(path: str, text: str) -> None:
    """Write a small file, or replace it as a whole.

    Raises:
        OSError: it could not be written.
    """
    filesystem, target = url_to_fs(str(path))
    if isinstance(filesystem, LocalFileSystem):
        with atomic_text_file(Path(target)) as file:
            file.write(text)
    else:
        filesystem.pipe_file(target, text.encode())


def set_aside(path: str) -> str:
    """Rename a file, if it exists, to an unused name ending in .set-aside, and return that name."""
    filesystem, target = url_to_fs(str(path))
    ending, number = ".set-aside", 1
    while filesystem.exists(target + ending):
        number += 1
        ending = f".set-aside-{number}"
    if filesystem.exists(target):
        filesystem.mv(target, target + ending)
    return f"{path}{ending}"


def list_checkpoints(folder: str) -> list[str]:
    """Return the sorted paths of the .ckpt files in a folder; none if the folder does not exist."""
    filesystem, target = url_to_fs(str(folder))
    filesystem.invalidate_cache()
    entries = filesystem.ls(target, detail=True) if filesystem.isdir(target) else []
    names = [os.path.basename(entry["name"]) for entry in entries if entry["type"] == "file" or entry.get("islink")]
    return [join(folder, name) for name in sorted(names) if name.endswith(".ckpt")]


def join(folder: str, name: str) -> str:
    """Append `name` to a folder, which may be a URL."""
    return f"{str(folder).rstrip('/')}/{name}"


def remove_leftovers(folder: str) -> None:
    """Remove temporary files of processes that were killed while saving to a local folder."""
    filesystem, target = url_to_fs(str(folder))
    if isinstance(filesystem, LocalFileSystem):
        for path in Path(target).glob(f"*{TEMPORARY}*"):
            path.unlink(missing_ok=True)


def _load(source: str | BinaryIO, path: str, **options: Any) -> dict[str, Any]:
    # Before torch 2.6, weights_only=True does not keep a file in torch's oldest format from running code
    # (CVE-2025-32434); later releases refuse it themselves.
    if torch.__version__ < "2.6" and options.get("weights_only") and tarfile.is_tarfile(source):
        raise InputError(f"{path} cannot be loaded as a checkpoint: it is in torch's legacy .tar format.")
    try:
        return torch.load(source, **options)
    except Exception as error:  # of any type: damaged bytes are run as the instructions of pickle
        raise InputError(f"{path} cannot be loaded as a checkpoint: {_reason(error)}. Name another one.") from error


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"it cannot be read ({error.strerror or error})"
    if name := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return f"it holds {name[1]}, and weights_only loads tensors and plain values alone: the rest could run code"
    if "legacy .tar format" in str(error):
        return "it is in torch's legacy .tar format"
    return "it is truncated, damaged, or not a checkpoint of torch"


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


def _write(checkpoint: dict[str, Any], file: io.BytesIO | io.BufferedRandom) -> None:
    try:
        torch.save(checkpoint, file)
    except RuntimeError as error:  # torch's writer complains about its byte count; the file's own error is the context
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise
    file.seek(-2, os.SEEK_END)  # the length of the archive's comment, 0 so far
    file.write(COMMENT_LENGTH.to_bytes(2, "little"))
    file.write(COMMENT.format(step=checkpoint.get("global_step", 0)).encode())
    file.seek(0)
    digest = hashlib.file_digest(file, "sha256").hexdigest()
    file.seek(0, os.SEEK_END)
    file.write(digest.encode())


def _comment(file: IO[bytes], size: int) -> tuple[int, str] | None:
    """Read the global step and the checksum at the end of a file; None without them."""
    file.seek(max(0, size - COMMENT_LENGTH))
    match = COMMENT_PATTERN.fullmatch(file.read(COMMENT_LENGTH))
    return (int(match[1]), match[2].decode()) if match else None


def _damage(file: IO[bytes], size: int) -> str | None:
    if size == 0:
        return "it is empty"
    comment = _comment(file, size)
    if comment is None:
        return NO_CHECKSUM
    file.seek(0)
    digest, bytes_left = hashlib.sha256(), size - DIGEST_LENGTH
    while bytes_left and (chunk := file.read(min(bytes_left, CHUNK))):
        digest.update(chunk)
        bytes_left -= len(chunk)
    return None if digest.hexdigest() == comment[1] else "its bytes are not those that were written (SHA-256)"


def _sync_folder(folder: Path) -> None:
    """Make the new name survive a power failure as well."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
