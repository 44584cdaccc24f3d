"""The command `init`: write a config of `fit` that suits a prepared corpus."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from w2v_lightning.command_line import Parser, parse, parser_of
from w2v_lightning.errors import InputError
from w2v_lightning.init.config_text import config_text
from w2v_lightning.init.corpus import PreparedCorpus
from w2v_lightning.runtime.files import atomic_text_file

BASE = "facebook/wav2vec2-base"


@dataclass(frozen=True)
class InitOptions:
    """Write a config of `fit` that suits a corpus: its splits, vocabulary and hours.

    Args:
        data: folder that `prepare` has written, with a manifest for each split.
        model: folder or Hugging Face name of the model to fine-tune.
        out: path of the config.
    """

    data: Path
    model: str = BASE
    out: Path = Path("my.yaml")


def parser() -> Parser:
    """Return the parser of the command."""
    return parser_of(InitOptions, "init")


def main(args: Sequence[str]) -> int:
    """Run the command; return the exit status.

    Raises:
        InputError: an option is wrong, the folder has no training or no validation split, or the config exists already.
    """
    options = parse(InitOptions, "init", args)
    if options.out.exists():
        raise InputError(f"--out {options.out} exists already, and is kept: name another file, or remove it first.")
    corpus = PreparedCorpus.load(options.data)
    try:
        with atomic_text_file(options.out) as file:
            file.write(config_text(corpus, options.model, options.out))
    except OSError as error:
        raise InputError(f"--out {options.out} cannot be written: {error.strerror}. Name another file.") from None
    print(f"{corpus}.")
    print(f"Wrote {options.out}. To train: python -m w2v_lightning fit --config {options.out}")
    return 0
