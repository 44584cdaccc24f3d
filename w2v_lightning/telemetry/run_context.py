"""Context of a run's speed besides its device: the work of a step, and the machine."""

import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from w2v_lightning.data import plan
from w2v_lightning.data.datamodule import LibriSpeechDataModule
from w2v_lightning.runtime.cores import usable_cores
from w2v_lightning.telemetry.all_reduce import bucket_bytes


def workload(trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
    """Return the planned work of a global step and of an epoch; without our data module, only the model's part."""
    parameters = list(pl_module.parameters())
    buckets = bucket_bytes(parameters)
    return {
        **_planned_work(trainer),
        "parameters": sum(p.numel() for p in parameters),
        "gradient_bytes": sum(buckets),
        "gradient_buckets": len(buckets),
    }


def host(trainer: Trainer, device: torch.device) -> dict[str, Any]:
    """Describe the machine: `cores` of one host that this process may use, `threads` that compute (None on a GPU)."""
    return {
        "hosts": trainer.num_nodes,
        "devices_per_host": trainer.world_size // trainer.num_nodes,
        "cores": usable_cores(),
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
    }


def process_age_s() -> float | None:
    """Seconds since this process was started, imports included; None on systems without /proc (Linux has it)."""
    try:
        # Field 22 of proc(5) is the start time. Field 2, in parentheses, may contain spaces: split after it.
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        up_s = float(Path("/proc/uptime").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return None
    return up_s - ticks / os.sysconf("SC_CLK_TCK")


def _planned_work(trainer: Trainer) -> dict[str, Any]:
    data = getattr(trainer, "datamodule", None)
    if not isinstance(data, LibriSpeechDataModule):
        return {}
    sampler, loader = data.train_sampler, trainer.train_dataloader
    assert loader is not None, "called before training has started"
    return {
        "plan_version": plan.VERSION,
        "batch_seconds": data.batch_seconds,
        "device_seconds": data.device_seconds,
        "micro_batches_per_step": sampler.num_micro_batches,
        "steps_per_epoch": sampler.num_steps,
        "audio_s_per_epoch": float(sampler.durations_s_N.sum()),
        "utterances_per_epoch": len(sampler.durations_s_N),
        "loader_workers": loader.num_workers,
    }
