"""A callback that a run takes from its config: it writes down the utterances of each step, and its loss."""

import json
import os
import time
from pathlib import Path

from lightning.pytorch import Callback

from w2v_lightning.callbacks.preemption import Preemption

LIMIT_S = 240


class Witness(Callback):
    """Writes a line a micro-batch to FOLDER/RANK-PID.jsonl, and stops at the step that is named in FOLDER/hold.

    There it stays until that file is gone, or all ranks know where to stop.
    """

    def __init__(self, folder: str):
        self.folder = Path(folder)
        self.step = 0

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.step = trainer.global_step
        give_up_at = time.monotonic() + LIMIT_S
        while self._is_held(trainer):
            self._write(trainer, "held")
            assert time.monotonic() < give_up_at, "held for ever"
            time.sleep(0.2)

    def _is_held(self, trainer):
        (preemption,) = (callback for callback in trainer.callbacks if isinstance(callback, Preemption))
        try:
            held_at = int((self.folder / "hold").read_text())
        except FileNotFoundError:
            return False
        return held_at == self.step and preemption._agreement.last_gate is None

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        loss = float(trainer.callback_metrics["train_loss"]) if batch.is_last_of_step else None
        ids = [] if batch.is_filler else list(batch.ids)
        self._write(trainer, "trained", ids=ids, loss=loss)

    def _write(self, trainer, what, **values):
        """Of one start of all processes, the port is the same; that of the next is another."""
        start = {"start": os.environ.get("MASTER_PORT"), "world_size": trainer.world_size}
        line = {"what": what, "step": self.step, "time_s": time.time(), **start, **values}
        with (self.folder / f"{trainer.global_rank}-{os.getpid()}.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")


def seen(folder):
    """All lines in the order of time."""
    lines = [json.loads(line) for path in folder.glob("*.jsonl") for line in path.read_text().splitlines()]
    return sorted(lines, key=lambda line: line["time_s"])


def steps(folder):
    """Of each step, as it was done last: its utterances, in order of their names, and its loss."""
    trained = [line for line in seen(folder) if line["what"] == "trained"]
    last_start = {line["step"]: line["start"] for line in trained}
    counted = [line for line in trained if line["start"] == last_start[line["step"]]]
    ids = {step: sorted(id_ for line in counted if line["step"] == step for id_ in line["ids"]) for step in last_start}
    losses = {line["step"]: line["loss"] for line in counted if line["loss"] is not None}
    return ids, losses
