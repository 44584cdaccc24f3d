"""`python -m w2v_lightning COMMAND ...`: parse, build, run, close."""

import difflib
import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

from w2v_lightning import __version__
from w2v_lightning.errors import InputError
from w2v_lightning.runtime import signals

# Each command names the module whose main(args) runs it; nothing heavy is imported before a command is known.
SAGEMAKER = "w2v_lightning.sagemaker.command"
CLI = "w2v_lightning.cli"
COMMANDS = {
    "fit": (CLI, "train a model, and score it as it learns"),
    "validate": (CLI, "score a model on the validation splits"),
    "test": (CLI, "score a model on the test splits"),
    "predict": (CLI, "transcribe the test splits to a file"),
    "prepare": ("w2v_lightning.prepare.command", "make a manifest, and shards, of a corpus in any of several forms"),
    "check": ("w2v_lightning.check.command", "find what would hurt training in a manifest"),
    "bench": ("w2v_lightning.bench.command", "measure the loader, training or transcription on this machine"),
    "transcribe": ("w2v_lightning.inference.command", "transcribe audio files"),
    "submit": (SAGEMAKER, "start a run as a SageMaker training job"),
    "resubmit": (SAGEMAKER, "resume a run in a new SageMaker job, perhaps on other instances"),
    "status": (SAGEMAKER, "show the state of a job, and what to do next"),
    "logs": (SAGEMAKER, "print what a job has logged"),
    "stop": (SAGEMAKER, "stop a job; its checkpoint is kept"),
    "list": (SAGEMAKER, "list the jobs submitted by this package"),
    "download": (SAGEMAKER, "fetch a job's model, logs and scores"),
    "cost": (SAGEMAKER, "show the time and cost of jobs"),
    "plan": (SAGEMAKER, "recommend instances, their number, and on-demand or spot"),
    "study": (SAGEMAKER, "measure hardware in a matrix of runs, and report on them"),
}
USAGE = "\n".join(
    [
        "usage: python -m w2v_lightning COMMAND [options]",
        "",
        "Fine-tune wav2vec2 for speech recognition.",
        "",
        "commands:",
        *(f"  {name:<12}{what}" for name, (_, what) in COMMANDS.items()),
        "",
        "  COMMAND --help lists its options; `fit --config configs/demo.yaml` needs no data of your own.",
    ]
)


def main(args: list[str] | None = None) -> int:
    """Run a command; returns the exit status. Wrong input ends in one line on standard error."""
    args = sys.argv[1:] if args is None else args
    if not args or args[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    if args[0] == "--version":
        print(__version__)
        return 0
    if args[0] not in COMMANDS:
        return _fail(f"there is no command {args[0]!r}{_nearest_command(args[0])}")
    module, _ = COMMANDS[args[0]]
    signals.give_handlers_a_stack()
    try:
        if args[0] == "fit":
            signals.watch.start()
        _check_torch_pair()
        status = import_module(module).main(args if module in (CLI, SAGEMAKER) else args[1:])
    except InputError as error:
        return _fail(error.line)
    signals.watch.stop()  # not after an exception: until the process has ended, SIGTERM means what it meant
    return status or 0


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


def _nearest_command(word: str) -> str:
    nearest = difflib.get_close_matches(word, COMMANDS, n=1)
    return f"; did you mean {nearest[0]!r}?" if nearest else f"; choose from {', '.join(COMMANDS)}."


def _check_torch_pair() -> None:
    """transformers imports torchaudio where it is installed, and torchaudio raises beside another release of torch.

    2.11.1 raises beside torch 2.11.0 as well, although it asks for no later one.
    """
    try:
        torch, torchaudio = version("torch"), version("torchaudio")
    except PackageNotFoundError as error:
        raise InputError(
            f"{error.name} is not installed; run: pip install 'torch>=2.8,<2.12' 'torchaudio<2.11.1'"
        ) from None
    release = torch.split(".")[:2]
    if release != torchaudio.split(".")[:2] or (torch.split("+")[0], torchaudio.split("+")[0]) == ("2.11.0", "2.11.1"):
        raise InputError(
            f"torch {torch} and torchaudio {torchaudio} do not go together; run: pip install"
            f" 'torchaudio=={'.'.join(release)}.*,<2.11.1', or give both the same version."
        )


if __name__ == "__main__":
    sys.exit(main())
