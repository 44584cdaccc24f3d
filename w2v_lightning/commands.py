"""The commands of `python -m w2v_lightning`: for each name its module, and what it does in a few words.

A module of a command has `main(args)`, which returns the exit status, and `parser()`. Nothing heavy is imported before
a command is chosen.
"""

from w2v_lightning.sagemaker.command import COMMANDS as SAGEMAKER_COMMANDS

TRAINER = "w2v_lightning.cli"  # one module for the four commands of LightningCLI, whose `main` is given the name too
COMMANDS = {
    "fit": (TRAINER, "train a model, and score it on the validation splits"),
    "validate": (TRAINER, "score a model on the validation splits"),
    "test": (TRAINER, "score a model on the test splits"),
    "predict": (TRAINER, "transcribe the test splits to a file"),
    "prepare": ("w2v_lightning.prepare.command", "convert a corpus to a manifest, and to shards"),
    "check": ("w2v_lightning.check.command", "find what would hurt training in a manifest"),
    "init": ("w2v_lightning.init.command", "write a config of fit for a prepared corpus"),
    "bench": ("w2v_lightning.bench.command", "measure the loader, training or transcription on this machine"),
    "transcribe": ("w2v_lightning.inference.command", "transcribe audio files"),
    **SAGEMAKER_COMMANDS,
    "completion": ("w2v_lightning.completion", "print a script that completes commands and options in a shell"),
}
