"""`python -m w2v_lightning COMMAND ...`: parse, build, run, close."""

import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

from w2v_lightning import __version__, command_line
from w2v_lightning.commands import COMMANDS, TRAINER
from w2v_lightning.errors import InputError
from w2v_lightning.runtime import signals

ABOUT = """\
Fine-tune wav2vec2 for speech recognition.

`fit --config configs/demo.yaml` needs no data of your own. `COMMAND --help` lists the options of a command."""


def main(args: list[str] | None = None) -> int:
    """Run a command; returns the exit status. Wrong input ends in one line on standard error."""
    args = sys.argv[1:] if args is None else args
    if args == ["--version"]:
        print(__version__)
        return 0
    signals.use_alternate_signal_stack()
    try:
        if args[:1] == ["fit"]:
            signals.sigterm.start()
        if args[:1] and args[0] in COMMANDS:  # help and a misspelt command need no torch
            _check_torch_pair()
            _check_transformers()
        status = _run(args)
    except InputError as error:
        print(f"error: {error.line}", file=sys.stderr)
        return 2
    # Not after an exception: SIGTERM is then still handled during shutdown.
    signals.sigterm.stop()
    return status


def _run(args: list[str]) -> int:
    if args and args[0] in COMMANDS and COMMANDS[args[0]][0] == TRAINER:
        from w2v_lightning import cli

        return cli.main(args)
    return command_line.run(COMMANDS, command_line.PROGRAM, ABOUT, args)


def _check_torch_pair() -> None:
    """Check the pair that transformers imports: torchaudio raises beside another release of torch.

    2.11.1 raises beside torch 2.11.0 as well, although it asks for no later one.
    """
    try:
        torch, torchaudio = version("torch"), version("torchaudio")
    except PackageNotFoundError as error:
        raise InputError(
            f"{error.name} is not installed; run: pip install 'torch>=2.5.1,<2.12' 'torchaudio<2.11.1'"
        ) from None
    release = torch.split(".")[:2]
    if release != torchaudio.split(".")[:2] or (torch.split("+")[0], torchaudio.split("+")[0]) == ("2.11.0", "2.11.1"):
        raise InputError(
            f"torch {torch} and torchaudio {torchaudio} do not go together; run: pip install"
            f" 'torchaudio=={'.'.join(release)}.*,<2.11.1', or give both the same version."
        )


def _check_transformers() -> None:
    """Raise an InputError if transformers does not work with the installed torch.

    transformers 5.19 uses torch.accelerator, which came with torch 2.6. Later releases disable any torch before 2.6;
    importing a model then fails with a message that does not name torch.
    """
    with suppress(PackageNotFoundError):
        torch, transformers = version("torch"), version("transformers")
        if _release(torch) < (2, 6) and _release(transformers) >= (5, 19):
            raise InputError(
                f"transformers {transformers} does not work with torch {torch}, which is too old for it; run:"
                " pip install 'transformers>=5.1,<5.19', or install torch 2.6 or later."
            )


def _release(version: str) -> tuple[int, ...]:
    """Return major and minor release number."""
    return tuple(map(int, version.split(".")[:2]))


if __name__ == "__main__":
    sys.exit(main())
