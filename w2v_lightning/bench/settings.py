"""What `bench step` is asked to measure: its options, checked, and the model that they name."""

import argparse
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_type_hints

import torch

from w2v_lightning.bench.stepper import Machine
from w2v_lightning.errors import InputError
from w2v_lightning.model.speed import Speed, ways_of
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
PRECISIONS = ("bf16-mixed", "16-mixed", "32-true")
CONFIGS = {"base": {}, "large": LARGE}
STOCK = {"hf": False, "hf-compiled": True}  # whether torch.compile has the model
OPTIMISATIONS = tuple(get_type_hints(Speed))


@dataclass(frozen=True)
class Settings:
    """What is measured; the names are those of the options."""

    model: str
    machine: Machine
    batch_seconds: float
    device_seconds: tuple[float, ...]  # the first one is that of the ablations and of fit
    hf_device_seconds: tuple[float, ...]
    compare: tuple[str, ...]
    repetitions: int
    steps: int
    manifest: str | None
    off: tuple[str, ...]
    ablate: tuple[str, ...]
    in_fit: bool

    def build(self, off: Sequence[str] = (), **options: object) -> Wav2Vec2CTC:
        """The module as a user gets it, from the same weights every time."""
        torch.manual_seed(0)
        pretrained, config = weights_and_config(self.model)
        return Wav2Vec2CTC(pretrained, config, speed=speed_without([*self.off, *off]), **options)


def add_options(parser: argparse.ArgumentParser) -> None:
    has_gpu, every = torch.cuda.is_available(), ",".join(OPTIMISATIONS)
    add = parser.add_argument
    add("--model", default="base", help="base, large, a model folder, or a config as JSON (default %(default)s)")
    add("--precision", choices=PRECISIONS, default=choose_precision("auto")[0], help="(default %(default)s)")
    add("--device", choices=("cuda", "cpu"), default="cuda" if has_gpu else "cpu", help="(default %(default)s)")
    add("--batch-seconds", type=float, default=1600.0, help="audio per step (default %(default)g)")
    add("--device-seconds", help="audio per micro-batch; several, as 800,400, are tried (default: --batch-seconds)")
    add("--compare", default="hf", help=f"any of {','.join(STOCK)}; '' for none (default %(default)s)")
    add("--hf-device-seconds", help="those that stock is tried with (default: --device-seconds)")
    add("--repetitions", type=int, default=5, help="passes of each side (default %(default)d)")
    add("--steps", type=int, default=8, help="different steps in a pass (default %(default)d)")
    add("--manifest", help="whose durations and texts to take; default: like train-clean-100's")
    add("--off", default="", help=f"optimisations to switch off, or NAME=WAY, as attention=packed: {every}")
    add("--ablate", nargs="?", const=every, default="", metavar="NAMES", help="also with each of these alone off (all)")
    add("--in-fit", action="store_true", help="also measure ours inside Trainer.fit, with the usual callbacks")
    add("--json", type=Path, metavar="FILE", help="write all figures there")


def settings_of(options: argparse.Namespace) -> Settings:
    """The options, checked.

    Raises:
        InputError: one of them cannot be; names it.
    """
    for name in ("repetitions", "steps", "batch_seconds"):
        _check_positive(name, getattr(options, name))
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
    """The fastest way for everything but `off`: NAME=WAY goes that way, NAME the plain one."""
    chosen = {}
    for name, _, way in (optimisation.partition("=") for optimisation in off):
        ways = ways_of(name)
        chosen[name] = ways[way] if way else list(ways.values())[-1]
    return Speed(**chosen)


def weights_and_config(name: str) -> tuple[str | None, dict]:
    """What Wav2Vec2CTC takes: a folder of weights, or a config for random ones."""
    if name in CONFIGS:
        return None, CONFIGS[name]
    path = Path(name)
    if path.is_dir():
        return name, {}
    if not path.is_file():
        raise InputError(f"--model is {name!r}: give base, large, a model's folder, or a file of its config as JSON.")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"--model: {name} is not JSON ({error}); give a model's config.json.") from None
    of_the_head = ("vocab_size", "pad_token_id")  # it is new, for our default vocabulary
    return None, {key: value for key, value in config.items() if key not in of_the_head}


def _check_positive(name: str, value: float) -> None:
    if not value > 0:
        raise InputError(f"--{name.replace('_', '-')} must be above 0, found {value:g}.")


def _names(option: str, text: str, known: Collection[str]) -> tuple[str, ...]:
    names = tuple(name for name in text.split(",") if name)
    for name in names:
        _check_known(f"--{option}: there is no {name!r}", name, known)
    return names


def _optimisations(option: str, text: str) -> tuple[str, ...]:
    entries = tuple(entry for entry in text.split(",") if entry)
    for name, has_way, way in (entry.partition("=") for entry in entries):
        _check_known(f"--{option}: there is no {name!r}", name, OPTIMISATIONS)
        if has_way:
            _check_known(f"--{option}: {name} has no way {way!r}", way, ways_of(name))
    return entries


def _check_known(complaint: str, name: str, known: Collection[str]) -> None:
    if name not in known:
        raise InputError(f"{complaint}; choose from {', '.join(known)}.")


def _seconds(name: str, text: str | None) -> tuple[float, ...]:
    try:
        numbers = tuple(float(number) for number in (text or "").split(",") if number)
    except ValueError:
        raise InputError(f"--{name.replace('_', '-')} must be numbers such as 400,800, found {text!r}.") from None
    for number in numbers:
        _check_positive(name, number)
    return numbers
