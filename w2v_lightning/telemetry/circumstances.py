"""What a run's speed follows from besides its device: the work of a step, and the machine."""

import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from w2v_lightning.data import plan
from w2v_lightning.data.datamodule import LibriSpeechDataModule
from w2v_lightning.runtime.hardware import usable_cores
from w2v_lightning.telemetry.all_reduce import bucket_bytes


def workload(trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
    """The work of a global step and of an epoch, as planned; of other data than ours only what the model adds."""
    parameters = list(pl_module.parameters())
    buckets = bucket_bytes(parameters)
    return {
        **_of_plan(trainer),
        "parameters": sum(p.numel() for p in parameters),
        "gradient_bytes": sum(buckets),
        "gradient_buckets": len(buckets),
    }


def host(trainer: Trainer, device: torch.device) -> dict[str, Any]:
    """The machine: `cores` of one host that this process may use, `threads` of it that compute (None: a GPU does)."""
    return {
        "hosts": trainer.num_nodes,
        "devices_per_host": trainer.world_size // trainer.num_nodes,
        "cores": usable_cores(),
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
    }


def process_age_s() -> float | None:
    """Since this process was started, imports included; None where the system does not say (Linux does)."""
    try:
        # The 22nd field, and the second one may have spaces: proc(5).
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        up_s = float(Path("/proc/uptime").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return None
    return up_s - ticks / os.sysconf("SC_CLK_TCK")


def _of_plan(trainer: Trainer) -> dict[str, Any]:
    data = trainer.datamodule
    if not isinstance(data, LibriSpeechDataModule):
        return {}
    sampler = data.train_sampler
    return {
        "plan_version": plan.VERSION,
        "batch_seconds": data.batch_seconds,
        "device_seconds": data.device_seconds,
        "micro_batches_per_step": sampler.num_micro_batches,
        "steps_per_epoch": sampler.num_steps,
        "audio_s_per_epoch": float(sampler.durations_s_N.sum()),
        "utterances_per_epoch": len(sampler.durations_s_N),
        "loader_workers": trainer.train_dataloader.num_workers,
    }
