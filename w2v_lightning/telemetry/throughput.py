"""How fast a run eats speech, and where its time goes: audio-seconds per second, and shares of the time.

Per logged window, and over the run in `throughput.json`:

- `data_wait_share`: the device had nothing in hand and the next batch was being waited for.
- `device_share`: the device had a micro-batch in hand. Gaps between its kernels count here. `gpu_utilisation`, the
  share of the time in which a kernel ran, shows them: where it is much lower, the host launches too slowly.
- `host_share`: the rest, between two micro-batches: copying a batch, logging, callbacks, writing a checkpoint.
- `padding_share`: of the audio that the device computed on, what was not real.

The first three make 1, by events on the device's own clock (`step_timer.py`). No device is waited for: what it has yet
to finish counts in the next window. Validation is left out.
"""

import json
import logging
from dataclasses import asdict, fields, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from w2v_lightning.data.batch import SAMPLE_RATE, Batch
from w2v_lightning.model.flops import training_flops
from w2v_lightning.runtime.files import atomic_text_file
from w2v_lightning.runtime.hardware import device_name, matrix_flops_per_s, versions
from w2v_lightning.runtime.precision import products_dtype
from w2v_lightning.telemetry import all_reduce
from w2v_lightning.telemetry.circumstances import host, process_age_s, workload
from w2v_lightning.telemetry.communication import ExposedTime, Traffic
from w2v_lightning.telemetry.gpu import GpuSampler, GpuUse
from w2v_lightning.telemetry.measured import Measured, Tally, Validations, condensed, ratio
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
    """Logs `audio_s_per_s` over all devices (real audio over wall-clock time) and `throughput/...`, see above.

    At the end of a run, also of one that fails, LOG_DIR/throughput.json has the same over the whole run.

    On several devices the file also has `communication` (communication.py), of the steps since this process started.

    What explains the speed, and lets another machine's be predicted, is there too: `workload` and `host`
    (circumstances.py), `all_reduce` as training began (all_reduce.py), `startup_s` from the start of the process to its
    first step, `validation`, and since then `windows`: the sums of each logged window, of which the first ones still
    compile. Neighbours are added up so that there are at most 256.

    The plan gives every rank the same share, so in the log this rank's audio stands for the others'; the file has the
    sum over all ranks.
    """

    logged_names = tuple(_logged_as(name) for name in Measured().rates(None))

    def __init__(self) -> None:
        self.run = Measured()  # windows that are closed
        self.windows: list[Measured] = []  # the same, one by one, since this process started
        self._tally = Tally()  # the open window
        self._num_samples: list[Tensor] = []  # of its utterances
        self._window_start: float | None = None
        self._timer: StepTimer | None = None
        self._sampler: GpuSampler | None = None
        self._exposed: ExposedTime | None = None
        self.communication: dict[str, Any] | None = None  # of the run, once it is over
        self._traffic: Traffic | None = None  # as training began
        self._device = torch.device("cpu")
        self._folder: Path | None = None
        self._waited_s = 0.0  # as the loader counts it, when the last micro-batch came
        self._peak_flops_per_s: float | None = None
        self._validation_start: float | None = None
        self._circumstances: dict[str, Any] = {}  # what does not change as training goes on

    @property
    def audio_seconds(self) -> float:
        """Real audio trained on, over all devices, also before the run was resumed."""
        return self.run.tally.audio_s

    @property
    def train_seconds(self) -> float:
        """Wall-clock time of it."""
        return self.run.tally.seconds

    def state_dict(self) -> dict[str, Any]:
        return asdict(self.run + Measured(self._open_tally()))  # saved within a window, its steps are done

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        kinds = {field.name: field.type for field in fields(Measured)}
        if set(state_dict) == set(kinds):  # else it is of an older version
            self.run = Measured(**{name: kinds[name](**state_dict[name]) for name in kinds})

    # ---- windows ------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._device = device = pl_module.device  # at the end of the run the model is on the CPU again
        self._folder = output_folder(trainer)  # asks all ranks
        self._timer = StepTimer(lambda: new_event(device))
        self._exposed, self.communication, self._traffic = ExposedTime(device), None, Traffic.now()
        self._sampler = GpuSampler.of(device)
        if self._sampler:
            self._sampler.start()
        self._world_size = trainer.world_size
        self._model_config = getattr(getattr(pl_module, "model", None), "config", None)
        self._trains_feature_encoder = any(
            p.requires_grad for name, p in pl_module.named_parameters() if "feature_extractor" in name
        )
        if not trainer.fast_dev_run:
            self._peak_flops_per_s = trainer.world_size * _matrix_flops_per_s(device, trainer.precision)
            self._circumstances = _circumstances(trainer, pl_module)
        self._start_window(trainer)  # an epoch that is resumed in the middle does not start

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start_window(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close_window()
        self._validation_start = perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self.run.validations += Validations(1, perf_counter() - self._validation_start)
        self._start_window(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close_window()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx) -> None:
        self._timer.start()

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self._exposed.before_backward(trainer.strategy, loss)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._exposed.after_backward()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs, batch: Batch, batch_idx
    ) -> None:
        waited_s = _waited_s(trainer)
        self._timer.end(waited_s - self._waited_s)
        self._waited_s = waited_s
        self._count(batch, trainer.world_size)
        if batch.is_last_of_step and trainer.global_step % trainer.log_every_n_steps == 0:
            self._log(pl_module, self._close_window())
            self._window_start = perf_counter()

    def _count(self, batch: Batch, world_size: int) -> None:
        """One micro-batch, from what lies on the CPU: the device is not asked."""
        tally = self._tally
        tally.steps += batch.is_last_of_step
        tally.computed_s += batch.waveforms_BT.numel() / SAMPLE_RATE * world_size
        if not batch.is_filler:
            tally.audio_s += batch.audio_seconds * world_size
            tally.utterances += len(batch) * world_size
            self._num_samples.append(batch.num_samples_B)

    def _start_window(self, trainer: Trainer) -> None:
        if self._timer is None:  # `validate`, or the validation before training
            return
        self._window_start = perf_counter()
        self._waited_s = _waited_s(trainer)
        self._timer.restart()
        if self._sampler:
            self._sampler.take()

    def _open_tally(self) -> Tally:
        """Of the open window, up to now; nothing where nothing was trained in it: a checkpoint was written, say."""
        if self._window_start is None or not self._tally.computed_s:
            return Tally()
        return replace(self._tally, seconds=perf_counter() - self._window_start, flops=self._open_flops())

    def _open_flops(self) -> float:
        if self._model_config is None or not self._num_samples:
            return 0.0
        num_samples_B, trained = torch.cat(self._num_samples), self._trains_feature_encoder
        return self._world_size * training_flops(self._model_config, num_samples_B, trains_feature_encoder=trained)

    def _close_window(self) -> Measured:
        """Add the open window, if there is one, to the run."""
        window = Measured(self._open_tally())
        if window.tally.seconds:
            window.times = self._timer.take()
            window.gpu = self._sampler.take() if self._sampler else GpuUse()
        if window.tally.steps:
            self.windows = condensed([*self.windows, window], MOST_WINDOWS)
        self.run += window
        self._tally, self._num_samples, self._window_start = Tally(), [], None
        return window

    def _log(self, pl_module: LightningModule, window: Measured) -> None:
        rates = window.rates(self._peak_flops_per_s)
        for name, value in rates.items():
            if value is not None:
                # As a tensor on the CPU: Lightning would copy a float to the device, and wait for that.
                pl_module.log(_logged_as(name), torch.tensor(value))

    # ---- the run ------------------------------------------------------------------------------------------------

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop()
        self.run.tally, *tallies = _summed_over_ranks([self.run.tally, *(w.tally for w in self.windows)], trainer)
        self.windows = [replace(window, tally=tally) for window, tally in zip(self.windows, tallies, strict=True)]
        self.communication = self._exposed and self._exposed.report(trainer.strategy)
        self._write(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop()
        try:
            self._write(trainer)
        except Exception as error:  # what ended the run is the news, not this
            log.warning("throughput.json could not be written: %s", error)

    def _stop(self) -> None:
        self._close_window()
        if self._timer:
            self.run.times += self._timer.take()  # the device is through with the last of them by now
        if self._sampler:
            self._sampler.stop()
        self._timer = self._sampler = None

    def _write(self, trainer: Trainer) -> None:
        if self._folder and self.run.tally.steps and trainer.is_global_zero and not trainer.fast_dev_run:
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
            **self._circumstances,
            "flops_per_audio_s": ratio(tally.flops, tally.audio_s),
            "communication": self.communication,
            **self._network_rates(),
            "validation": asdict(self.run.validations),
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
        """Of the first process's host, from the start of training to now."""
        now = Traffic.now()
        return self._traffic.rates_until(now) if self._traffic and now else {}


def _circumstances(trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
    """All ranks have to ask: they exchange messages."""
    return {
        "startup_s": process_age_s(),
        "workload": workload(trainer, pl_module),
        "host": host(trainer, pl_module.device),
        "all_reduce": all_reduce.measured(trainer.strategy, pl_module.parameters()),
    }


def _sums(window: Measured, device: torch.device) -> dict[str, float]:
    """Of a window, as throughput.json has them; what NVML said only where there is a GPU."""
    gpu = {f"gpu_{name}": value for name, value in asdict(window.gpu).items()} if device.type == "cuda" else {}
    sums = {**asdict(window.tally), **asdict(window.times), **gpu}
    return {name: round(value, 6) for name, value in sums.items() if name != "flops"}


def _waited_s(trainer: Trainer) -> float:
    """For how long the training loader's batches were waited for; another loader's waiting counts as the host's."""
    return getattr(trainer.train_dataloader, "waited_s", 0.0)


def _matrix_flops_per_s(device: torch.device, precision: str) -> float:
    """What one device reaches in the precision of the forward pass. The random numbers of training stay as they are."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        flops_per_s = matrix_flops_per_s(device, products_dtype(precision))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)  # these matrices were not the model's
    return flops_per_s


def _summed_over_ranks(tallies: list[Tally], trainer: Trainer) -> list[Tally]:
    """Each rank has counted its own audio as often as there are ranks: the mean is the sum of what they had."""
    if trainer.world_size == 1:
        return tallies
    kinds = [field.type for field in fields(Tally)]
    sums = [list(asdict(tally).values()) for tally in tallies]
    sums = torch.tensor(sums, dtype=torch.float64, device=trainer.strategy.root_device)
    means = trainer.strategy.reduce(sums, reduce_op="mean").tolist()
    return [Tally(*(kind(round(value, 6)) for kind, value in zip(kinds, row, strict=True))) for row in means]
