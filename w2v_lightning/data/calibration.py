"""`data.device_seconds: auto`: micro-batch size for this device, model and precision, found by a few trial steps."""

import gc
import hashlib
import json
import logging
import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.seed import isolate_rng

from w2v_lightning.compat.torch import memory_fraction
from w2v_lightning.data.trial import NoiseDataset, Trial, is_out_of_memory
from w2v_lightning.errors import InputError
from w2v_lightning.runtime.files import atomic_text_file
from w2v_lightning.runtime.hardware import device_name, versions
from w2v_lightning.runtime.user_cache import cache_root

log = logging.getLogger(__name__)

DEFAULT_DEVICE_SECONDS = 200.0  # fits wav2vec2-base in 16 GB
DEFAULT_GIB = 16.0
MARGIN = 0.1  # of the device's memory: the order of batch lengths in training changes the fragmentation
PRECISION = 1.08  # the search ends at this ratio of the smallest failing to the largest fitting size
AS_FAST = 0.97  # of the fastest: sizes at or above this count as equally fast
SEARCH_FOR_S = 40.0  # time limit, from the end of the first trial, which may compile


def calibrate(trainer: Trainer, dataset: NoiseDataset, batch_seconds: float) -> float:
    """Find the best number of seconds of audio, with padding, for one forward and backward pass on one device.

    On a CUDA device, this is the most that fits with a margin, or less if that is as fast. Elsewhere it follows from
    the main memory. The result is the same on all ranks: the minimum over them.
    Call it on all ranks, after Lightning has set up the device. The module, the random states and the memory statistics
    of torch stay unchanged. The result is kept in the cache folder.

    Args:
        trainer: the trainer, with its LightningModule attached.
        dataset: the training data; the shortest and the longest utterance are tried.
        batch_seconds: seconds of a global step, the upper limit of the search.

    Raises:
        InputError: not even the longest utterance alone fits.
    """
    device = trainer.strategy.root_device
    measure = _by_trials if device.type == "cuda" else _by_main_memory
    seconds, how = measure(trainer, dataset, batch_seconds)
    seconds = _least_of_all_ranks(trainer, seconds)
    if seconds == 0:
        raise InputError(
            f"data.device_seconds=auto: not even the longest utterance, {dataset.longest_s:.2f} s, fits into the memory"
            f" of {device_name(device)}. Leave out long utterances with data.max_seconds, or use less memory with"
            " model.gradient_checkpointing=true or a lower trainer.precision."
        )
    log.info("data.device_seconds: %g s on %s in %s, %s.", seconds, device_name(device), trainer.precision, how)
    return seconds


def _by_trials(trainer: Trainer, dataset: NoiseDataset, batch_seconds: float) -> tuple[float, str]:
    facts = _facts(trainer, dataset, batch_seconds)
    path = cache_root() / "calibration" / f"{_digest(facts)}.json"
    if (seconds := _cached(path)) is not None:
        return seconds, f"cached in {path}"
    started = time.monotonic()
    with isolate_rng():
        seconds = _search(trainer, dataset, batch_seconds)
    _reset_memory(trainer.strategy.root_device)
    if seconds > 0:
        _save(path, seconds, facts)
    return seconds, f"found in {time.monotonic() - started:.0f} s"


def _by_main_memory(trainer: Trainer, dataset: NoiseDataset, batch_seconds: float) -> tuple[float, str]:
    """Scale the default with the main memory: larger batches are hardly faster on a CPU, they only need to fit."""
    gib = main_memory_gib() / trainer.num_devices
    seconds = min(batch_seconds, DEFAULT_DEVICE_SECONDS * min(1.0, gib / DEFAULT_GIB))
    return max(dataset.longest_s, seconds), f"for {gib:.1f} GiB of main memory"


def largest_that_fits(
    peak_gib: Callable[[float, float], float],
    limit_gib: float,
    *,
    durations_s: Sequence[float],
    most_s: float,
    is_time_left: Callable[[], bool] = lambda: True,
) -> float:
    """Find by bisection the most seconds a batch can have; 0 if not even the longest utterance alone fits.

    The result was tried and did fit, so it is safe even if memory does not grow smoothly.

    Args:
        peak_gib: returns the peak memory of a batch, from its seconds and the duration (s) of its utterances; it may
            run out of memory.
        limit_gib: upper limit of the peak memory.
        durations_s: durations of the utterances to try; each must fit.
        most_s: upper limit of the search.
        is_time_left: whether to continue once a size fits.
    """

    def fits(seconds: float) -> bool:
        return all(_fits(peak_gib, seconds, duration_s, limit_gib) for duration_s in durations_s)

    fitting, failing = max(durations_s), most_s
    if not fits(fitting):
        return 0.0
    if fitting >= most_s or fits(most_s):
        return max(fitting, most_s)
    while failing / fitting > PRECISION and is_time_left():
        middle = math.sqrt(fitting * failing)
        if fits(middle):
            fitting = middle
        else:
            failing = middle
    return fitting


def _fits(peak_gib: Callable[[float, float], float], seconds: float, duration_s: float, limit_gib: float) -> bool:
    try:
        return peak_gib(seconds, duration_s) <= limit_gib
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return False  # the exception is dropped, and with it the traceback, which holds all activations


def smallest_as_fast(audio_s_per_s: Callable[[float], float], seconds: Sequence[float]) -> float:
    """Return the smallest of some batch sizes that is about as fast as the fastest: it saves memory at no cost."""
    rates = {s: audio_s_per_s(s) for s in seconds}
    return min(s for s, rate in rates.items() if rate >= AS_FAST * max(rates.values()))


def _search(trainer: Trainer, dataset: NoiseDataset, batch_seconds: float) -> float:
    longest_s = dataset.longest_s
    try:
        trial = Trial(trainer, dataset)
        trial.peak_gib(longest_s, longest_s)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return 0.0
    end = time.monotonic() + SEARCH_FOR_S
    largest_s = largest_that_fits(
        trial.peak_gib,
        _limit_gib(trainer.strategy.root_device),
        durations_s=(longest_s, dataset.shortest_s),
        most_s=batch_seconds,
        is_time_left=lambda: time.monotonic() < end,
    )
    candidates = [largest_s / 2**n for n in range(3) if largest_s / 2**n >= longest_s]
    return smallest_as_fast(trial.audio_s_per_s, candidates) if len(candidates) > 1 else largest_s


def _reset_memory(device: torch.device) -> None:
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)


def _limit_gib(device: torch.device) -> float:
    """Return the memory limit of this process: its allowed and free memory, less a margin."""
    free, total = torch.cuda.mem_get_info(device)
    allowed = total * memory_fraction(device)
    return (min(allowed, free + torch.cuda.memory_reserved(device)) - MARGIN * allowed) / 2**30


def _least_of_all_ranks(trainer: Trainer, seconds: float) -> float:
    if trainer.world_size == 1:
        return seconds
    on_device = torch.tensor(seconds, dtype=torch.float64, device=trainer.strategy.root_device)
    return float(trainer.strategy.reduce(on_device, reduce_op="min"))


def main_memory_gib() -> float:
    """Return the main memory of this machine; DEFAULT_GIB if the system does not report it."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return DEFAULT_GIB


# ---- cached results ---------------------------------------------------------------------------------------------


def _facts(trainer: Trainer, dataset: NoiseDataset, batch_seconds: float) -> dict[str, Any]:
    """Return everything that the result depends on; its digest is the cache key."""
    device, module = trainer.strategy.root_device, trainer.lightning_module
    model = getattr(module, "model", None)
    config = model.config.to_dict() if model is not None and hasattr(model, "config") else {}
    parameters = [(name, tuple(p.shape), str(p.dtype), p.requires_grad) for name, p in module.named_parameters()]
    return {
        "device": device_name(device),
        "memory_gib": round(torch.cuda.get_device_properties(device).total_memory / 2**30, 2),
        "memory_fraction": memory_fraction(device),
        "precision": trainer.precision,
        "several_devices": trainer.world_size > 1,
        "module": type(module).__qualname__,
        "model": _digest(config),
        "parameters": _digest(parameters),
        "gradient_checkpointing": getattr(model, "is_gradient_checkpointing", False),
        "speed": repr(getattr(module, "speed", None)),
        "batch_seconds": batch_seconds,
        "durations_s": [round(dataset.shortest_s, 2), dataset.longest_s],
        **versions(),
    }


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _cached(path: Path) -> float | None:
    """Return the cached result; None if there is none, or the file is damaged."""
    try:
        seconds = json.loads(path.read_text(encoding="utf-8"))["device_seconds"]
        return float(seconds) if 0 < seconds < math.inf else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _save(path: Path, seconds: float, facts: dict[str, Any]) -> None:
    try:
        with atomic_text_file(path) as file:
            json.dump({"device_seconds": seconds, **facts}, file, indent=1)
    except OSError as error:
        log.warning("data.device_seconds: the result cannot be cached in %s (%s).", path, error.strerror)
