"""The options of `fit`, resolved on this machine, before anything is paid for."""

import io
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import Any

import yaml

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
