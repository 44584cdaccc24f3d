"""Priors of the step-time model's parameters: specifications, earlier measurements or assumptions.

A parameter that no run measures keeps its prior's centre and width, and `source` says where these come from. So every
number of the model has a source.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from w2v_lightning.perf_model import specs
from w2v_lightning.perf_model.runs import Run
from w2v_lightning.perf_model.step_time import Setup, names

FLAC_BYTES_PER_AUDIO_S = 18_650  # LibriSpeech: 139 MB for 2.07 h (docs/results.md)
ANY_LINK = "link_efficiency of any link"
ANY_GLOO_LINK = "link_efficiency of any link of CPUs"
ANY_STORAGE = "audio_s_per_byte of any storage"


@dataclass(frozen=True)
class Prior:
    """Normal distribution of a parameter's logarithm.

    Args:
        centre: median of the parameter; with a parent, the median of its ratio to the parent.
        log_sd: standard deviation of the logarithm.
        source: source of both, in words.
        parent: name of the parameter relative to which this one is known.
    """

    centre: float
    log_sd: float
    source: str
    parent: str | None = None


def priors(runs: Sequence[Run]) -> dict[str, Prior]:
    """Return the priors of all parameters of the runs' step times, by name; parents precede their children."""
    by_name = _device_priors(runs)
    for run in runs:
        for kind, name in names(run.setup).items():
            if name not in by_name:
                prior = specified(kind, run.setup)
                if prior.parent and prior.parent not in by_name:
                    by_name[prior.parent] = SHARED[prior.parent]
                by_name[name] = prior
    return by_name


def specified(kind: str, setup: Setup) -> Prior:
    """Return the prior of a parameter that does not depend on the device's speed.

    It comes from a specification, a single measurement or an assumption.
    """
    gpu = specs.find(setup.device)
    if kind == "bytes_per_s" and gpu:
        return Prior(0.6e9 * gpu.peer_gb_per_s, 0.5, f"{gpu.peer_gb_per_s:g} GB/s to its peers by specification, x 0.6")
    if kind == "link_hop_s" and setup.link_delay_s is not None:
        # gloo sends once the receiver has reported that it is ready, which takes a round trip. Switching adds 0.7 ms.
        delay = f"twice the link's delay of {1000 * setup.link_delay_s:g} ms, and 0.7 ms"
        return Prior(2 * setup.link_delay_s + 0.7e-3, 0.3, delay)
    if kind == "storage_audio_s_per_s":
        assert setup.storage_bytes_per_s  # `names` has the parameter only then
        return Prior(setup.storage_bytes_per_s, 0.1, "the storage's rate over the bytes of a second", ANY_STORAGE)
    return (CPU_PRIORS if setup.is_cpu else {}).get(kind) or PRIORS[kind]


# A log_sd of 0.7 means within a factor of 2 in two of three cases.
SHARED = {
    ANY_LINK: Prior(0.8, 0.25, "assumed: 80 % of a link's specified rate"),
    # gloo over emulated links of 50 to 200 Mbit/s tells nothing of NCCL over 5 to 3,200 Gbit/s, so each has its own.
    ANY_GLOO_LINK: Prior(0.8, 0.25, "assumed: 80 % of a link's specified rate"),
    ANY_STORAGE: Prior(1 / FLAC_BYTES_PER_AUDIO_S, 0.25, "LibriSpeech's FLAC: 18.65 kB per second (docs/results.md)"),
}
PRIORS = {
    "imbalance": Prior(0.01, 1.0, "assumed: 1 % between devices"),
    "overlap": Prior(0.5, 0.4, "assumed: half of the last micro-batch; its backward pass takes two thirds of the time"),
    "launch_s": Prior(0.05, 0.4, "50 ms, measured on the host of an H200 with wav2vec2-base (docs/study/h200.md)"),
    "hop_s": Prior(25e-6, 0.7, "measured on 2 H200 of one host, 4 KiB (docs/results.md)"),
    "bytes_per_s": Prior(1e10, 1.0, "assumed: 10 GB/s between devices of unknown type"),
    "link_hop_s": Prior(50e-6, 0.7, "assumed: 50 microseconds between hosts of a data centre"),
    "link_efficiency": Prior(1.0, 0.15, "the efficiency of other links of GPU hosts", ANY_LINK),
    "decode_audio_s_per_s": Prior(
        4400.0, 0.5, "4,400 audio-s/s, measured with one worker on one core (docs/results.md)"
    ),
}
CPU_PRIORS = {
    "link_efficiency": Prior(1.0, 0.15, "the efficiency of other links of CPUs", ANY_GLOO_LINK),
    "contention": Prior(0.1, 1.0, "assumed: processes on one CPU slow each other down by 10 %"),
    "imbalance": Prior(0.03, 1.0, "assumed: 3 % between processes"),
    "hop_s": Prior(100e-6, 1.0, "assumed: 100 microseconds between processes"),
    "bytes_per_s": Prior(1e9, 1.0, "assumed: 1 GB/s between processes with gloo"),
}


# Reference for GPUs without runs: wav2vec2-base in steps of 1,600 s (docs/performance.md). The overhead is the
# optimiser's, doubled for everything else.
REFERENCE_FLOPS_PER_AUDIO_S = 32.5e9
REFERENCE = {
    "flops_per_s of H200 in bf16-mixed": Prior(373e12, 0.1, "11,380 audio-s/s without flash-attn-4"),
    "flops_per_s of H200 in 16-mixed": Prior(343e12, 0.1, "10,448 audio-s/s without flash-attn-4"),
    "flops_per_s of H200 in 32-true": Prior(50.9e12, 0.1, "1,551 audio-s/s"),
    "overhead_s of H200 in bf16-mixed": Prior(2.2e-3, 0.7, "an optimiser step of 1.1 ms"),
}

# Observations by others: one figure each, with an interval as wide as what is unknown of how it was obtained.
OBSERVED = {
    "flops_per_s of T4 in 16-mixed": Prior(
        13e12,
        0.25,  # the model is taken for base, and padding and software were others: within a factor of 1.5 in 9 of 10
        "30.8 samples/s on one T4 in the original study, x 12.7 s of audio x 32.5 GFLOP",
    ),
}


def _device_priors(runs: Sequence[Run]) -> dict[str, Prior]:
    """Wide priors of speed and overhead, centred on the runs' own figures.

    Runs with different amounts of computing separate overhead from computing. Without such runs, the prior does: it is
    centred on twice the time that the host works between two micro-batches.
    """
    values_by_name: dict[str, list[float]] = {}
    for run in runs:
        setup, parts = run.setup, run.measured
        work = setup.computed_s * setup.flops_per_audio_s
        rate = work / (setup.world_size * setup.device_share * max(parts.compute_s, 0.01 * parts.step_s))
        host_s = max(parts.overhead_s, 0.002 * parts.step_s) * setup.device_share
        own_names = names(setup)
        values_by_name.setdefault(own_names["flops_per_s"], []).append(rate)
        values_by_name.setdefault(own_names["overhead_s"], []).append(host_s)
    return {name: _device_prior(name, values) for name, values in values_by_name.items()}


def _device_prior(name: str, values: Sequence[float]) -> Prior:
    if name.startswith("flops_per_s"):
        return Prior(median(values), 2.0, "rate reached by the runs, if all time without another cause is computing")
    return Prior(2 * median(values), 1.0, "twice the time that the host works between two micro-batches")


# ---- devices and links without runs ---------------------------------------------------------------------------------


def unseen(kind: str, setup: Setup, fitted: Mapping[str, Any]) -> Prior | None:
    """Return the prior of a parameter that was not fitted, based on fitted ones; None if nothing is known."""
    if kind in ("flops_per_s", "overhead_s"):
        prior = _nearest(kind, setup, fitted) or _like_reference(kind, setup)
        observed = OBSERVED.get(names(setup)[kind])
        return _combined(prior, observed, fitted) if prior and observed else prior
    if kind == "launch_s" and (known := next((name for name in fitted if name.startswith("launch_s of ")), None)):
        return Prior(1.0, 0.4, f"as on the host of {known.removeprefix('launch_s of ')}", known)
    prior = specified(kind, setup)
    if prior.parent and prior.parent not in fitted:
        parent = SHARED[prior.parent]
        return Prior(prior.centre * parent.centre, math.hypot(parent.log_sd, prior.log_sd), parent.source)
    return prior


def _combined(prior: Prior, observed: Prior, values: Mapping[str, float]) -> Prior:
    """Combine two independent sources of a parameter, each weighted by its precision.

    A parent counts with its most probable value: it is measured, so its own uncertainty is small beside the others.
    """
    centre = prior.centre * (values[prior.parent] if prior.parent else 1.0)
    weight, observed_weight = prior.log_sd**-2, observed.log_sd**-2
    total = weight + observed_weight
    log_centre = (weight * math.log(centre) + observed_weight * math.log(observed.centre)) / total
    return Prior(math.exp(log_centre), total**-0.5, f"{prior.source}; and {observed.source}")


def _like_reference(kind: str, setup: Setup) -> Prior | None:
    """Prior from the reference; None for models with less than half its arithmetic, which would not keep a GPU busy."""
    prior = _nearest(kind, setup, REFERENCE)
    if prior is None or prior.parent is None or setup.flops_per_audio_s < REFERENCE_FLOPS_PER_AUDIO_S / 2:
        return None
    reference = REFERENCE[prior.parent]
    source = f"{prior.source}; measured once, {reference.source} of wav2vec2-base (docs/performance.md)"
    return Prior(prior.centre * reference.centre, math.hypot(prior.log_sd, reference.log_sd), source)


def _nearest(kind: str, setup: Setup, known: Mapping[str, Any]) -> Prior | None:
    """Prior relative to the known device that is nearest by specification; formats of as many bits come first."""
    near = [prior for name in known if name.startswith(f"{kind} of ") and (prior := _by_ratio(kind, setup, name))]

    def distance(prior: Prior) -> tuple[bool, float, float, bool]:
        precision = (prior.parent or "").rpartition(" in ")[2]
        has_other_width = specs.width(precision) != specs.width(setup.precision)
        return has_other_width, prior.log_sd, abs(math.log(prior.centre)), precision != setup.precision

    return min(near, key=distance, default=None)


def _by_ratio(kind: str, setup: Setup, name: str) -> Prior | None:
    """Prior relative to a known device's parameter `name`, by the ratio of the specifications."""
    device, _, precision = name.removeprefix(f"{kind} of ").rpartition(" in ")
    compared = setup.device, setup.precision, device, precision
    ratio = specs.speed_ratio(*compared)
    if ratio is None:
        return None
    if kind == "overhead_s":
        return Prior(1.0, 0.7, f"as on {device} in {precision}", name)
    bounds = [specs.speed_ratio(*compared, share) for share in (0.0, specs.MAX_MEMORY_SHARE)]
    low, high = (bound for bound in bounds if bound is not None)  # neither is None, as `ratio` is not
    kernels = specs.kernel_ratio(*compared)
    # The two are the ends of a 90 % interval, 1.645 standard deviations from its centre. Even if they are equal, 25 %
    # remain, and 40 % where the rate is itself estimated: the share of a rate that a device reaches depends on clocks,
    # power and kernels.
    is_estimated = specs.is_estimated(setup.device) or specs.is_estimated(device)
    log_sd = math.hypot(math.log(high / low) / 2 / 1.645, 0.4 if is_estimated else 0.25)
    products = "estimated" if is_estimated else "sustained"
    source = f"{device}'s in {precision}, x {ratio:.2g} by {products} matrix products and, in part, memory bandwidth"
    source += " (specs.py)"
    if kernels != 1:
        source += f", and x {kernels:.2g} for kernels that GPUs before the A100 lack (docs/performance.md)"
    return Prior(kernels * ratio, log_sd, source, name)
