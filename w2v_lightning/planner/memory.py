"""How much audio a GPU holds beside a model's weights."""

from collections.abc import Mapping
from typing import Any

from w2v_lightning.catalog.instances import Instance, precision_of
from w2v_lightning.catalog.model_sizes import layers_of, size_of, width_of
from w2v_lightning.errors import InputError

MARGIN = 0.1  # of a GPU's memory, as `device_seconds: auto` leaves it
DOUBT = 1.2  # what is estimated to need so much more than there is, does not fit
LEAST_SECONDS = 20.0  # a micro-batch has an utterance at least
GIB_PER_PARAMETER = 16 / 2**30  # weight, gradient and AdamW's two moments in float32
# Of a second of audio in half precision, measured at 1,600 s in a micro-batch: base has 24.7 GiB in all, large 56.8
# (docs/performance.md); by layers x width, of which they have 12 x 768 and 24 x 1024.
GIB_PER_SECOND, GIB_PER_LAYER_AND_CHANNEL = 0.0038, 1.17e-6
IN_FLOAT32 = 1.84  # times that: 22.8 GiB at 800 s
WITHOUT_KERNELS = 1.2  # times that on GPUs before compute capability 8.0: 28.8 to 30.2 GiB at 1,600 s


def held_seconds(machine: Instance, world_size: int, config: Mapping[str, Any]) -> float:
    """Audio of a micro-batch that one GPU holds, in seconds.

    Raises:
        InputError: the weights leave no room.
    """
    weights_gib = _weights_gib(world_size, config)
    seconds = ((1 - MARGIN) * machine.gpu_gib - weights_gib) / _gib_per_s(machine, config)
    if seconds < LEAST_SECONDS:
        raise InputError(
            f"weights, gradients and the optimiser take some {weights_gib:.0f} GiB, and the {machine.gpu_name} has"
            f" {machine.gpu_gib}"
        )
    return seconds


def check_seconds(machine: Instance, world_size: int, config: Mapping[str, Any]) -> None:
    """Of `data.device_seconds` where it is fixed.

    Raises:
        InputError: it is more than the GPU can hold.
    """
    data = config["data"]
    if config["model"].get("gradient_checkpointing"):  # needs much less, and how much is not known
        return
    seconds = min(data["device_seconds"], data["batch_seconds"] / world_size)
    needed_gib = _weights_gib(world_size, config) + seconds * _gib_per_s(machine, config)
    if needed_gib > DOUBT * machine.gpu_gib:
        raise InputError(
            f"data.device_seconds is {data['device_seconds']:g}: {seconds:g} s at once take some {needed_gib:.0f} GiB,"
            f" and the {machine.gpu_name} has {machine.gpu_gib}; auto finds what fits"
        )


def _weights_gib(world_size: int, config: Mapping[str, Any]) -> float:
    size = size_of(config["model"])
    layers, width = layers_of(config["model"]), width_of(config["model"])
    parameters = size.parameters * layers * width**2 / (size.num_hidden_layers * size.hidden_size**2)
    return parameters * GIB_PER_PARAMETER / (world_size if shares_weights(config) else 1)


def _gib_per_s(machine: Instance, config: Mapping[str, Any]) -> float:
    found = GIB_PER_SECOND + GIB_PER_LAYER_AND_CHANNEL * layers_of(config["model"]) * width_of(config["model"])
    if precision_of(config, machine) == "32-true":
        return IN_FLOAT32 * found
    return (WITHOUT_KERNELS if machine.capability < (8, 0) else 1) * found


def shares_weights(config: Mapping[str, Any]) -> bool:
    """The strategy is FSDP2."""
    strategy = config.get("trainer", {}).get("strategy")
    named = strategy.get("class_path", "") if isinstance(strategy, Mapping) else str(strategy)
    return named == "fsdp2" or named.endswith("FSDP2Strategy")
