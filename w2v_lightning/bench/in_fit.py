"""Measurement of ours inside `Trainer.fit`, with the callbacks and logging of the command line and data in memory.

The other sides take their turns between two passes of the fit, from a callback, so that all sides alternate although
the loop is Lightning's.
"""

import io
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import Strategy
from rich.console import Console

from w2v_lightning.bench.side import Passes
from w2v_lightning.bench.stepper import CLIP_NORM
from w2v_lightning.bench.workload import Workload
from w2v_lightning.callbacks.diagnosis import Diagnosis
from w2v_lightning.callbacks.preemption import Preemption
from w2v_lightning.callbacks.progress import RunProgress
from w2v_lightning.data.batch import Batch
from w2v_lightning.module import Wav2Vec2CTC
from w2v_lightning.telemetry.throughput import Throughput

WARM_UP_PASSES = 2
LOG_EVERY_N_STEPS = 10  # default of the command line


class PreparedLoader:
    """Loader that yields the Batches of a workload, pass after pass."""

    def __init__(self, workload: Workload, num_passes: int):
        self.batches = workload.batches
        self.num_passes = num_passes

    def __len__(self) -> int:
        return self.num_passes * len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        for _ in range(self.num_passes):
            yield from self.batches


class PassClock(Callback):
    """Timer of whole passes over the workload, which calls `after_pass` after each."""

    def __init__(self, passes: Passes, after_pass: Callable[[], None]):
        self.passes = passes
        self.after_pass = after_pass
        self.num_steps = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.passes.memory.before_build()  # the model is not on the device yet
        self._start_s = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self.num_steps += batch.is_last_of_step
        num_passes, steps_of_pass = divmod(self.num_steps, len(self.passes.workload.steps))
        if not batch.is_last_of_step or steps_of_pass or num_passes < WARM_UP_PASSES:
            return
        if num_passes == WARM_UP_PASSES:
            self._end_warm_up()
        else:
            self.passes.end()
            self.after_pass()
        self.passes.begin()

    def _end_warm_up(self) -> None:
        self.passes.memory.machine.synchronize()
        self.passes.memory.after_build()
        self.passes.warm_up_s = time.perf_counter() - self._start_s


def fit(
    module: Wav2Vec2CTC,
    passes: Passes,
    repetitions: int,
    after_pass: Callable[[], None] = lambda: None,
    devices: int = 1,
    strategy: Strategy | str = "auto",
    uses_lightnings_sigterm: bool = False,
    callbacks: Sequence[Callback] = (),
) -> Throughput:
    """Train `module` for a warm-up and timed passes over a workload; return the callback that measured throughput.

    Args:
        module: module to train.
        passes: workload, this rank's share of it on several devices; its timings are added here.
        repetitions: number of timed passes.
        after_pass: function to call after each timed pass.
        devices: number of devices.
        strategy: Lightning's strategy.
        uses_lightnings_sigterm: agreement of the ranks on a SIGTERM by Lightning's broadcast before each micro-batch,
            instead of by our callback.
        callbacks: callbacks besides those of a run on the command line.
    """
    machine, workload = passes.memory.machine, passes.workload
    num_passes = WARM_UP_PASSES + repetitions
    silent, throughput = Console(file=io.StringIO()), Throughput()
    usual = [*([] if uses_lightnings_sigterm else [Preemption()]), Diagnosis(), throughput, RunProgress(silent)]
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            accelerator=machine.accelerator,
            devices=devices,
            strategy=strategy,
            precision=machine.precision,
            max_epochs=1,
            max_steps=num_passes * len(workload.steps),
            accumulate_grad_batches=workload.num_micro_batches,
            gradient_clip_val=CLIP_NORM,
            log_every_n_steps=LOG_EVERY_N_STEPS,
            # The clock is last, so that it also times what the other callbacks do after a batch.
            callbacks=[*usual, *callbacks, PassClock(passes, after_pass)],
            logger=True,
            limit_val_batches=0,
            enable_checkpointing=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        trainer.fit(module, PreparedLoader(workload, num_passes))
    return throughput
