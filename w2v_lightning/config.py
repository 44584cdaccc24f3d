"""Configs of `fit` outside of a training run: resolved with all defaults, and built without weights, network or GPU."""

import argparse
import io
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from typing import Any

import yaml

from w2v_lightning.errors import InputError

DEFAULT_CHECKPOINT_EVERY = "15m"  # of `fit`


def resolve(files: Sequence[str], overrides: Sequence[str]) -> dict[str, Any]:
    """All options of `fit`, as `--print_config` prints them: those of the files, then the overrides, then defaults.

    Raises:
        InputError: one of them is wrong.
    """
    from w2v_lightning import cli  # imports torch and Lightning

    named = [argument for file in files for argument in ("--config", file)]
    printed, arguments = io.StringIO(), sys.argv[:]
    try:
        with redirect_stdout(printed):
            cli.main(["fit", *named, *overrides, "--print_config"])
    except SystemExit as end:
        if end.code:
            raise
    finally:
        sys.argv[:] = arguments  # LightningCLI wants its own there
    return yaml.safe_load(printed.getvalue())


def build(config: Mapping[str, Any]) -> tuple[Any, Any]:
    """The module on torch's meta device, where a model has shapes and no weights, and the data module.

    A pretrained model is not fetched: one of wav2vec2-base's shape stands in for it.

    Raises:
        InputError: an option has a value that cannot be.
    """
    import torch  # slow to import, as those below
    from jsonargparse import ArgumentParser

    from w2v_lightning.cli import TASKS, one_line
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
