"""Step-time model: max(compute, data) + exposed communication + imbalance + overhead.

The model describes a step of W devices on H hosts. Parameters in capitals are fitted (fitting.py); there are no others.

    compute         computed audio x FLOP per audio-second / (W x FLOPS_PER_S) x slowdown
                    One rate per device and precision: micro-batches are as large as memory allows, and so of similar
                    size. On GPUs (that^5 + launching^5)^(1/5), launching = micro-batches x LAUNCH_S x layers / 12: the
                    host needs as long to launch a small micro-batch as a large one.
    slowdown        (1 + CONTENTION x (busy devices of the machine - 1)) / device_share
                    Only on CPUs: processes share cores, and cores share caches and memory.
    data            computed audio of a host / (its workers x DECODE_AUDIO_S_PER_S), or, where the storage's rate is
                    known, computed audio of a host / STORAGE_AUDIO_S_PER_S, whichever is slower. Loading overlaps with
                    computing; without workers it follows computing.
    communication   an all-reduce of n bytes in b buckets, T; ring:
                        b x 2 (W - 1) / W x ((W - H) x HOP_S + H x LINK_HOP_S) + 2 (W - 1) / W x n / bytes per s
                    or, on GPUs (NCCL), where that is faster, a tree:
                        b x 2 ((W / H - 1) x HOP_S + log2(H) x LINK_HOP_S) + 2 n / bytes per s
                    Bytes per s are BYTES_PER_S within a host, between hosts at most LINK_EFFICIENCY x specification.
                    gloo, used on CPUs, has at most 2 MiB in flight, so at most 2 MiB / LINK_HOP_S.
    exposed         the part of T that a backward pass of OVERLAP x compute of the last micro-batch does not hide, if
                    gradients arrive at an even pace and each bucket is sent when it is full: at least the last bucket
    imbalance       IMBALANCE x E[maximum of W standard normal numbers] x compute: all wait for the slowest device
    overhead        OVERHEAD_S x slowdown: optimiser, logging; it does not shrink with more devices. Plus a tiny
                    all-reduce whenever the loss is logged.

Sources: the ring is that of Patarasuk and Yuan (2009), the tree that of Sanders, Speck and Träff (2009).
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

FIRST_BUCKET_BYTES = 2**20  # DDP sends its first bucket at this size, so that communication starts early
LATENCY_BYTES = 4 * 2**10  # size of the all-reduce behind throughput.json's all_reduce.latency_ms
GLOO_IN_FLIGHT_BYTES = 2 * 2**20  # two segments of kMaxSegmentSize (gloo/allreduce.h)
BASE_LAYERS = 12
LOGGED_EVERY = 50  # steps; Lightning's default of log_every_n_steps
# Whether the host or the GPU is slower varies from step to step, and the host runs ahead by about a step. Where both
# take equally long on average, a step takes longer than either, by 15 % with this exponent. Exponents of 4 to 7 fit the
# runs on an H200 about equally well; a hard maximum does not (docs/study.md).
LAUNCH_POWER = 5
LAUNCHING = "compute: launching"  # bottleneck: the host, while it launches the kernels of a micro-batch

# Parameters behind the two parts of an all-reduce's time.
LATENCIES, RATES = ("hop_s", "link_hop_s"), ("bytes_per_s", "link_efficiency")

# Values by name, such as "hop_s of Tesla T4": numbers, or arrays of one number per draw.
Parameters = Mapping[str, Any]


@dataclass(frozen=True)
class Setup:
    """Everything that determines the step time of a measured or planned run.

    Args:
        device: "NVIDIA H200", "Tesla T4" or "T4"; for a CPU with the threads per process: "AMD EPYC 7763, 1 thread".
        device_share: share of a device that each process has; less than 1 for CPU processes with more threads than
            cores.
        precision: Lightning's precision, such as "16-mixed".
        flops_per_audio_s: FLOP of forward and backward pass per second of audio; depends on the model.
        hosts: number of machines, or of network namespaces that emulate machines.
        devices_per_host: number of GPUs, or of processes on CPUs.
        loader_workers: number of loader workers per device; 0: the training process loads.
        link: name of the network between hosts: "ml.g4dn.2xlarge", "100 Mbit/s, 2 ms"; "" within one host.
        link_bytes_per_s: specified rate of the link; None if unknown, or within one host.
        storage: source of the audio: "disk", "FastFile", "1 Mbit/s".
        audio_s: mean real audio of a global step, in seconds.
        computed_s: the same including padding: the audio that the devices compute on.
        micro_batches: number of micro-batches per device and step.
        gradient_bytes: bytes that each device sends and receives per step.
        gradient_buckets: number of messages for these bytes.
        hosts_per_machine: more than 1 if hosts are emulated on one machine.
        link_delay_s: one-way delay of an emulated link.
        storage_bytes_per_s: rate of a host's storage, if known.
        logged_every: number of steps between two logged losses.
        layers: number of transformer layers; base has 12.
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
        """Number of devices of one machine that are busy at the same time."""
        return self.devices_per_host * self.hosts_per_machine * self.device_share


@dataclass(frozen=True)
class Terms:
    """Parts of one step's time, in seconds: `data_s` overlaps with `compute_s`, the others follow one by one.

    The time of loading is `data_s` if workers load, and `serial_loading_s` if the training process does.

    The fields may be arrays with one value per draw; then only `step_s` and `wait_s` are valid.
    """

    compute_s: float
    data_s: float
    exposed_s: float
    imbalance_s: float
    overhead_s: float
    serial_loading_s: float = 0.0

    @property
    def step_s(self) -> float:
        return self.compute_s + self.wait_s + self.exposed_s + self.imbalance_s + self.overhead_s

    @property
    def wait_s(self) -> float:
        """Time in which the devices wait for data."""
        return np.maximum(self.data_s - self.compute_s, 0.0) + self.serial_loading_s

    def gains_s(self) -> dict[str, float]:
        """Return by how many seconds the step would be shorter without each part."""
        return {
            "compute": self.compute_s - min(self.compute_s, self.data_s),
            "data": self.wait_s,
            "communication": self.exposed_s,
            "imbalance": self.imbalance_s,
            "overhead": self.overhead_s,
        }

    @property
    def bottleneck(self) -> str:
        """Part whose removal would shorten the step most."""
        gains = self.gains_s()
        return max(gains, key=gains.__getitem__)


@lru_cache(1024)  # a fit calls it a hundred thousand times with few different arguments
def names(setup: Setup) -> Mapping[str, str]:
    """Return the parameters of this setup's step time: name of the parameter by its kind."""
    device, computing = short_name(setup.device), f"{short_name(setup.device)} in {setup.precision}"
    owners = {"flops_per_s": computing, "overhead_s": computing, "decode_audio_s_per_s": setup.storage}
    owners |= {"contention": device} if setup.is_cpu else {"launch_s": device}
    if setup.storage_bytes_per_s:
        owners["storage_audio_s_per_s"] = setup.storage
    if setup.world_size > 1:
        owners |= {"imbalance": device, "overlap": device}
    if setup.devices_per_host > 1:
        owners["hop_s"] = device
    if setup.devices_per_host > 1 or (setup.is_cpu and setup.hosts > 1):
        owners["bytes_per_s"] = device
    if setup.hosts > 1:
        owners |= {"link_hop_s": setup.link, "link_efficiency": setup.link}
    return MappingProxyType({kind: f"{kind} of {owner}" for kind, owner in owners.items()})


def terms(setup: Setup, parameters: Parameters) -> Terms:
    """Return the parts of a step's time.

    Raises:
        KeyError: a parameter of `names(setup)` is missing.
        InputError: the rate of the link between hosts is unknown.
    """
    values = _by_kind(setup, parameters)
    compute_s = _slower(_computing_s(setup, values), _launching_s(setup, values))
    loading_s = np.maximum(*_loading_s(setup, values))
    return Terms(
        compute_s=compute_s,
        data_s=loading_s if setup.loader_workers else 0.0,
        serial_loading_s=0.0 if setup.loader_workers else loading_s,
        exposed_s=_exposed_s(setup, values, compute_s),
        imbalance_s=values.get("imbalance", 0.0) * slowest(setup.world_size) * compute_s,
        overhead_s=values["overhead_s"] * _slowdown(setup, values) + _logging_s(setup, values),
    )


def all_reduce_s(setup: Setup, parameters: Parameters, num_bytes: int, buckets: int) -> tuple[Any, Any]:
    """Return the time of one all-reduce on idle devices, in seconds: the part due to latency, the part due to bytes."""
    return _all_reduce_s(setup, _by_kind(setup, parameters), num_bytes, buckets)


def bottleneck(setup: Setup, parameters: Parameters) -> str:
    """Return the part of the step whose speed-up would pay most.

    One of "compute", "compute: launching", "imbalance", "overhead", "data: storage", "data: decoding",
    "communication: latency" and "communication: bandwidth".
    """
    part, values = terms(setup, parameters).bottleneck, _by_kind(setup, parameters)
    if part == "compute" and _launching_s(setup, values) > _computing_s(setup, values):
        return LAUNCHING
    if part == "communication":
        without_latency_s, without_bytes_s = (
            sum(_all_reduce_s(setup, values | changes, setup.gradient_bytes, setup.gradient_buckets))
            for changes in (dict.fromkeys(LATENCIES, 1e-12), dict.fromkeys(RATES, math.inf))
        )
        return f"{part}: {'latency' if without_latency_s < without_bytes_s else 'bandwidth'}"
    if part == "data":
        decoded_s, read_s = _loading_s(setup, values)
        return f"{part}: {'storage' if read_s > decoded_s else 'decoding'}"
    return part


def _by_kind(setup: Setup, parameters: Parameters) -> dict[str, Any]:
    """Values of this setup's parameters, by kind ("hop_s") instead of name ("hop_s of Tesla T4")."""
    return {kind: parameters[name] for kind, name in names(setup).items()}


@cache
def slowest(world_size: int) -> float:
    """Return E[maximum of `world_size` standard normal numbers], within 5 %, by Blom's approximation."""
    return NormalDist().inv_cdf((world_size - 0.375) / (world_size + 0.25)) if world_size > 1 else 0.0


def _slowdown(setup: Setup, values: Parameters) -> Any:
    return (1 + values.get("contention", 0.0) * np.maximum(setup.busy_devices - 1, 0.0)) / setup.device_share


def _computing_s(setup: Setup, values: Parameters) -> Any:
    work = setup.computed_s * setup.flops_per_audio_s
    return work / (setup.world_size * values["flops_per_s"]) * _slowdown(setup, values)


def _slower(computing_s: Any, launching_s: Any) -> Any:
    return (computing_s**LAUNCH_POWER + launching_s**LAUNCH_POWER) ** (1 / LAUNCH_POWER)


def _launching_s(setup: Setup, values: Parameters) -> Any:
    return setup.micro_batches * values.get("launch_s", 0.0) * setup.layers / BASE_LAYERS


def _loading_s(setup: Setup, values: Parameters) -> tuple[Any, Any]:
    """Seconds to decode and to read (0 if the storage's rate is unknown).

    Both are for the computed audio, not the real one: ranks that get no utterance of a small step load a filler.
    """
    decoders = setup.world_size * max(setup.loader_workers, 1)
    decoded_s = setup.computed_s / (decoders * values["decode_audio_s_per_s"])
    return decoded_s, setup.computed_s / (setup.hosts * values.get("storage_audio_s_per_s", math.inf))


def _exposed_s(setup: Setup, values: Parameters, compute_s: Any) -> Any:
    if setup.world_size == 1:
        return 0.0
    hops_s, bytes_s = _all_reduce_s(setup, values, setup.gradient_bytes, setup.gradient_buckets)
    backward_s = values["overlap"] * compute_s / setup.micro_batches
    exposed_s = 0.0
    for num_unsent, share_before, share_through in _bucket_shares(setup):
        unsent_s = hops_s * num_unsent / setup.gradient_buckets + bytes_s * (1 - share_before)
        exposed_s = np.maximum(exposed_s, unsent_s - backward_s * (1 - share_through))
    return exposed_s


def _logging_s(setup: Setup, values: Parameters) -> Any:
    """Seconds per step for the all-reduce of the logged loss."""
    if setup.world_size == 1:
        return 0.0
    return sum(_all_reduce_s(setup, values, LATENCY_BYTES, 1)) / setup.logged_every


def _bucket_shares(setup: Setup) -> Iterator[tuple[int, float, float]]:
    """Buckets that can be the last one for which the network has to wait.

    All buckets but the first have the same size, so it is one of the first two or the last. Yields the number of
    buckets from it on, and the shares of the gradients before it and through it.
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


def _all_reduce_s(setup: Setup, values: Parameters, num_bytes: int, buckets: int) -> tuple[Any, Any]:
    bytes_per_s, world_size = _bytes_per_s(setup, values), setup.world_size
    hop_s, link_hop_s = values.get("hop_s", 0.0) / setup.device_share, values.get("link_hop_s", 0.0)
    links = setup.hosts if setup.hosts > 1 else 0
    share = 2 * (world_size - 1) / world_size
    ring = buckets * share * ((world_size - links) * hop_s + links * link_hop_s), share * num_bytes / bytes_per_s
    if setup.is_cpu:
        return ring  # gloo has no tree
    hops_s = (setup.devices_per_host - 1) * hop_s + math.log2(setup.hosts) * link_hop_s
    tree = buckets * 2 * hops_s, 2 * num_bytes / bytes_per_s
    is_tree = sum(tree) < sum(ring)
    return tuple(np.where(is_tree, *pair) for pair in zip(tree, ring, strict=True))


def _bytes_per_s(setup: Setup, values: Parameters) -> Any:
    """Rate of the slowest hop of the ring; on CPUs also limited by how fast the processes copy and add."""
    within = values.get("bytes_per_s", math.inf) * setup.device_share
    if setup.hosts == 1:
        return within
    if not setup.link_bytes_per_s:
        raise InputError(f"link {setup.link!r}: its rate is unknown; set the cell's link_bytes_per_s.")
    between = values["link_efficiency"] * setup.link_bytes_per_s
    if setup.is_cpu:
        between = np.minimum(between, GLOO_IN_FLIGHT_BYTES / values["link_hop_s"])
    return np.minimum(within, between)
