"""Audio that fits into a GPU's memory beside a model's weights."""

from collections.abc import Mapping
from typing import Any

from w2v_lightning.catalog.instances import Instance, precision_of
from w2v_lightning.catalog.model_sizes import layers_of, size_of, width_of
from w2v_lightning.errors import InputError

MARGIN = 0.1  # share of a GPU's memory that stays free, as with `device_seconds: auto`
TOLERANCE = 1.2  # a fixed `device_seconds` is refused if the estimate exceeds the memory by more than this factor
LEAST_SECONDS = 20.0  # a micro-batch contains at least one utterance
GIB_PER_PARAMETER = 16 / 2**30  # weight, gradient and AdamW's two moments in float32
# Memory per second of audio in half precision, from measurements at 1,600 s per micro-batch: base needs 24.7 GiB in
# total, large 56.8 (docs/performance.md). It is linear in layers x width, which are 12 x 768 and 24 x 1024.
GIB_PER_SECOND, GIB_PER_LAYER_AND_CHANNEL = 0.0038, 1.17e-6
IN_FLOAT32 = 1.84  # factor in float32: 22.8 GiB at 800 s
WITHOUT_KERNELS = 1.2  # factor on GPUs before compute capability 8.0: 28.8 to 30.2 GiB at 1,600 s


def held_seconds(machine: Instance, world_size: int, config: Mapping[str, Any]) -> float:
    """Return the seconds of audio in the largest micro-batch that one GPU holds.

    Raises:
        InputError: the weights leave no room for audio.
    """
    weights_gib = _weights_gib(world_size, config)
    seconds = ((1 - MARGIN) * machine.gpu_gib - weights_gib) / _gib_per_s(machine, config)
    if seconds < LEAST_SECONDS:
        raise InputError(
            f"weights, gradients and optimiser state need about {weights_gib:.0f} GiB, and the {machine.gpu_name} has"
            f" {machine.gpu_gib} GiB"
        )
    return seconds


def check_seconds(machine: Instance, world_size: int, config: Mapping[str, Any]) -> None:
    """Check a fixed `data.device_seconds`.

    Raises:
        InputError: it is more than the GPU can hold.
    """
    data = config["data"]
    if config["model"].get("gradient_checkpointing"):  # it needs much less memory, by an unknown amount
        return
    seconds = min(data["device_seconds"], data["batch_seconds"] / world_size)
    needed_gib = _weights_gib(world_size, config) + seconds * _gib_per_s(machine, config)
    if needed_gib > TOLERANCE * machine.gpu_gib:
        raise InputError(
            f"data.device_seconds is {data['device_seconds']:g}: micro-batches of {seconds:g} s need about"
            f" {needed_gib:.0f} GiB, and the {machine.gpu_name} has {machine.gpu_gib} GiB. Use a smaller value or auto"
        )


def _weights_gib(world_size: int, config: Mapping[str, Any]) -> float:
    size = size_of(config["model"])
    layers, width = layers_of(config["model"]), width_of(config["model"])
    parameters = size.parameters * layers * width**2 / (size.num_hidden_layers * size.hidden_size**2)
    return parameters * GIB_PER_PARAMETER / (world_size if shards_weights(config) else 1)


def _gib_per_s(machine: Instance, config: Mapping[str, Any]) -> float:
    gib = GIB_PER_SECOND + GIB_PER_LAYER_AND_CHANNEL * layers_of(config["model"]) * width_of(config["model"])
    if precision_of(config, machine) == "32-true":
        return IN_FLOAT32 * gib
    return (WITHOUT_KERNELS if machine.capability < (8, 0) else 1) * gib


def shards_weights(config: Mapping[str, Any]) -> bool:
    """Return whether the strategy (FSDP2) shards the weights."""
    strategy = config.get("trainer", {}).get("strategy")
    name = strategy.get("class_path", "") if isinstance(strategy, Mapping) else str(strategy)
    return name == "fsdp2" or name.endswith("FSDP2Strategy")
