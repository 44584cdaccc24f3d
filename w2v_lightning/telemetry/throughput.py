"""Training throughput: audio-seconds per second, and where the time goes.

Reported per logged window, and over the run in `throughput.json`:

- `data_wait_share`: share of the time in which the device was idle and the host waited for the next batch.
- `device_share`: share in which the device was processing a micro-batch, gaps between its kernels included. If
  `gpu_utilisation`, the share in which a kernel ran, is much lower, the host launches kernels too slowly.
- `host_share`: the rest, between two micro-batches: copying a batch, logging, callbacks, writing a checkpoint.
- `padding_share`: share of padding in the audio that the device processed.

The first three add up to 1. They come from events on the device's own clock (`step_timer.py`), and the host never waits
for the device: work that is unfinished counts in the next window. Validation is left out.
"""

import json
import logging
from dataclasses import asdict, fields, replace
from pathlib import Path
from time import perf_counter
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from w2v_lightning.data.batch import Batch
from w2v_lightning.model.flops import training_flops
from w2v_lightning.runtime.files import atomic_text_file
from w2v_lightning.runtime.hardware import device_name, matrix_flops_per_s, versions
from w2v_lightning.runtime.precision import products_dtype
from w2v_lightning.runtime.schema import conforms
from w2v_lightning.telemetry import all_reduce
from w2v_lightning.telemetry.communication import ExposedTime, Traffic
from w2v_lightning.telemetry.gpu import GpuSampler, GpuUse
from w2v_lightning.telemetry.measurements import Measurements, Tally, Validations, merge_windows, ratio
from w2v_lightning.telemetry.run_context import host, process_age_s, workload
from w2v_lightning.telemetry.step_timer import StepTimer, new_event
from w2v_lightning.training.run_folder import output_folder

log = logging.getLogger(__name__)

MOST_WINDOWS = 256
MFU_FORMULA = (
    "FLOPs of forward and backward of the real audio (w2v_lightning/model/flops.py, a multiply-add counts as two)"
    " / (seconds x devices x matrix_flops_per_s, which was measured as the run began)"
)


def _logged_as(rate: str) -> str:
    return rate if rate == "audio_s_per_s" else f"throughput/{rate}"


class Throughput(Callback):
    """Callback that logs `audio_s_per_s` over all devices (real audio over wall-clock time) and `throughput/...`.

    At the end of a run, also of one that fails, it writes the same over the whole run to LOG_DIR/throughput.json.

    On several devices the file also has `communication` (communication.py), for the steps since this process started.

    The file also holds what explains the speed and allows to predict it on another machine: `workload` and `host`
    (run_context.py), `all_reduce` at the start of training (all_reduce.py), `startup_s` from the start of the process
    to its first step, `validation`, `graphs` (use of CUDA graphs, model/graphs.py), and `windows`: the sums of each
    logged window since the process started (the first ones include compilation). Neighbouring windows are added up so
    that at most 256 are left.

    The plan gives every rank the same share of audio, so the log extrapolates from this rank's; the file has the sum
    over all ranks.
    """

    logged_names = tuple(_logged_as(name) for name in Measurements().rates(None))

    def __init__(self) -> None:
        self.run = Measurements()  # sum of the closed windows
        self.windows: list[Measurements] = []  # the closed windows since this process started
        self._tally = Tally()  # the open window
        self._num_samples: list[Tensor] = []  # samples of each utterance in the open window
        self._window_start: float | None = None
        self._timer: StepTimer | None = None
        self._sampler: GpuSampler | None = None
        self._exposed: ExposedTime | None = None
        self.communication: dict[str, Any] | None = None  # set at the end of the run
        self._traffic: Traffic | None = None  # counters at the start of training
        self._device = torch.device("cpu")
        self._graphs: Any = None
        self._folder: Path | None = None
        self._waited_s = 0.0  # the loader's total wait when the last micro-batch arrived
        self._peak_flops_per_s: float | None = None
        self._validation_start: float | None = None
        self._context: dict[str, Any] = {}  # properties of the run that are constant during training

    @property
    def audio_seconds(self) -> float:
        """Real audio trained on, over all devices, including the time before the run was resumed (s)."""
        return self.run.tally.audio_s

    @property
    def train_seconds(self) -> float:
        """Wall-clock time of training, including the time before the run was resumed (s)."""
        return self.run.tally.seconds

    def state_dict(self) -> dict[str, Any]:
        # The open window is included: its steps are done when a checkpoint is saved.
        return asdict(self.run + Measurements(self._open_tally()))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        types = {field.name: cast("type[Any]", field.type) for field in fields(Measurements)}
        if set(state_dict) == set(types) and conforms(state_dict, Measurements):  # skips states of older versions
            self.run = Measurements(**{name: types[name](**state_dict[name]) for name in types})

    # ---- windows ------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._device = device = pl_module.device  # kept, because Lightning moves the model to the CPU at the end
        self._folder = output_folder(trainer)  # collective: all ranks
        self._timer = StepTimer(lambda: new_event(device))
        self._exposed, self.communication, self._traffic = ExposedTime(device), None, Traffic.now()
        self._sampler = GpuSampler.for_device(device)
        if self._sampler:
            self._sampler.start()
        self._world_size = trainer.world_size
        self._graphs = getattr(pl_module, "graphs", None)
        self._model_config = getattr(getattr(pl_module, "model", None), "config", None)
        self._trains_feature_encoder = any(
            p.requires_grad for name, p in pl_module.named_parameters() if "feature_extractor" in name
        )
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]  # set by Lightning's setup
            self._peak_flops_per_s = trainer.world_size * _matrix_flops_per_s(device, trainer.precision)
            self._context = _run_context(trainer, pl_module)
        self._start_window(trainer)  # Lightning calls no on_train_epoch_start for an epoch resumed midway

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start_window(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close_window()
        self._validation_start = perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            assert self._validation_start is not None
            self.run.validations += Validations(1, perf_counter() - self._validation_start)
        self._start_window(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close_window()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        assert self._timer is not None
        self._timer.start()

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        assert self._exposed is not None
        self._exposed.before_backward(trainer.strategy, loss)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._exposed is not None
        self._exposed.after_backward()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        assert self._timer is not None
        waited_s = _waited_s(trainer)
        self._timer.end(waited_s - self._waited_s)
        self._waited_s = waited_s
        self._count(batch, trainer.world_size)
        if batch.is_last_of_step and trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self._log(pl_module, self._close_window())
            self._window_start = perf_counter()

    def _count(self, batch: Batch, world_size: int) -> None:
        """Add a micro-batch to the open window, reading only tensors on the CPU: no wait for the device."""
        tally = self._tally
        tally.steps += batch.is_last_of_step
        tally.computed_s += batch.waveforms_BT.numel() / batch.sample_rate * world_size
        if not batch.is_filler:
            tally.audio_s += batch.audio_seconds * world_size
            tally.utterances += len(batch) * world_size
            self._num_samples.append(batch.num_samples_B)

    def _start_window(self, trainer: Trainer) -> None:
        if self._timer is None:  # during `validate`, or the validation before training
            return
        self._window_start = perf_counter()
        self._waited_s = _waited_s(trainer)
        self._timer.restart()
        if self._sampler:
            self._sampler.take()

    def _open_tally(self) -> Tally:
        """Tally of the open window up to now; empty if nothing was trained in it."""
        if self._window_start is None or not self._tally.computed_s:
            return Tally()
        return replace(self._tally, seconds=perf_counter() - self._window_start, flops=self._open_flops())

    def _open_flops(self) -> float:
        if self._model_config is None or not self._num_samples:
            return 0.0
        num_samples_B, trained = torch.cat(self._num_samples), self._trains_feature_encoder
        return self._world_size * training_flops(self._model_config, num_samples_B, trains_feature_encoder=trained)

    def _close_window(self) -> Measurements:
        """Add the open window, if there is one, to the run."""
        window = Measurements(self._open_tally())
        if window.tally.seconds:
            assert self._timer is not None
            window.times = self._timer.take()
            window.gpu = self._sampler.take() if self._sampler else GpuUse()
        if window.tally.steps:
            self.windows = merge_windows([*self.windows, window], MOST_WINDOWS)
        self.run += window
        self._tally, self._num_samples, self._window_start = Tally(), [], None
        return window

    def _log(self, pl_module: LightningModule, window: Measurements) -> None:
        rates = window.rates(self._peak_flops_per_s)
        for name, value in rates.items():
            if value is not None:
                # A tensor on the CPU: Lightning would copy a float to the device and wait for it.
                pl_module.log(_logged_as(name), torch.tensor(value))

    # ---- the run ------------------------------------------------------------------------------------------------

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop()
        self.run.tally, *tallies = _summed_over_ranks([self.run.tally, *(w.tally for w in self.windows)], trainer)
        self.windows = [replace(window, tally=tally) for window, tally in zip(self.windows, tallies, strict=True)]
        self.communication = self._exposed.report(trainer.strategy) if self._exposed else None
        self._write(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop()
        try:
            self._write(trainer)
        except Exception as error:  # must not hide the exception that ended the run
            log.warning("throughput.json could not be written: %s", error)

    def _stop(self) -> None:
        self._close_window()
        if self._timer:
            self.run.times += self._timer.take()  # by now the device has finished the last micro-batches
        if self._sampler:
            self._sampler.stop()
        self._timer = self._sampler = None

    def _write(self, trainer: Trainer) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]  # set by Lightning's setup
            return
        if self._folder and self.run.tally.steps and trainer.is_global_zero:
            with atomic_text_file(self._folder / "throughput.json") as file:
                json.dump(self._report(trainer), file, indent=1)

    def _report(self, trainer: Trainer) -> dict[str, Any]:
        device = self._device
        tally, power_w = self.run.tally, self.run.gpu.mean_power_w
        energy_wh = power_w and power_w * trainer.world_size * tally.seconds / 3600
        peak = self._peak_flops_per_s
        return {
            **self.run.rates(peak),
            "energy_wh_per_audio_hour": energy_wh and ratio(energy_wh, tally.audio_s / 3600),
            "peak_memory_gib": torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None,
            **self._context,
            "flops_per_audio_s": ratio(tally.flops, tally.audio_s),
            "communication": self.communication,
            **self._network_rates(),
            "validation": asdict(self.run.validations),
            "graphs": asdict(self._graphs.statistics) if self._graphs else None,
            "windows": [_sums(window, device) for window in self.windows],
            "audio_hours": tally.audio_s / 3600,
            "utterances": tally.utterances,
            "steps": tally.steps,
            "train_seconds": tally.seconds,
            "device": device_name(device),
            "world_size": trainer.world_size,
            "backend": getattr(trainer.strategy, "process_group_backend", None),
            "backend_reason": getattr(trainer.strategy, "backend_reason", None),
            "precision": str(trainer.precision),
            "matrix_flops_per_s": peak and peak / trainer.world_size,
            "mfu_formula": MFU_FORMULA,
            "versions": versions(),
        }

    def _network_rates(self) -> dict[str, float]:
        """Network rates of the first process's host, from the start of training until now."""
        now = Traffic.now()
        return self._traffic.rates_until(now) if self._traffic and now else {}


def _run_context(trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
    """Collect constants of the run. Collective: every rank must call this."""
    return {
        "startup_s": process_age_s(),
        "workload": workload(trainer, pl_module),
        "host": host(trainer, pl_module.device),
        "all_reduce": all_reduce.measure(trainer.strategy, pl_module.parameters()),
    }


def _sums(window: Measurements, device: torch.device) -> dict[str, float]:
    """Sums of a window in the format of throughput.json; NVML's only with a GPU."""
    gpu = {f"gpu_{name}": value for name, value in asdict(window.gpu).items()} if device.type == "cuda" else {}
    sums = {**asdict(window.tally), **asdict(window.times), **gpu}
    return {name: round(value, 6) for name, value in sums.items() if name != "flops"}


def _waited_s(trainer: Trainer) -> float:
    """Total time waited for batches (s); 0 for loaders other than ours, whose waiting counts as the host's."""
    return getattr(trainer.train_dataloader, "waited_s", 0.0)


def _matrix_flops_per_s(device: torch.device, precision: str) -> float:
    """Measure one device's peak in the precision of the forward pass, without changing the random state of training."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        flops_per_s = matrix_flops_per_s(device, products_dtype(precision))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)  # so that peak_memory_gib leaves out the measurement
    return flops_per_s


def _summed_over_ranks(tallies: list[Tally], trainer: Trainer) -> list[Tally]:
    """Sum tallies over ranks.

    Each rank multiplied its own audio by the number of ranks, so the mean over ranks is the true sum.
    """
    if trainer.world_size == 1:
        return tallies
    types = [cast("type[Any]", field.type) for field in fields(Tally)]
    rows = [list(asdict(tally).values()) for tally in tallies]
    sums = torch.tensor(rows, dtype=torch.float64, device=trainer.strategy.root_device)
    means = cast("Tensor", trainer.strategy.reduce(sums, reduce_op="mean")).tolist()
    return [Tally(*(type_(round(value, 6)) for type_, value in zip(types, row, strict=True))) for row in means]
