"""Command lines: options of a command from a documented dataclass, through jsonargparse.

Every command describes its options once, as a dataclass whose docstring describes the command and, in its section of
arguments, each option (see `check/command.py`). `parse` turns a command line into an instance of it, and gives `--help`
with type and default of each option, `--config FILE.yaml` and `--print_config`, as `fit` has them. Names of options may
be written with dashes or underscores: `--max-seconds` is `--max_seconds`.
"""

import re
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from importlib import import_module
from typing import Any, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

import docstring_parser
from jsonargparse import ActionYesNo, ArgumentParser, DefaultHelpFormatter

from w2v_lightning.errors import InputError, did_you_mean

PROGRAM = "python -m w2v_lightning"
Options = TypeVar("Options")


class PlainErrors:
    """Mixin of a parser: an InputError of one line instead of usage and exit, with the nearest known option."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise an InputError that says which option is wrong, why, and what would be right."""
        raise InputError(_explained(one_line(message)) + self._nearest(message)) from ex

    def _nearest(self, message: str) -> str:
        unknown = re.search(r"(?:[Uu]nrecognized arguments: --|[Kk]ey ['\"]|[Oo]ption ['\"])([\w.-]+)", message)
        return did_you_mean(unknown.group(1).replace("-", "_"), self._known_options()) if unknown else ""

    def _known_options(self) -> list[str]:
        parsers = [self, *getattr(getattr(self, "_subcommands_action", None), "_name_parser_map", {}).values()]
        return [action.dest for parser in parsers for action in parser._actions]


class Parser(PlainErrors, ArgumentParser):
    """Parser of one command."""


class HelpFormatter(DefaultHelpFormatter):
    """Formatter that keeps the paragraphs of a description, and does not name defaults of null or []."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = text.split("\n\n")
        return "\n\n".join(super(HelpFormatter, self)._fill_text(each, width, indent) for each in paragraphs)

    def _expand_help(self, action: Any) -> str:
        text = super()._expand_help(action).replace("type: <class 'Path'>", "type: Path")
        return text.replace(", default: null)", ")").replace(", default: [])", ")")


def one_line(message: str) -> str:
    """Join the lines of a message; jsonargparse nests its own."""
    return " ".join(line.strip() for line in message.splitlines() if line.strip())


def dashed(args: Sequence[str]) -> list[str]:
    """Write underscores for dashes in the names of options, up to `--`: `--max-seconds=3` becomes `--max_seconds=3`."""
    end = list(args).index("--") if "--" in args else len(args)
    return [_underscored(arg) for arg in args[:end]] + list(args[end:])


def _underscored(arg: str) -> str:
    name, equals, value = arg.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value if re.fullmatch(r"--[\w.-]+\+?", name) else arg


def parser_of(options: type, command: str, positional: Sequence[str] = (), has_config: bool = True) -> Parser:
    """Return the parser of a command.

    Args:
        options: dataclass of the options. Its docstring describes the command, its `Args` section the options. Booleans
            become a pair `--x` and `--no_x`, lists may be repeated or take several values. The metadata of a field
            override arguments of `add_argument`: `{"nargs": "?", "const": "all"}` makes the value optional.
        command: name of the command, such as "bench step".
        positional: names of options that have no `--`, in their order.
        has_config: add `--config` and `--print_config`.
    """
    docs = docstring_parser.parse(options.__doc__ or "")
    help_of = {param.arg_name: param.description for param in docs.params}
    description = "\n\n".join(filter(None, (docs.short_description, docs.long_description)))
    parser = Parser(
        prog=f"{PROGRAM} {command}",
        description=description,
        formatter_class=HelpFormatter,
        exit_on_error=True,
    )
    if has_config:
        parser.add_argument(
            "--config", action="config", help="YAML file of these options; may be repeated, later files win"
        )
    hints = get_type_hints(options)
    own = {field.name: field for field in fields(options)}
    for name in [*positional, *(name for name in own if name not in positional)]:
        text = " ".join((help_of.get(name) or "").split()).rstrip(".")
        _add(parser, own[name], hints[name], text, is_positional=name in positional)
    return parser


def _add(parser: Parser, field: Any, hint: Any, text: str, is_positional: bool) -> None:
    flag = field.name if is_positional else f"--{field.name}"
    default = field.default_factory() if field.default_factory is not MISSING else field.default
    kwargs: dict[str, Any] = {"help": text}
    is_required = default is MISSING
    if not is_required:
        kwargs["default"] = default
    if _plain(hint) is bool:
        parser.add_argument(flag, action=ActionYesNo(no_prefix="no_"), **kwargs)
        return
    if get_origin(_plain(hint)) is list:
        kwargs |= {"type": get_args(_plain(hint))[0], "nargs": "+" if is_required or not is_positional else "*"}
        if not is_positional:
            kwargs |= {"action": "extend"}
    else:
        kwargs["type"] = hint
        if is_positional and not is_required:
            kwargs["nargs"] = "?"
    if is_required and not is_positional:
        kwargs["required"] = True
    parser.add_argument(flag, **(kwargs | dict(field.metadata)))


def _plain(hint: Any) -> Any:
    """Return the type without `| None`."""
    if get_origin(hint) in (Union, types.UnionType):
        known = [each for each in get_args(hint) if each is not type(None)]
        return known[0] if len(known) == 1 else hint
    return hint


def parse(
    options: type[Options],
    command: str,
    args: Sequence[str],
    positional: Sequence[str] = (),
) -> Options:
    """Return the options that a command line, and the config files that it names, give.

    Raises:
        InputError: an option is unknown, missing or has an invalid value; names the option.
    """
    return _instance(options, parser_of(options, command, positional), args)


def parse_known(
    options: type[Options], command: str, args: Sequence[str], positional: Sequence[str] = ()
) -> tuple[Options, list[str]]:
    """Return the options of a command that hands all others to `fit`, and those others.

    `--config` names config files of `fit`, so it is an option of the dataclass, if of anything.

    Raises:
        InputError: an option of the command itself is missing or has an invalid value.
    """
    parser = parser_of(options, command, positional, has_config=False)
    known = {string for action in parser._actions for string in action.option_strings}
    own: list[str] = []
    others: list[str] = []
    target = own
    for arg in dashed(args):
        if arg.startswith("--"):
            target = own if arg.partition("=")[0] in known else others
        target.append(arg)
    return _instance(options, parser, own), others


def _instance(options: type[Options], parser: Parser, args: Sequence[str]) -> Options:
    values = parser.parse_args(dashed(args)).as_dict()
    return options(**{field.name: values[field.name] for field in fields(options)})  # type: ignore[arg-type]


def run(commands: Mapping[str, tuple[str, str]], program: str, about: str, args: Sequence[str]) -> int:
    """Run the command that the first argument names; nothing of another is imported.

    Args:
        commands: for each name the module whose `main(args)` runs it, and what it does in a few words.
        program: what is typed before the command, such as "python -m w2v_lightning bench".
        about: what the program does, for `--help`.
        args: the command and its arguments.

    Raises:
        InputError: the command is missing or unknown.
    """
    if not args or args[0] in ("-h", "--help"):
        print(usage(commands, program, about))
        return 0 if args else 2
    name, *rest = args
    if name not in commands:
        advice = did_you_mean(name, list(commands)) or f"; choose from {', '.join(commands)}."
        raise InputError(f"unknown command {name!r}{advice}")
    return import_module(commands[name][0]).main(rest) or 0


def usage(commands: Mapping[str, tuple[str, str]], program: str, about: str) -> str:
    """Return the help text of a program with commands."""
    width = max(map(len, commands)) + 2
    lines = [f"  {name:<{width}}{what}" for name, (_, what) in commands.items()]
    return "\n".join([f"usage: {program} COMMAND [options]", "", about, "", "commands:", *lines])


def _explained(message: str) -> str:
    """Shorten jsonargparse's account of an invalid value to the option, the value and what it must be."""
    key = re.search(r'Parser key "([\w.]+)":', message)
    value = re.search(r"(?:Given value|Got value): (.*)$", message)
    if not key:
        return message
    if literal := re.search(r"typing\.Literal\[([^\]]*)\]", message):
        return (
            f"--{key[1]} is {value[1].strip() if value else 'invalid'}: choose from {literal[1].replace(chr(39), '')}."
        )
    if restricted := re.search(r"Not of type \w+: (?:(\S+) )?does not conform to restriction v(\S+)", message):
        given = restricted[1] or (value[1].strip() if value else "invalid")
        return f"--{key[1]} is {given}: must be {restricted[2].replace('>=', 'at least ').replace('>', 'above ')}."
    number = re.search(
        r"(invalid literal for int\(\) with base 10|could not convert string to float): '(.*?)'", message
    )
    number = number or re.search(r"Expected a <class '(int|float)'>\. (?:Given|Got) value: (.*)$", message)
    if number:
        kind = "a whole number" if number[1].startswith("in") else "a number"
        return f"--{key[1]} is {number[2].strip()}: must be {kind}."
    if value and (first := re.search(r"Errors: - (.*?)(?: - Expected a| Given value)", message)):
        return f"--{key[1]} is {value[1].strip()}: {first[1]}."
    return message
