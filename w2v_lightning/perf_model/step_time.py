"""What one global step takes: max(compute, data) + exposed communication + imbalance + overhead.

A step of W devices on H hosts. Parameters in capitals below are fitted (fitting.py), and this is all there is of them:

    compute         computed audio x FLOP per audio-second / (W x FLOPS_PER_S) x slowdown
                    One rate of each device and precision: micro-batches are as large as memory allows, and so alike.
                    On GPUs (that^5 + launching^5)^(1/5), launching = micro-batches x LAUNCH_S x layers / 12: the host
                    hands over small ones no faster than large ones
    slowdown        (1 + CONTENTION x (busy devices of the machine - 1)) / device_share
                    Only of CPUs: processes share its cores, and these share caches and memory.
    data            computed audio of a host / (its workers x DECODE_AUDIO_S_PER_S), or where the storage's rate is
                    known, computed audio of a host / STORAGE_AUDIO_S_PER_S, the slower of the two; beside the
                    computing, or without workers behind it
    communication   an all-reduce of n bytes in b buckets, T; ring:
                        b x 2 (W - 1) / W x ((W - H) x HOP_S + H x LINK_HOP_S) + 2 (W - 1) / W x n / bytes per s
                    or on GPUs (NCCL), where that is less, a tree:
                        b x 2 ((W / H - 1) x HOP_S + log2(H) x LINK_HOP_S) + 2 n / bytes per s
                    Bytes per s are BYTES_PER_S within a host, between hosts at most LINK_EFFICIENCY x specification.
                    gloo, which CPUs use, has no more than 2 MiB under way: 2 MiB / LINK_HOP_S at most.
    exposed         what of T comes behind a backward pass of OVERLAP x compute of the last micro-batch, if gradients
                    come at an even pace and buckets leave one by one, each when it is full: at least the last one
    imbalance       IMBALANCE x E[maximum of W standard normal numbers] x compute: all wait for the slowest
    overhead        OVERHEAD_S x slowdown: optimiser, logging; it does not shrink with more devices. And a tiny
                    all-reduce whenever the loss is logged

Patarasuk and Yuan 2009 have the ring, Sanders, Speck and Träff 2009 the tree.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from statistics import NormalDist
from types import MappingProxyType
from typing import Any

import numpy as np

from w2v_lightning.errors import InputError
from w2v_lightning.perf_model.specs import short_name

FIRST_BUCKET_BYTES = 2**20  # DDP's first bucket leaves once it holds so much
LATENCY_BYTES = 4 * 2**10  # of throughput.json's all_reduce.latency_ms
GLOO_AHEAD_BYTES = 2 * 2**20  # two segments of its kMaxSegmentSize (gloo/allreduce.h)
BASE_LAYERS = 12
LOGGED_EVERY = 50  # steps: Lightning's default
# Whether the host or the GPU is slower changes from step to step, and the host is ahead by a step or so: where both
# take as long on average, the mean of the slower one is more, by 15 % with this power. 4 to 7 fit runs on an H200
# about as well, a hard maximum does not (docs/study.md).
LAUNCH_POWER = 5
LAUNCHING = "compute: launching"  # a bottleneck: the host's, while it hands a micro-batch to the GPU

# What an all-reduce takes is due to these.
LATENCIES, RATES = ("hop_s", "link_hop_s"), ("bytes_per_s", "link_efficiency")

# By name, such as "hop_s of Tesla T4"; numbers, or arrays of as many draws each.
Parameters = Mapping[str, Any]


@dataclass(frozen=True)
class Setup:
    """What decides a step's time, of a run that was measured or of one that is planned.

    Args:
        device: "NVIDIA H200", "Tesla T4", "T4"; of a CPU with the threads of a process: "AMD EPYC 7763, 1 thread".
        device_share: of a device that each process has; CPU processes on fewer cores than threads have less than 1.
        precision: such as "16-mixed".
        flops_per_audio_s: of training, forward and backward, per second of audio: which model it is.
        hosts: machines, or namespaces that stand for machines.
        devices_per_host: GPUs, or processes on CPUs.
        loader_workers: processes per device that decode; 0: the training process does.
        link: the network between hosts, by name: "ml.g4dn.2xlarge", "100 Mbit/s, 2 ms"; "" within one host.
        link_bytes_per_s: by its specification; None: not known, or within one host.
        storage: where audio is read from: "disk", "FastFile", "1 Mbit/s".
        audio_s: real audio of a global step, the mean.
        computed_s: the same with padding: what the devices compute on.
        micro_batches: per device and step.
        gradient_bytes: that each device sends and receives.
        gradient_buckets: in so many messages.
        hosts_per_machine: more than 1 where hosts are emulated, all on one machine.
        link_delay_s: one way, where the link is emulated.
        storage_bytes_per_s: of a host, where the storage's rate is known.
        logged_every: steps from one logged loss to the next.
        layers: of the transformer; base has 12.
    """

    device: str
    device_share: float
    precision: str
    flops_per_audio_s: float
    hosts: int
    devices_per_host: int
    loader_workers: int
    link: str
    link_bytes_per_s: float | None
    storage: str
    audio_s: float
    computed_s: float
    micro_batches: int
    gradient_bytes: int
    gradient_buckets: int
    hosts_per_machine: int = 1
    link_delay_s: float | None = None
    storage_bytes_per_s: float | None = None
    logged_every: float = LOGGED_EVERY
    layers: int = BASE_LAYERS

    @property
    def world_size(self) -> int:
        return self.hosts * self.devices_per_host

    @property
    def is_cpu(self) -> bool:
        return self.device.endswith(("thread", "threads"))

    @property
    def busy_devices(self) -> float:
        """Of one machine, at the same time."""
        return self.devices_per_host * self.hosts_per_machine * self.device_share


@dataclass(frozen=True)
class Terms:
    """Parts of one step's time, in seconds; `data_s` runs beside `compute_s`, the others behind them.

    Loading is one of two: `data_s` where workers do it, `loading_behind_s` where the training process does.

    With arrays, one of each draw, only `step_s` makes sense.
    """

    compute_s: float
    data_s: float
    exposed_s: float
    imbalance_s: float
    overhead_s: float
    loading_behind_s: float = 0.0

    @property
    def step_s(self) -> float:
        return self.compute_s + self.wait_s + self.exposed_s + self.imbalance_s + self.overhead_s

    @property
    def wait_s(self) -> float:
        """For data, with nothing to compute."""
        return np.maximum(self.data_s - self.compute_s, 0.0) + self.loading_behind_s

    def gains_s(self) -> dict[str, float]:
        """By how much the step would be shorter without each of them."""
        return {
            "compute": self.compute_s - min(self.compute_s, self.data_s),
            "data": self.wait_s,
            "communication": self.exposed_s,
            "imbalance": self.imbalance_s,
            "overhead": self.overhead_s,
        }

    @property
    def bottleneck(self) -> str:
        """What it would pay most to speed up."""
        gains = self.gains_s()
        return max(gains, key=gains.__getitem__)


@lru_cache(1024)  # a fit asks for the same ones a hundred thousand times
def names(setup: Setup) -> Mapping[str, str]:
    """The parameters that this setup's step time follows from: what each is, and its name."""
    device, computing = short_name(setup.device), f"{short_name(setup.device)} in {setup.precision}"
    of = {"flops_per_s": computing, "overhead_s": computing, "decode_audio_s_per_s": setup.storage}
    of |= {"contention": device} if setup.is_cpu else {"launch_s": device}
    if setup.storage_bytes_per_s:
        of["storage_audio_s_per_s"] = setup.storage
    if setup.world_size > 1:
        of |= {"imbalance": device, "overlap": device}
    if setup.devices_per_host > 1:
        of["hop_s"] = device
    if setup.devices_per_host > 1 or (setup.is_cpu and setup.hosts > 1):
        of["bytes_per_s"] = device
    if setup.hosts > 1:
        of |= {"link_hop_s": setup.link, "link_efficiency": setup.link}
    return MappingProxyType({what: f"{what} of {whose}" for what, whose in of.items()})


def terms(setup: Setup, parameters: Parameters) -> Terms:
    """The parts of a step's time.

    Raises:
        KeyError: a parameter of `names(setup)` is missing.
        InputError: hosts are joined by a link whose rate is not known.
    """
    found = _of(setup, parameters)
    compute_s = _slower(_computing_s(setup, found), _launching_s(setup, found))
    loading_s = np.maximum(*_loading_s(setup, found))
    return Terms(
        compute_s=compute_s,
        data_s=loading_s if setup.loader_workers else 0.0,
        loading_behind_s=0.0 if setup.loader_workers else loading_s,
        exposed_s=_exposed_s(setup, found, compute_s),
        imbalance_s=found.get("imbalance", 0.0) * slowest(setup.world_size) * compute_s,
        overhead_s=found["overhead_s"] * _slowdown(setup, found) + _logging_s(setup, found),
    )


def all_reduce_s(setup: Setup, parameters: Parameters, num_bytes: int, buckets: int) -> tuple[Any, Any]:
    """One all-reduce with nothing else going on: the time for latency, and for bytes."""
    return _all_reduce_s(setup, _of(setup, parameters), num_bytes, buckets)


def bottleneck(setup: Setup, parameters: Parameters) -> str:
    """What it would pay most to speed up: "compute", "compute: launching", "imbalance", "overhead", "data: storage",
    "data: decoding", "communication: latency" or "communication: bandwidth"."""
    named, found = terms(setup, parameters).bottleneck, _of(setup, parameters)
    if named == "compute" and _launching_s(setup, found) > _computing_s(setup, found):
        return LAUNCHING
    if named == "communication":
        at_once, in_no_time = (
            sum(_all_reduce_s(setup, found | changes, setup.gradient_bytes, setup.gradient_buckets))
            for changes in (dict.fromkeys(LATENCIES, 1e-12), dict.fromkeys(RATES, math.inf))
        )
        return f"{named}: {'latency' if at_once < in_no_time else 'bandwidth'}"
    if named == "data":
        decoded_s, read_s = _loading_s(setup, found)
        return f"{named}: {'storage' if read_s > decoded_s else 'decoding'}"
    return named


def _of(setup: Setup, parameters: Parameters) -> dict[str, Any]:
    """This setup's own, by what each is."""
    return {what: parameters[name] for what, name in names(setup).items()}


@cache
def slowest(world_size: int) -> float:
    """E[maximum of so many standard normal numbers], within 5 %: Blom's approximation."""
    return NormalDist().inv_cdf((world_size - 0.375) / (world_size + 0.25)) if world_size > 1 else 0.0


def _slowdown(setup: Setup, found: Parameters) -> Any:
    return (1 + found.get("contention", 0.0) * np.maximum(setup.busy_devices - 1, 0.0)) / setup.device_share


def _computing_s(setup: Setup, found: Parameters) -> Any:
    work = setup.computed_s * setup.flops_per_audio_s
    return work / (setup.world_size * found["flops_per_s"]) * _slowdown(setup, found)


def _slower(computing_s: Any, launching_s: Any) -> Any:
    return (computing_s**LAUNCH_POWER + launching_s**LAUNCH_POWER) ** (1 / LAUNCH_POWER)


def _launching_s(setup: Setup, found: Parameters) -> Any:
    return setup.micro_batches * found.get("launch_s", 0.0) * setup.layers / BASE_LAYERS


def _loading_s(setup: Setup, found: Parameters) -> tuple[Any, Any]:
    """Decoding, and reading as far as its rate is known. Of computed audio: where a step has few utterances, ranks that
    get none load a filler."""
    decoders = setup.world_size * max(setup.loader_workers, 1)
    decoded_s = setup.computed_s / (decoders * found["decode_audio_s_per_s"])
    return decoded_s, setup.computed_s / (setup.hosts * found.get("storage_audio_s_per_s", math.inf))


def _exposed_s(setup: Setup, found: Parameters, compute_s: Any) -> Any:
    if setup.world_size == 1:
        return 0.0
    hops_s, bytes_s = _all_reduce_s(setup, found, setup.gradient_bytes, setup.gradient_buckets)
    backward_s = found["overlap"] * compute_s / setup.micro_batches
    exposed_s = 0.0
    for num_behind, before, full in _bucket_shares(setup):
        to_send_s = hops_s * num_behind / setup.gradient_buckets + bytes_s * (1 - before)
        exposed_s = np.maximum(exposed_s, to_send_s - backward_s * (1 - full))
    return exposed_s


def _logging_s(setup: Setup, found: Parameters) -> Any:
    """The mean loss of all devices."""
    if setup.world_size == 1:
        return 0.0
    return sum(_all_reduce_s(setup, found, LATENCY_BYTES, 1)) / setup.logged_every


def _bucket_shares(setup: Setup) -> Iterator[tuple[int, float, float]]:
    """Of the buckets that the network can have to wait for last: how many there are from it on, and the shares of the
    gradients that come before it and up to it. All are alike but the first, so it is one of the first two, or the last.
    """
    buckets = setup.gradient_buckets
    if buckets == 1:
        yield 1, 0.0, 1.0
        return
    first = min(FIRST_BUCKET_BYTES / setup.gradient_bytes, 1 / buckets)
    other = (1 - first) / (buckets - 1)
    yield buckets, 0.0, first
    for i in {1, buckets - 1}:
        yield buckets - i, first + (i - 1) * other, first + i * other


def _all_reduce_s(setup: Setup, found: Parameters, num_bytes: int, buckets: int) -> tuple[Any, Any]:
    bytes_per_s, world_size = _bytes_per_s(setup, found), setup.world_size
    hop_s, link_hop_s = found.get("hop_s", 0.0) / setup.device_share, found.get("link_hop_s", 0.0)
    links = setup.hosts if setup.hosts > 1 else 0
    share = 2 * (world_size - 1) / world_size
    ring = buckets * share * ((world_size - links) * hop_s + links * link_hop_s), share * num_bytes / bytes_per_s
    if setup.is_cpu:
        return ring  # gloo knows no other
    hops_s = (setup.devices_per_host - 1) * hop_s + math.log2(setup.hosts) * link_hop_s
    tree = buckets * 2 * hops_s, 2 * num_bytes / bytes_per_s
    is_tree = sum(tree) < sum(ring)
    return tuple(np.where(is_tree, *pair) for pair in zip(tree, ring, strict=True))


def _bytes_per_s(setup: Setup, found: Parameters) -> Any:
    """Of the slowest stretch of the ring. On CPUs the processes themselves copy and add."""
    within = found.get("bytes_per_s", math.inf) * setup.device_share
    if setup.hosts == 1:
        return within
    if not setup.link_bytes_per_s:
        raise InputError(f"link {setup.link!r}: its rate is not known; give the cell's link_bytes_per_s.")
    between = found["link_efficiency"] * setup.link_bytes_per_s
    if setup.is_cpu:
        between = np.minimum(between, GLOO_AHEAD_BYTES / found["link_hop_s"])
    return np.minimum(within, between)
