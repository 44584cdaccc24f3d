"""What is known of each parameter of the step-time model before any run: its specification, or what we have measured.

A parameter that runs say nothing about stays where its prior is, as wide as that is, and its source says what it is: a
specification, a measurement of ours, or assumed. So no number appears from nowhere.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from w2v_lightning.perf_model import specs
from w2v_lightning.perf_model.runs import Run
from w2v_lightning.perf_model.step_time import Setup, names

FLAC_BYTES_PER_AUDIO_S = 18_650  # 139 MB for 2.07 h of LibriSpeech (docs/results.md)
ANY_LINK = "link_efficiency of any link"
ANY_STORAGE = "audio_s_per_byte of any storage"


@dataclass(frozen=True)
class Prior:
    """A parameter's logarithm is normally distributed.

    Args:
        centre: the parameter's median; with a parent, in multiples of that.
        log_sd: standard deviation of its logarithm.
        source: of both, in words.
        parent: name of another parameter that this one is like.
    """

    centre: float
    log_sd: float
    source: str
    parent: str | None = None


def priors(runs: Sequence[Run]) -> dict[str, Prior]:
    """Of all parameters that the runs' step times follow from, by name; parents before those that are like them."""
    found = _of_devices(runs)
    if any(run.setup.hosts > 1 for run in runs):
        found[ANY_LINK] = SHARED[ANY_LINK]
    if any(run.setup.storage_bytes_per_s for run in runs):
        found[ANY_STORAGE] = SHARED[ANY_STORAGE]
    for run in runs:
        for what, name in names(run.setup).items():
            if name not in found:
                found[name] = specified(what, run.setup)
    return found


def specified(what: str, setup: Setup) -> Prior:
    """Of a parameter that does not follow from the device's speed, by specification or from what we measured once."""
    gpu = specs.find(setup.device)
    if what == "bytes_per_s" and gpu:
        return Prior(0.6e9 * gpu.peer_gb_per_s, 0.5, f"{gpu.peer_gb_per_s:g} GB/s to its peers by specification, x 0.6")
    if what == "link_hop_s" and setup.link_delay_s is not None:
        # gloo sends when the receiver has said that it is ready: once there and back. The switch takes its time, too.
        delay = f"twice the link's delay of {1000 * setup.link_delay_s:g} ms, and 0.7 ms"
        return Prior(2 * setup.link_delay_s + 0.7e-3, 0.3, delay)
    if what == "storage_audio_s_per_s":
        return Prior(setup.storage_bytes_per_s, 0.1, "the storage's rate, over the bytes of a second", ANY_STORAGE)
    return (CPU_PRIORS if setup.is_cpu else {}).get(what) or PRIORS[what]


# log_sd 0.7: within a factor of 2 in two cases of three.
SHARED = {
    ANY_LINK: Prior(0.8, 0.25, "assumed: 80 % of a link's specified rate"),
    ANY_STORAGE: Prior(1 / FLAC_BYTES_PER_AUDIO_S, 0.25, "LibriSpeech's FLAC: 18.65 kB for a second (docs/results.md)"),
}
PRIORS = {
    "imbalance": Prior(0.01, 1.0, "assumed: 1 % between devices"),
    "overlap": Prior(0.5, 0.4, "assumed: half of the last micro-batch; its backward pass is two thirds"),
    "launch_s": Prior(0.05, 0.4, "50 ms on the host of an H200, wav2vec2-base (docs/study/h200.md)"),
    "hop_s": Prior(25e-6, 0.7, "2 H200 of one host, 4 KiB (docs/results.md)"),
    "bytes_per_s": Prior(1e10, 1.0, "assumed: 10 GB/s between devices of unknown make"),
    "link_hop_s": Prior(50e-6, 0.7, "assumed: 50 microseconds between hosts of a data centre"),
    "link_efficiency": Prior(1.0, 0.15, "like other links, in relation to its specification", ANY_LINK),
    "decode_audio_s_per_s": Prior(4400.0, 0.5, "4,400 audio-s/s of a worker with a core (docs/results.md)"),
}
CPU_PRIORS = {
    "contention": Prior(0.1, 1.0, "assumed: processes on one CPU slow each other down by 10 %"),
    "imbalance": Prior(0.03, 1.0, "assumed: 3 % between processes"),
    "hop_s": Prior(100e-6, 1.0, "assumed: 100 microseconds between processes"),
    "bytes_per_s": Prior(1e9, 1.0, "assumed: 1 GB/s between processes, by gloo"),
}


# Where no run is of a GPU, they follow from the one that we have measured by itself, wav2vec2-base in steps of 1,600 s:
# docs/performance.md. The overhead is the optimiser, and as much again for all else.
ONCE_FLOPS_PER_AUDIO_S = 32.5e9
ONCE = {
    "flops_per_s of H200 in bf16-mixed": Prior(373e12, 0.1, "11,380 audio-s/s without flash-attn-4"),
    "flops_per_s of H200 in 16-mixed": Prior(343e12, 0.1, "10,448 audio-s/s without flash-attn-4"),
    "flops_per_s of H200 in 32-true": Prior(50.9e12, 0.1, "1,551 audio-s/s"),
    "overhead_s of H200 in bf16-mixed": Prior(2.2e-3, 0.7, "an optimiser step of 1.1 ms"),
}


def _of_devices(runs: Sequence[Run]) -> dict[str, Prior]:
    """Rates are left to the runs. Overhead is told from computing by runs that differ in computing; if none do, by the
    share that the host is seen to work between two micro-batches."""
    found: dict[str, list[float]] = {}
    for run in runs:
        setup, parts = run.setup, run.measured
        work = setup.computed_s * setup.flops_per_audio_s
        rate = work / (setup.world_size * setup.device_share * max(parts.compute_s, 0.01 * parts.step_s))
        host_s = max(parts.overhead_s, 0.002 * parts.step_s) * setup.device_share
        of = names(setup)
        found.setdefault(of["flops_per_s"], []).append(rate)
        found.setdefault(of["overhead_s"], []).append(host_s)
    return {name: _of_device(name, values) for name, values in found.items()}


def _of_device(name: str, values: Sequence[float]) -> Prior:
    if name.startswith("flops_per_s"):
        return Prior(median(values), 2.0, "what the runs reach, computing taken for all that is not seen to be else")
    return Prior(2 * median(values), 1.0, "twice what the host is seen to do between two micro-batches")


# ---- devices and links that no run has used -------------------------------------------------------------------------


def unseen(what: str, setup: Setup, fitted: Mapping[str, Any]) -> Prior | None:
    """Of a parameter that was not fitted, from those that were; None where nothing is known of it."""
    if what in ("flops_per_s", "overhead_s"):
        return _like_another_device(what, setup, fitted)
    if what == "launch_s" and (known := next((name for name in fitted if name.startswith("launch_s of ")), None)):
        return Prior(1.0, 0.4, f"as on the host of {known.removeprefix('launch_s of ')}", known)
    prior = specified(what, setup)
    if prior.parent and prior.parent not in fitted:
        parent = SHARED[prior.parent]
        return Prior(prior.centre * parent.centre, math.hypot(parent.log_sd, prior.log_sd), parent.source)
    return prior


def _like_another_device(what: str, setup: Setup, fitted: Mapping[str, Any]) -> Prior | None:
    """As fast as the nearest that was measured, times the ratio of the specifications."""
    return _nearest(what, setup, fitted) or _like_the_one_measured_once(what, setup)


def _like_the_one_measured_once(what: str, setup: Setup) -> Prior | None:
    """None for models of less than half its arithmetic, with which a GPU is not busy."""
    prior = _nearest(what, setup, ONCE)
    if prior is None or setup.flops_per_audio_s < ONCE_FLOPS_PER_AUDIO_S / 2:
        return None
    once = ONCE[prior.parent]
    source = f"{prior.source}; by itself it was measured once, {once.source} of wav2vec2-base (docs/performance.md)"
    return Prior(prior.centre * once.centre, math.hypot(prior.log_sd, once.log_sd), source)


def _nearest(what: str, setup: Setup, of: Mapping[str, Any]) -> Prior | None:
    near = [prior for name in of if name.startswith(f"{what} of ") and (prior := _by_ratio(what, setup, name))]

    def distance(prior: Prior) -> tuple[float, float, bool]:
        return prior.log_sd, abs(math.log(prior.centre)), not prior.parent.endswith(f" in {setup.precision}")

    return min(near, key=distance, default=None)


def _by_ratio(what: str, setup: Setup, name: str) -> Prior | None:
    device, _, precision = name.removeprefix(f"{what} of ").rpartition(" in ")
    compared = setup.device, setup.precision, device, precision
    ratio = specs.speed_ratio(*compared)
    if ratio is None:
        return None
    if what == "overhead_s":
        return Prior(1.0, 0.7, f"as on {device} in {precision}", name)
    least, most = (specs.speed_ratio(*compared, share) for share in (0.0, specs.MOST_MEMORY_SHARE))
    kernels = specs.of_kernels(*compared)
    # The two are the ends of the 90 % interval, 1.645 standard deviations from its middle. Even where they are alike,
    # what is reached of specifications depends on clocks, power and kernels: 25 % are left.
    log_sd = math.hypot(math.log(most / least) / 2 / 1.645, 0.25)
    source = (
        f"{device}'s in {precision}, x {ratio:.2g}, as matrix products, and a little as memory bandwidth (specs.py)"
    )
    if kernels != 1:
        source += (
            f", and x {kernels:.2g} for the ways of computing that GPUs before the A100 lack (docs/performance.md)"
        )
    return Prior(kernels * ratio, log_sd, source, name)
