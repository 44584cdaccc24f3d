"""Configs of `fit` outside of a training run: resolved with all defaults, and built without weights, network or GPU."""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from w2v_lightning.command_line import one_line
from w2v_lightning.errors import InputError

DEFAULT_CHECKPOINT_EVERY = "15m"  # of `fit`


def resolve(files: Sequence[str], overrides: Sequence[str]) -> dict[str, Any]:
    """Return all options of `fit`, as `--print_config` prints them: files, then overrides, over the defaults.

    Raises:
        InputError: an option or a file is wrong; names it.
    """
    from w2v_lightning import cli  # slow to import: torch and Lightning

    return cli.resolve(["fit", *(argument for file in files for argument in ("--config", file)), *overrides])


def build(config: Mapping[str, Any]) -> tuple[Any, Any]:
    """Build the module on torch's meta device, where a model has shapes and no weights, and the data module.

    A pretrained model is not fetched: a model with the shape of wav2vec2-base stands in for it.

    Raises:
        InputError: an option has an invalid value.
    """
    import torch  # slow to import, like the modules below
    from jsonargparse import ArgumentParser

    from w2v_lightning.cli import TASKS
    from w2v_lightning.data.datamodule import LibriSpeechDataModule

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(TASKS[config["task"]][0], "model")
    parser.add_class_arguments(LibriSpeechDataModule, "data")
    stand_in = {"pretrained": None} | (
        {"vocabulary": None} if isinstance(config["model"].get("vocabulary"), str) else {}
    )
    try:
        options = parser.parse_object({"model": {**config["model"], **stand_in}, "data": config["data"]})
        with torch.device("meta"):
            parts = parser.instantiate_classes(options)
    except (argparse.ArgumentError, ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"The config does not build: {one_line(str(error))}") from error
    return parts.model, parts.data
