"""Background writing of checkpoints: training waits only until the tensors are copied to the host's memory."""

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

MOST_COPIES = 2  # copies in the host's memory: one being written, and one in the queue


class BackgroundCheckpointIO(CheckpointIO):
    """Plugin of the Trainer that saves and removes checkpoints in a thread, one after the other, in order of request.

    A failed save is logged at once and kept in `failure` until a save succeeds; meanwhile training continues, and no
    checkpoint is removed. `load_checkpoint`, `drain` and the ends of a run and of the process wait for all requests.

    Args:
        save: function that writes a checkpoint to a path; replaced in tests.
    """

    def __init__(self, save: Callable[[dict[str, Any], str], None] = files.save) -> None:
        self.failure: str | None = None
        self._save = save
        self._thread: ThreadPoolExecutor | None = None  # created when first needed: ddp_spawn pickles the plugin
        self._copies: threading.BoundedSemaphore | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | os.PathLike, storage_options: Any = None) -> None:
        """Copy `checkpoint` to the host's memory and queue it to be written to `path`, a file or a URL.

        Raises:
            TypeError: `storage_options` are given, which are not supported.
        """
        if storage_options is not None:
            raise TypeError("BackgroundCheckpointIO does not support storage_options.")
        thread, copies = self._start()
        copies.acquire()
        try:
            copied = on_host(checkpoint)
        except BaseException:
            copies.release()
            raise
        thread.submit(self._write, copied, str(path), copies)

    def load_checkpoint(
        self, path: str | os.PathLike, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Load a checkpoint with `files.load`; no code in the file is run unless `weights_only` is false."""
        self.drain()
        return files.load(str(path), map_location or "cpu", True if weights_only is None else weights_only)

    def remove_checkpoint(self, path: str | os.PathLike) -> None:
        self.remove_later(lambda: [str(path)])

    def remove_later(self, choose: Callable[[], list[str]]) -> None:
        """Remove the paths that `choose` returns; it is called once all earlier requests are done."""
        if self._thread is None:  # before the first save and after a run, there are no earlier requests
            for path in choose():
                files.remove(path)
        else:
            self._thread.submit(self._remove, choose)

    def drain(self) -> None:
        """Wait until all requests are done."""
        if self._thread is not None:
            self._thread.submit(lambda: None).result()

    def teardown(self) -> None:
        if self._thread is not None:
            self._thread.shutdown(wait=True)
            self._thread = self._copies = None

    def _start(self) -> tuple[ThreadPoolExecutor, threading.BoundedSemaphore]:
        if self._thread is None or self._copies is None:
            self._thread = ThreadPoolExecutor(1, "checkpoints")
            self._copies = threading.BoundedSemaphore(MOST_COPIES)
        return self._thread, self._copies

    def _write(self, checkpoint: dict[str, Any], path: str, copies: threading.BoundedSemaphore) -> None:
        try:
            self._save(checkpoint, path)
            self.failure = None
        except Exception as error:
            self.failure = f"{path} could not be written: {_reason(error, checkpoint, path)}"
            log.error("Checkpoint %s. Earlier checkpoints are kept, and training continues.", self.failure)
        finally:
            copies.release()

    def _remove(self, choose: Callable[[], list[str]]) -> None:
        if self.failure is not None:  # the checkpoint that would replace the removed one is missing
            return
        try:
            paths = choose()
        except Exception as error:
            log.warning("Old checkpoints could not be listed for removal; all are kept: %s", error)
            return
        for path in paths:
            try:
                files.remove(path)
            except OSError as error:
                log.warning("Checkpoint %s could not be removed: %s", path, error)


def on_host(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Copy a checkpoint to the CPU, so that no later step changes it.

    Tensors on a GPU are all copied asynchronously, followed by one synchronisation.
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
    """Describe an error; an OSError with the space that is needed and free."""
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
