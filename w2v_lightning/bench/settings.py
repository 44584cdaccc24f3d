"""Options of `bench step`, checked, and the model that they name."""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast, get_type_hints

import torch
from jsonargparse.typing import PositiveFloat, PositiveInt

from w2v_lightning.bench.stepper import Machine, Precision
from w2v_lightning.errors import InputError
from w2v_lightning.model.speed import Speed, choices_of
from w2v_lightning.module import Wav2Vec2CTC
from w2v_lightning.runtime.precision import choose_precision

LARGE = {  # wav2vec2-large-lv60, 315 M parameters
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "conv_bias": True,
}
CONFIGS: dict[str, dict[str, Any]] = {"base": {}, "large": LARGE}
STOCK = {"hf": False, "hf-compiled": True}  # name of a stock side, and whether its model is compiled by torch.compile
OPTIMISATIONS = tuple(get_type_hints(Speed))


def default_precision() -> Precision:
    """Return the best precision for this machine."""
    return cast(Precision, choose_precision("auto")[0])  # of its values, Precision lacks none


def default_device() -> Literal["cuda", "cpu"]:
    """Return "cuda" if there is a GPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class StepOptions:
    """Measure optimiser steps per second, compared with stock transformers.

    All sides run in one process, on the same audio, and take turns.

    Args:
        model: name (base or large, random weights), model folder, or JSON file of a config.
        precision: precision of the computation; default: the best for this machine.
        device: device to compute on; default: cuda if there is a GPU.
        batch_seconds: audio per step, in seconds.
        device_seconds: audio per micro-batch, in seconds; several values, such as 800,400, are all measured;
            default: batch_seconds.
        compare: stock sides to compare with, separated by commas: hf, hf-compiled; '' for no comparison.
        hf_device_seconds: audio per micro-batch of the stock sides, in seconds, such as 800,400; default:
            device_seconds.
        repetitions: number of timed passes of each side.
        steps: number of different steps in a pass.
        manifest: path or URL of a manifest whose durations and texts are used; default: durations like those of
            LibriSpeech's train-clean-100.
        off: optimisations to switch off, separated by commas: NAME, or NAME=VALUE for another implementation, such as
            attention=packed; names: feature_encoder, positional_convolution, attention, feed_forward, ctc, compile,
            fused_optimizer, graphs.
        ablate: optimisations to measure switched off one at a time, written as for off; without a value: all.
        in_fit: measurement of our side inside `Trainer.fit` too, with the usual callbacks.
        json: file to write all figures to.
    """

    model: str = "base"
    precision: Precision = field(default_factory=default_precision)
    device: Literal["cuda", "cpu"] = field(default_factory=default_device)
    batch_seconds: PositiveFloat = 1600.0
    device_seconds: str | None = None
    compare: str = "hf"
    hf_device_seconds: str | None = None
    repetitions: PositiveInt = 5
    steps: PositiveInt = 8
    manifest: str | None = None
    off: str | None = None
    ablate: str | None = field(default=None, metadata={"nargs": "?", "const": ",".join(OPTIMISATIONS)})
    in_fit: bool = False
    json: Path | None = None


@dataclass(frozen=True)
class Settings:
    """Settings of a measurement: the checked options, under the same names."""

    model: str
    machine: Machine
    batch_seconds: float
    device_seconds: tuple[float, ...]  # ablations and fit use the first one
    hf_device_seconds: tuple[float, ...]
    compare: tuple[str, ...]
    repetitions: int
    steps: int
    manifest: str | None
    off: tuple[str, ...]
    ablate: tuple[str, ...]
    in_fit: bool

    def build(self, off: Sequence[str] = (), **options: Any) -> Wav2Vec2CTC:
        """Return the module as a user gets it, with the same weights every time.

        Args:
            off: optimisations to switch off besides `self.off`.
            options: further arguments of Wav2Vec2CTC.
        """
        torch.manual_seed(0)
        pretrained, config = weights_and_config(self.model)
        return Wav2Vec2CTC(pretrained, config, speed=speed_without([*self.off, *off]), **options)


def settings_of(options: StepOptions) -> Settings:
    """Return the checked options.

    Raises:
        InputError: an option is invalid; names it.
    """
    device_seconds = _seconds("device_seconds", options.device_seconds) or (options.batch_seconds,)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device is cuda, but torch finds no CUDA device here: use --device cpu.")
    if options.device == "cpu" and options.precision == "16-mixed":
        raise InputError("--precision is 16-mixed, which is for GPUs: on a CPU use 32-true or bf16-mixed.")
    return Settings(
        model=options.model,
        machine=Machine(torch.device(options.device), options.precision),
        batch_seconds=options.batch_seconds,
        device_seconds=device_seconds,
        hf_device_seconds=_seconds("hf_device_seconds", options.hf_device_seconds) or device_seconds,
        compare=_names("compare", options.compare, STOCK),
        repetitions=options.repetitions,
        steps=options.steps,
        manifest=options.manifest,
        off=_optimisations("off", options.off),
        ablate=_optimisations("ablate", options.ablate),
        in_fit=options.in_fit,
    )


def speed_without(off: Sequence[str]) -> Speed:
    """Return the fastest implementation of everything except `off`.

    Args:
        off: NAME for the plain implementation of an optimisation, NAME=VALUE for the one named.
    """
    chosen = {}
    for name, _, value in (optimisation.partition("=") for optimisation in off):
        implementations = choices_of(name)
        chosen[name] = implementations[value] if value else list(implementations.values())[-1]
    return Speed(**chosen)


def weights_and_config(name: str) -> tuple[str | None, dict[str, Any]]:
    """Return the first two arguments of Wav2Vec2CTC: a folder of weights, or None and a config for random weights.

    Raises:
        InputError: `name` is neither a known model nor a folder nor a JSON file.
    """
    if name in CONFIGS:
        return None, CONFIGS[name]
    path = Path(name)
    if path.is_dir():
        return name, {}
    if not path.is_file():
        raise InputError(f"--model is {name!r}: give base, large, a model folder, or a JSON file of its config.")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"--model: {name} is not JSON ({error}); give a model's config.json.") from None
    head_keys = ("vocab_size", "pad_token_id")  # the head is new, for our default vocabulary
    return None, {key: value for key, value in config.items() if key not in head_keys}


def _names(option: str, text: str, known: Collection[str]) -> tuple[str, ...]:
    names = tuple(name for name in text.split(",") if name)
    for name in names:
        _check_known(f"--{option}: {name!r} is unknown", name, known)
    return names


def _optimisations(option: str, text: str | None) -> tuple[str, ...]:
    entries = tuple(entry for entry in (text or "").split(",") if entry)
    for name, has_value, value in (entry.partition("=") for entry in entries):
        _check_known(f"--{option}: {name!r} is unknown", name, OPTIMISATIONS)
        if has_value:
            _check_known(f"--{option}: {value!r} is not an implementation of {name}", value, choices_of(name))
    return entries


def _check_known(problem: str, name: str, known: Collection[str]) -> None:
    if name not in known:
        raise InputError(f"{problem}; choose from {', '.join(known)}.")


def _seconds(name: str, text: str | None) -> tuple[float, ...]:
    try:
        numbers = tuple(float(number) for number in (text or "").split(",") if number)
    except ValueError:
        raise InputError(f"--{name} is {text!r}: give numbers such as 400,800.") from None
    for number in numbers:
        if not number > 0:
            raise InputError(f"--{name} is {number:g}: must be above 0.")
    return numbers
