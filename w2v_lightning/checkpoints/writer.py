"""Checkpoints are written by a thread: training waits only until their tensors are copied to the host's memory."""

import copy
import logging
import os
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from w2v_lightning.checkpoints import files

log = logging.getLogger(__name__)

MOST_COPIES = 2  # in the host's memory: one that is being written, and one that waits for it


class BackgroundCheckpointIO(CheckpointIO):
    """A plugin of the Trainer: saves and removals happen one after the other in a thread, in the order of asking.

    What goes wrong there is logged at once and kept in `failure` until a save succeeds; training goes on, and nothing
    is removed meanwhile. `load_checkpoint` and `drain` wait for all that was asked; so does the end of a run, and of
    the process.

    Args:
        save: writes a checkpoint to a path; for tests.
    """

    def __init__(self, save: Callable[[dict[str, Any], str], None] = files.save) -> None:
        self.failure: str | None = None
        self._save = save
        self._thread: ThreadPoolExecutor | None = None  # made when first needed: a plugin is pickled by ddp_spawn
        self._copies: threading.BoundedSemaphore | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | os.PathLike, storage_options: Any = None) -> None:
        """Copy `checkpoint` to the host's memory and have it written to `path`, a file or a URL.

        Raises:
            TypeError: there are `storage_options`, which have no meaning here.
        """
        if storage_options is not None:
            raise TypeError("storage_options mean nothing to BackgroundCheckpointIO.")
        self._start()
        self._copies.acquire()
        try:
            copied = on_host(checkpoint)
        except BaseException:
            self._copies.release()
            raise
        self._thread.submit(self._write, copied, str(path))

    def load_checkpoint(
        self, path: str | os.PathLike, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """As `files.load`; no code in the file is run unless `weights_only` is false."""
        self.drain()
        return files.load(str(path), map_location or "cpu", True if weights_only is None else weights_only)

    def remove_checkpoint(self, path: str | os.PathLike) -> None:
        self.remove_later(lambda: [str(path)])

    def remove_later(self, choose: Callable[[], list[str]]) -> None:
        """Remove what `choose` returns once all that was asked for before is done: then it sees what is there."""
        if self._thread is None:  # after a run there is nothing left that a removal has to wait for
            for path in choose():
                files.remove(path)
        else:
            self._thread.submit(self._remove, choose)

    def drain(self) -> None:
        """Return when all that was asked for is done."""
        if self._thread is not None:
            self._thread.submit(lambda: None).result()

    def teardown(self) -> None:
        if self._thread is not None:
            self._thread.shutdown(wait=True)
            self._thread = self._copies = None

    def _start(self) -> None:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "checkpoints")
            self._copies = threading.BoundedSemaphore(MOST_COPIES)

    def _write(self, checkpoint: dict[str, Any], path: str) -> None:
        try:
            self._save(checkpoint, path)
            self.failure = None
        except Exception as error:
            self.failure = f"{path} could not be written: {_reason(error, checkpoint, path)}"
            log.error("Checkpoint %s. Those before it are kept, and training goes on.", self.failure)
        finally:
            self._copies.release()

    def _remove(self, choose: Callable[[], list[str]]) -> None:
        if self.failure is not None:  # what was to take its place is not there
            return
        try:
            paths = choose()
        except Exception as error:
            log.warning("Which checkpoints are to be removed could not be found out, and all are kept: %s", error)
            return
        for path in paths:
            try:
                files.remove(path)
            except OSError as error:
                log.warning("Checkpoint %s could not be removed: %s", path, error)


def on_host(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """A copy that no later step changes, all of its tensors on the CPU.

    From a GPU they are copied side by side, and waited for once.
    """
    tensors: list[Tensor] = []
    apply_to_collection(checkpoint, Tensor, tensors.append)
    copies = {id(tensor): _host_copy(tensor.detach()) for tensor in tensors}
    for device in {tensor.device for tensor in tensors if tensor.is_cuda}:
        torch.cuda.current_stream(device).synchronize()
    return copy.deepcopy(checkpoint, copies)


def _host_copy(tensor: Tensor) -> Tensor:
    if not tensor.is_cuda:
        return tensor.to("cpu", copy=True)
    pinned = torch.empty_like(tensor, device="cpu", pin_memory=True)
    return pinned.copy_(tensor, non_blocking=True)


def _reason(error: Exception, checkpoint: dict[str, Any], path: str) -> str:
    """What went wrong, with what a full disk would need."""
    if not isinstance(error, OSError):
        return f"{type(error).__name__}: {error}"
    needed: list[int] = []
    apply_to_collection(checkpoint, Tensor, lambda tensor: needed.append(tensor.nbytes))
    return f"{error.strerror or error}{_space(path, sum(needed))}"


def _space(path: str, needed: int) -> str:
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        return ""
    return f" (it needs {needed / 2**20:,.0f} MiB, and {shutil.disk_usage(folder).free / 2**20:,.0f} MiB are free)"
