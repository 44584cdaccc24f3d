"""Synthetic runs of a study: known parameters of the step-time model plus noise like that of a machine.

setups = [cpu(1), cpu(2), cpu(1, hosts=2, link_mbit=100, delay_ms=2), t4(4), t4(1, hosts=8)]
found = runs(parameters(setups), setups, noise=0.02, seed=0, repetitions=2)
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from w2v_lightning.catalog.instances import INSTANCES
from w2v_lightning.data import plan
from w2v_lightning.perf_model.runs import Run
from w2v_lightning.perf_model.step_time import LATENCY_BYTES, Parameters, Setup, all_reduce_s, names, terms
from w2v_lightning.planner.workload import AssumedEpoch

CPU = "AMD EPYC 7763 64-Core Processor, 1 thread"
CORES = 2
STEPS, STEPS_PER_WINDOW = 120, 4
# Epoch whose steps have the fill and padding of `t4()`.
EPOCH = AssumedEpoch(hours=100, batch_seconds=1600, fill=0.975, padded=1.025, utterance_s=12.3, source="runs")
STEPS_PER_EPOCH = 227  # 100 h in steps of 1,600 s
WINDOW_NOISE = 0.03

# Values by kind of parameter, as (CPU, GPU).
VALUES = {
    "flops_per_s": (9e9, 1.5e13),
    "contention": (0.15, 0.0),
    "launch_s": (0.0, 0.05),
    "overhead_s": (0.04, 0.015),
    "imbalance": (0.03, 0.008),
    "overlap": (0.5, 0.6),
    "hop_s": (80e-6, 20e-6),
    "bytes_per_s": (6e8, 6e9),
    "link_hop_s": (0.8e-3, 40e-6),  # plus twice the delay
    "link_efficiency": (0.85, 0.75),
    "decode_audio_s_per_s": (4000.0, 4000.0),
    "storage_audio_s_per_s": (50.0, 50.0),  # at 8 Mbit/s; proportional for other rates
}


def cpu(
    processes: int = 1,
    hosts: int = 1,
    link_mbit: float | None = None,
    delay_ms: float = 0.0,
    storage_mbit: float | None = None,
    workers: int = 1,
    **changes: Any,
) -> Setup:
    """Return a setup of single-threaded processes on one machine of two cores, with a small model."""
    world_size = processes * hosts
    setup = Setup(
        device=CPU,
        device_share=min(1.0, CORES / world_size),
        precision="32-true",
        flops_per_audio_s=4e8,
        hosts=hosts,
        devices_per_host=processes,
        loader_workers=workers,
        link=f"{link_mbit:g} Mbit/s, {delay_ms:g} ms" if link_mbit else "",
        link_bytes_per_s=link_mbit and link_mbit * 1e6 / 8,
        link_delay_s=delay_ms / 1000 if link_mbit else None,
        storage=f"{storage_mbit:g} Mbit/s" if storage_mbit else "disk",
        storage_bytes_per_s=storage_mbit and storage_mbit * 1e6 / 8,
        audio_s=58.0,
        computed_s=60.0,
        micro_batches=math.ceil(4 / world_size),
        gradient_bytes=8_000_000,
        gradient_buckets=2,
        hosts_per_machine=hosts,
        logged_every=STEPS_PER_WINDOW,
    )
    return replace(setup, **changes)


def t4(
    devices_per_host: int = 1, hosts: int = 1, workers: int = 4, precision: str = "16-mixed", **changes: Any
) -> Setup:
    """Return a setup of wav2vec2-base on ml.g4dn.2xlarge (1 T4) or ml.g4dn.12xlarge (4)."""
    instance_type = "ml.g4dn.2xlarge" if devices_per_host == 1 else "ml.g4dn.12xlarge"
    world_size = devices_per_host * hosts
    setup = Setup(
        device="Tesla T4",
        device_share=1.0,
        precision=precision,
        flops_per_audio_s=2.8e10,
        hosts=hosts,
        devices_per_host=devices_per_host,
        loader_workers=workers,
        link=instance_type if hosts > 1 else "",
        link_bytes_per_s=INSTANCES[instance_type].gbit_per_s * 1e9 / 8 if hosts > 1 else None,
        storage="FastFile",
        audio_s=1560.0,
        computed_s=1600.0,
        micro_batches=math.ceil(1600 / 100 / world_size),
        gradient_bytes=361_000_000,
        gradient_buckets=15,
        logged_every=STEPS_PER_WINDOW,
    )
    return replace(setup, **changes)


def parameters(setups: Sequence[Setup], **changes: float) -> dict[str, float]:
    """Return the setups' parameters from VALUES; `changes` replace values by kind, such as `imbalance=0.3`."""
    return {name: changes.get(kind, _value(kind, setup)) for setup in setups for kind, name in names(setup).items()}


def runs(
    parameters: Parameters, configurations: Sequence[Setup], noise: float = 0.02, seed: int = 0, repetitions: int = 1
) -> list[Run]:
    """Return one run of each configuration and repetition.

    Args:
        parameters: values of the parameters in step_time.names(setup) for every configuration.
        configurations: setups to run.
        noise: standard deviation of the logarithm of a run's speed; other figures are noisy in proportion.
        seed: seed of the noise.
        repetitions: number of runs of each configuration.
    """
    rng = np.random.default_rng(seed)
    return [
        _run(setup, parameters, noise, rng, repetition)
        for setup in configurations
        for repetition in range(1, repetitions + 1)
    ]


def cell_name(setup: Setup) -> str:
    """Return a name like that of study.matrix.Cell."""
    link = setup.link.replace(" Mbit/s, ", "mbit-").replace(" ms", "ms") if setup.is_cpu else setup.precision
    storage = f"storage-{setup.storage.replace(' Mbit/s', 'mbit')}" if setup.storage_bytes_per_s else ""
    parts = [_hardware(setup), f"{setup.hosts}x{setup.devices_per_host}", link, storage]
    return "-".join(filter(None, [*parts, f"{setup.computed_s:g}s", f"workers-{setup.loader_workers}"]))


def _value(kind: str, setup: Setup) -> float:
    value = VALUES[kind][not setup.is_cpu]
    if kind == "link_hop_s":
        return value + 2 * (setup.link_delay_s or 0.0)
    if kind == "storage_audio_s_per_s":
        assert setup.storage_bytes_per_s
        return value * setup.storage_bytes_per_s / 1e6
    return value


def _hardware(setup: Setup) -> str:
    if setup.is_cpu:
        return "local"
    return "ml.g4dn.2xlarge" if setup.devices_per_host == 1 else "ml.g4dn.12xlarge"


def _run(setup: Setup, parameters: Parameters, noise: float, rng: np.random.Generator, repetition: int) -> Run:
    throughput = _throughput(setup, parameters, noise, rng)
    train_s = throughput["train_seconds"]
    training_s = train_s + throughput["startup_s"]
    is_local = setup.is_cpu
    return Run(
        name=f"{cell_name(setup)}-r{repetition}",
        cell=_cell(setup, repetition),
        where="local" if is_local else "sagemaker",
        date="2026-11-20T12:00:00+00:00",
        environment={
            "cpu": "AMD EPYC 7763",
            "cores": CORES if is_local else 8,
            "gib": 8,
            "versions": {"torch": "2.11"},
        },
        throughput=throughput,
        wer=[{"step": STEPS * i // 4, "elapsed_s": training_s * i / 4, "wer": 1.0 / (1 + i)} for i in range(1, 5)],
        segments=[],
        interruptions=0,
        training_s=training_s,
        billable_s=None if is_local else training_s,
        price=None if is_local else _price(setup),
        outcome="finished",
    )


def _cell(setup: Setup, repetition: int) -> dict[str, Any]:
    return {
        "name": cell_name(setup),
        "hardware": _hardware(setup),
        "count": setup.hosts,
        "devices_per_host": setup.devices_per_host,
        "is_spot": False,
        "precision": setup.precision,
        "options": {},
        "repetition": repetition,
        "link": setup.link,
        "link_bytes_per_s": setup.link_bytes_per_s,
        "link_delay_ms": setup.link_delay_s and 1000 * setup.link_delay_s,
        "is_emulated": setup.hosts_per_machine > 1,
        "storage": setup.storage,
        "storage_bytes_per_s": setup.storage_bytes_per_s,
        "threads": 1 if setup.is_cpu else None,
    }


def _price(setup: Setup) -> dict[str, Any]:
    usd_per_hour = 0.94 if setup.devices_per_host == 1 else 4.89
    return {"usd_per_hour": usd_per_hour, "date": "2026-09", "source": "made up", "region": "us-east-1"}


def _throughput(setup: Setup, parameters: Parameters, noise: float, rng: np.random.Generator) -> dict[str, Any]:
    def noisy(value: float, sd: float) -> float:
        return float(value * np.exp(sd * rng.standard_normal()))

    exact, speed = terms(setup, parameters), noisy(1.0, noise)
    compute_s = exact.compute_s * speed
    hidden_s = compute_s if setup.loader_workers else 0.0
    parts_s = {
        "wait": max(noisy(exact.data_s + exact.serial_loading_s, noise) - hidden_s, 0.0),
        "exposed": noisy(exact.exposed_s, noise),
        "waiting": noisy(exact.imbalance_s, 5 * noise),
        "rest": float(compute_s + exact.overhead_s * speed),
    }
    host_s = float(0.3 * exact.overhead_s * speed)
    windows = _windows(setup, parts_s, host_s, rng)
    seconds = sum(window["seconds"] for window in windows)
    audio_s = sum(window["audio_s"] for window in windows)
    return {
        "audio_s_per_s": audio_s / seconds,
        "utterances_per_s": audio_s / seconds / 12.3,
        "step_ms": 1000 * seconds / STEPS,
        "data_wait_share": parts_s["wait"] / sum(parts_s.values()),
        "host_share": host_s / sum(parts_s.values()),
        "gpu_utilisation": None if setup.is_cpu else 0.9 * parts_s["rest"] / sum(parts_s.values()),
        "energy_wh_per_audio_hour": None if setup.is_cpu else 0.5,
        "peak_memory_gib": None if setup.is_cpu else 11.2,
        "flops_per_audio_s": setup.flops_per_audio_s,
        "padding_share": 1 - setup.audio_s / setup.computed_s,
        "steps": STEPS,
        "audio_hours": audio_s / 3600,
        "train_seconds": seconds,
        "device": setup.device.rpartition(", ")[0] if setup.is_cpu else setup.device,
        "precision": setup.precision,
        "world_size": setup.world_size,
        "versions": {"torch": "2.11"},
        "windows": windows,
        "workload": {
            "plan_version": plan.VERSION,
            "batch_seconds": setup.computed_s,
            "device_seconds": setup.computed_s / setup.world_size / setup.micro_batches,
            "micro_batches_per_step": setup.micro_batches,
            "steps_per_epoch": STEPS_PER_EPOCH,
            "audio_s_per_epoch": STEPS_PER_EPOCH * setup.audio_s,
            "utterances_per_epoch": round(STEPS_PER_EPOCH * setup.audio_s / 12.3),
            "parameters": setup.gradient_bytes // 4,
            "gradient_bytes": setup.gradient_bytes,
            "gradient_buckets": setup.gradient_buckets,
            "loader_workers": setup.loader_workers,
        },
        "host": {
            "hosts": setup.hosts,
            "devices_per_host": setup.devices_per_host,
            "cores": CORES if setup.is_cpu else 8,
            "threads": 1 if setup.is_cpu else None,
        },
        "all_reduce": _all_reduce(setup, parameters, lambda value: noisy(value, 4 * noise)),
        "communication": _communication(setup, parts_s),
        "startup_s": noisy(20.0, 0.1),
        "validation": {"count": 2, "seconds": 0.05 * seconds},
    }


def _windows(
    setup: Setup, parts_s: dict[str, float], host_s: float, rng: np.random.Generator
) -> list[dict[str, float]]:
    """Windows of throughput.json; the first is slow, because it compiles."""
    step_s = sum(parts_s.values())
    windows = []
    for i in range(STEPS // STEPS_PER_WINDOW):
        factor = 2.0 if i == 0 else float(np.exp(WINDOW_NOISE * rng.standard_normal()))
        seconds = STEPS_PER_WINDOW * step_s * factor
        wait_s, other_s = (STEPS_PER_WINDOW * part_s * factor for part_s in (parts_s["wait"], host_s))
        windows.append(
            {
                "steps": STEPS_PER_WINDOW,
                "seconds": seconds,
                "audio_s": STEPS_PER_WINDOW * setup.audio_s,
                "computed_s": STEPS_PER_WINDOW * setup.computed_s,
                "utterances": round(STEPS_PER_WINDOW * setup.audio_s / 12.3),
                "total_s": seconds,
                "device_s": seconds - wait_s - other_s,
                "data_wait_s": wait_s,
            }
        )
    return windows


def _all_reduce(setup: Setup, parameters: Parameters, noisy: Callable[[float], float]) -> dict[str, Any] | None:
    if setup.world_size == 1:
        return None
    latency_s = sum(all_reduce_s(setup, parameters, LATENCY_BYTES, 1))
    gradients_s = sum(all_reduce_s(setup, parameters, setup.gradient_bytes, setup.gradient_buckets))
    return {
        "latency_ms": 1000 * noisy(latency_s),
        "gradients_ms": 1000 * noisy(gradients_s),
        "gradient_bytes": setup.gradient_bytes,
    }


def _communication(setup: Setup, parts_s: dict[str, float]) -> dict[str, Any] | None:
    """Summary like that of telemetry/communication.py: the exposed time includes waiting for others."""
    if setup.world_size == 1:
        return None
    exposed_ms, waiting_ms = 1000 * (parts_s["exposed"] + parts_s["waiting"]), 1000 * parts_s["waiting"]
    return {
        "steps": STEPS,
        "exposed_ms_per_step": exposed_ms,
        "exposed_ms_median": exposed_ms,
        "waiting_ms_per_step": waiting_ms,
        "waiting_ms_median": waiting_ms,
        "waiting_ms_per_step_of_ranks": [0.0] + [waiting_ms * 2] * (setup.world_size - 1),
    }
