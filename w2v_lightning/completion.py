"""The command `completion`: a script that completes commands and options of `w2v-lightning` in a shell."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Literal

from jsonargparse import ArgumentParser, set_parsing_settings

from w2v_lightning import commands
from w2v_lightning.command_line import Parser, parse, parser_of
from w2v_lightning.errors import InputError


@dataclass(frozen=True)
class CompletionOptions:
    """Print a script that completes commands and options of `w2v-lightning`.

    For bash: `w2v-lightning completion bash > ~/.local/share/bash-completion/completions/w2v-lightning`.

    Args:
        shell: name of the shell.
    """

    shell: Literal["bash", "zsh", "tcsh"]


def parser() -> Parser:
    """Return the parser of this command."""
    return parser_of(CompletionOptions, "completion", positional=["shell"])


def main(args: Sequence[str]) -> int:
    """Print the script; returns the exit status.

    Raises:
        InputError: shtab, which writes the script, is not installed.
    """
    options = parse(CompletionOptions, "completion", args, positional=["shell"])
    try:
        import shtab  # noqa: F401  (jsonargparse offers completion only where shtab is installed)
    except ModuleNotFoundError:
        raise InputError("completion needs the package shtab; run: pip install shtab") from None
    set_parsing_settings(add_print_completion_argument=True)
    root = ArgumentParser(prog="w2v-lightning")
    _add_commands(root, commands.COMMANDS)
    root.parse_args([f"--print_completion=shtab-{options.shell}"])  # prints, and ends the process with status 0
    return 0


def _add_commands(root: ArgumentParser, table: Mapping[str, tuple[str, str]]) -> None:
    subcommands = root.add_subcommands()
    for name, (module_name, about) in table.items():
        module = import_module(module_name)
        nested = getattr(module, "COMMANDS", None)
        if nested:
            command = ArgumentParser()
        else:
            command = module.parser(name) if module_name == commands.TRAINER else module.parser()
        subcommands.add_subcommand(name, command, help=about)
        if nested:  # jsonargparse wants each level added before the one below
            _add_commands(command, nested)
