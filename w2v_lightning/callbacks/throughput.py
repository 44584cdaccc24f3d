"""Audio-seconds per second: how fast a run eats speech, whatever the batch size and the padding."""

import time

from lightning.pytorch import Callback, LightningModule, Trainer

from w2v_lightning.data.batch import Batch


class Throughput(Callback):
    """Logs `audio_s_per_s` over all devices: real audio (padding does not count) over wall-clock time.

    A window runs from one logged step to the next, validation left out. No device is waited for: a window of many
    steps ends when its steps have been handed to the device, which is never far behind.
    """

    def __init__(self) -> None:
        self.audio_seconds = 0.0  # of the whole run, on this rank
        self.train_seconds = 0.0
        self._window_audio_s = 0.0
        self._window_start: float | None = None

    def state_dict(self) -> dict[str, float]:
        return {"audio_seconds": self.audio_seconds, "train_seconds": self.train_seconds}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        self.audio_seconds = state_dict["audio_seconds"]
        self.train_seconds = state_dict["train_seconds"]

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start_window()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close_window()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start_window()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close_window()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs, batch: Batch, batch_idx
    ) -> None:
        self._window_audio_s += batch.audio_seconds
        if batch.is_last_of_step and trainer.global_step % trainer.log_every_n_steps == 0:
            rate = self._close_window()
            # The plan gives every rank the same share, so this rank's audio stands for the others'.
            pl_module.log("audio_s_per_s", rate * trainer.world_size)
            self._start_window()

    def _start_window(self) -> None:
        self._window_audio_s, self._window_start = 0.0, time.perf_counter()

    def _close_window(self) -> float:
        if self._window_start is None:
            return 0.0
        seconds = time.perf_counter() - self._window_start
        self.audio_seconds += self._window_audio_s
        self.train_seconds += seconds
        self._window_start = None
        return self._window_audio_s / seconds
