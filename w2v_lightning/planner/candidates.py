"""Candidates to train on: each machine, in several counts, on demand and spot."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from w2v_lightning.catalog import images
from w2v_lightning.catalog.instances import INSTANCES, Instance, instance, precision_of
from w2v_lightning.catalog.model_sizes import layers_of
from w2v_lightning.catalog.prices import on_demand
from w2v_lightning.errors import InputError
from w2v_lightning.perf_model.specs import short_name
from w2v_lightning.perf_model.step_time import LOGGED_EVERY, Setup
from w2v_lightning.planner.offers import BOX, Offer
from w2v_lightning.planner.workload import Epoch, Model

Pricing = Literal["allow", "only", "never"]
SPOT: dict[Pricing, tuple[bool, ...]] = {"allow": (False, True), "only": (True,), "never": (False,)}
COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)


ON_DISK = "disk"  # source of the audio outside SageMaker


@dataclass(frozen=True)
class Candidate:
    """Machines to train on: type, count and pricing, and the precision to train in.

    Without an offer, `instance_type` is one of SageMaker's.
    """

    instance_type: str
    count: int
    is_spot: bool
    precision: str
    offer: Offer | None = None

    def __str__(self) -> str:
        machines = f"{self.count} x {self.offer or self.instance_type}"
        if self.offer and self.offer.place == BOX:  # it is called by its GPUs, such as "8 x H100"
            machines = str(self.offer)
        return f"{machines}, {'spot' if self.is_spot else 'on demand'}"

    @property
    def machine(self) -> Instance:
        return self.offer.machine if self.offer else instance(self.instance_type)

    @property
    def world_size(self) -> int:
        return self.count * self.machine.gpus


@dataclass(frozen=True)
class Task:
    """Training that every candidate would run.

    Args:
        config: resolved options of `fit`.
        model: size of the model that the config builds.
        epoch: training data.
        steps: total number of steps.
        device_seconds: function from a machine and the total number of GPUs to the seconds of audio that one GPU holds
            (see `workload.device_seconds`).
        input_mode: input mode of `submit`, such as "FastFile"; machines outside SageMaker read from their disks.
    """

    config: Mapping[str, Any]
    model: Model
    epoch: Epoch
    steps: int
    device_seconds: Callable[[Instance, int], float]
    input_mode: str


def candidates(
    region: str,
    image: str,
    config: Mapping[str, Any],
    pricing: Pricing,
    instance_types: Sequence[str] | None = None,
    max_count: int = 16,
) -> tuple[list[Candidate], dict[str, str]]:
    """List SageMaker's candidates in a region.

    Args:
        region: AWS region, such as "us-east-1".
        image: URI of the training image.
        config: options of `fit`; they decide the precision.
        pricing: use of spot instances: "allow": both spot and on demand; "only": spot; "never": on demand.
        instance_types: instance types to consider; None: all.
        max_count: largest number of instances.

    Returns:
        The candidates, and the reason against each type that has no price or that the image cannot use.

    Raises:
        InputError: no type is left.
    """
    usable: list[Candidate] = []
    left_out: dict[str, str] = {}
    for name in instance_types or INSTANCES:
        machine = instance(name)
        if reason := images.obstacle(image, machine):
            left_out[name] = reason
            continue
        try:
            on_demand(name, region)
        except InputError as error:
            left_out[name] = str(error)
            continue
        for count in counts(max_count):
            for is_spot in SPOT[pricing]:
                usable.append(Candidate(name, count, is_spot, precision_of(config, machine)))
    if not usable:
        raise InputError("; ".join(f"{name}: {reason.rstrip('.')}" for name, reason in left_out.items()) + ".")
    return usable, left_out


def candidates_of(
    offers: Iterable[Offer], config: Mapping[str, Any], pricing: Pricing, max_count: int = 16
) -> list[Candidate]:
    """List the candidates among machines outside SageMaker: several only where their network is known."""
    return [
        Candidate(offer.instance_type, count, is_spot, precision_of(config, offer.machine), offer)
        for offer in offers
        for count in (counts(max_count) if offer.has_network else [1])
        for is_spot in SPOT[pricing]
        if (offer.spot if is_spot else offer.price)
    ]


def counts(largest: int) -> list[int]:
    """Return the numbers of machines to consider."""
    return sorted({count for count in COUNTS if count < largest} | {largest})


def setup_of(candidate: Candidate, task: Task) -> Setup:
    """Return the setup of the step-time model for a candidate.

    Raises:
        InputError: the task does not fit the candidate's GPUs.
    """
    machine, data = candidate.machine, task.config["data"]
    device_seconds = task.device_seconds(machine, candidate.world_size)
    step = task.epoch.step_on(candidate.world_size, device_seconds)
    is_alone = candidate.count == 1
    return Setup(
        device=short_name(machine.gpu),
        device_share=1.0,
        precision=candidate.precision,
        flops_per_audio_s=task.model.flops_per_audio_s,
        hosts=candidate.count,
        devices_per_host=machine.gpus,
        loader_workers=machine.loader_workers if data.get("num_workers") is None else data["num_workers"],
        link="" if is_alone else machine.name,
        link_bytes_per_s=None if is_alone else machine.gbit_per_s * 1e9 / 8,
        storage=ON_DISK if candidate.offer else task.input_mode,
        audio_s=step.audio_s,
        computed_s=step.computed_s,
        micro_batches=step.micro_batches,
        gradient_bytes=task.model.gradient_bytes,
        gradient_buckets=task.model.gradient_buckets,
        layers=layers_of(task.config["model"]),
        logged_every=task.config["trainer"].get("log_every_n_steps") or LOGGED_EVERY,
    )
