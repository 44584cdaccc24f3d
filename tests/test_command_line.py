"""Command lines from dataclasses: values, errors of one line, config files, help, and options handed to `fit`."""

import re
from dataclasses import dataclass, field, fields
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import docstring_parser
import pytest
import yaml
from jsonargparse.typing import PositiveFloat, PositiveInt

from w2v_lightning import command_line
from w2v_lightning.__main__ import main
from w2v_lightning.command_line import dashed, parse, parse_known, parser_of
from w2v_lightning.commands import COMMANDS, TRAINER
from w2v_lightning.errors import InputError


@dataclass(frozen=True)
class Options:
    """Measure something.

    What is measured is explained here, over
    two lines.

    Args:
        files: paths of files.
        val: paths of other files.
        max_seconds: longest duration in seconds.
        decode: reading of every sample.
        spot: managed spot instances; default: as before.
        where: place to run.
        report: file to write.
        count: number of repetitions.
    """

    files: list[str]
    val: list[str] = field(default_factory=list)
    max_seconds: PositiveFloat = 30.0
    decode: bool = False
    spot: bool | None = None
    where: Literal["here", "there"] = "here"
    report: Path | None = None
    count: PositiveInt | None = None


def parsed(*args):
    return parse(Options, "measure", args, positional=["files"])


def test_defaults_are_those_of_the_dataclass():
    assert parsed("a") == Options(["a"])


def test_dashes_and_underscores_are_the_same():
    assert parsed("a", "--max-seconds", "4") == parsed("a", "--max_seconds=4") == Options(["a"], max_seconds=4.0)
    assert dashed(["--a-b=c-d", "e-f", "-c", "--data.x-y+=1", "--", "--g-h"]) == [
        *("--a_b=c-d", "e-f", "-c", "--data.x_y+=1", "--", "--g-h")
    ]


def test_lists_take_several_values_and_may_be_repeated():
    assert parsed("a", "b", "--val", "x", "y", "--val", "z") == Options(["a", "b"], val=["x", "y", "z"])


def test_booleans_have_a_yes_and_a_no():
    assert parsed("a", "--decode", "--spot") == Options(["a"], decode=True, spot=True)
    assert parsed("a", "--no-decode", "--no_spot") == Options(["a"], decode=False, spot=False)


def test_metadata_of_a_field_override_arguments_of_the_parser():
    @dataclass(frozen=True)
    class Special:
        """Measure something.

        Args:
            names: names; without a value: all.
            numbers: numbers that replace the default.
        """

        names: str | None = field(default=None, metadata={"nargs": "?", "const": "a,b"})
        numbers: list[int] = field(default_factory=lambda: [1, 2], metadata={"nargs": "*", "action": "store"})

    def special(*args):
        return parse(Special, "measure", args)

    assert special() == Special(None, [1, 2])
    assert special("--names", "--numbers") == Special("a,b", [])
    assert special("--names", "c", "--numbers", "3") == special("--names=c", "--numbers=3") == Special("c", [3])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["a", "--count", "0"], "--count is 0: must be above 0."),
        (["a", "--count", "x"], "--count is x: must be a whole number."),
        (["a", "--max-seconds=-1"], "--max_seconds is -1: must be above 0."),
        (["a", "--where", "away"], "--where is away: choose from here, there."),
        (["a", "--max-secnds", "3"], "unrecognized arguments: --max_secnds 3. Did you mean max_seconds?"),
        ([], "the following arguments are required: files"),
    ],
)
def test_a_wrong_option_is_one_line(args, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        parsed(*args)


def test_options_may_stand_in_files_of_which_later_ones_win(tmp_path):
    for name, options in {"a": {"val": ["q"], "max_seconds": 7, "decode": True}, "b": {"max_seconds": 8}}.items():
        (tmp_path / name).write_text(yaml.safe_dump(options))
    options = parsed("f", "--config", str(tmp_path / "a"), "--config", str(tmp_path / "b"), "--where", "there")
    assert options == Options(["f"], val=["q"], max_seconds=8.0, decode=True, where="there")


def test_a_printed_config_gives_the_same_options(tmp_path, capsys):
    args = ["a", "--val", "x", "--count", "3"]
    with pytest.raises(SystemExit) as ended:
        parsed(*args, "--print_config")
    assert ended.value.code == 0
    file = tmp_path / "config.yaml"
    file.write_text(capsys.readouterr().out)
    assert parsed("b", "--config", str(file)) == parsed(*args)


def test_a_config_that_is_missing_is_named():
    with pytest.raises(InputError, match=r"nowhere\.yaml"):
        parsed("a", "--config", "nowhere.yaml")


def test_help_has_paragraphs_types_and_defaults_and_no_defaults_of_null(capsys):
    with pytest.raises(SystemExit) as ended:
        parsed("--help")
    assert ended.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert text.startswith("usage: python -m w2v_lightning measure [--config")
    assert "Measure something. What is measured is explained here, over two lines." in text
    assert "longest duration in seconds (type: PositiveFloat, default: 30.0)" in text
    assert "file to write (type: Path | null)" in text


def test_other_options_are_left_for_fit():
    args = [
        "a",
        "--trainer.max-steps",
        "3",
        "--val",
        "x",
        "--data.root=s3://b/c-d",
        "--count=2",
        "--trainer.callbacks+=X",
    ]
    options, others = parse_known(Options, "submit", args, positional=["files"])
    assert options == Options(["a"], val=["x"], count=2)
    assert others == ["--trainer.max_steps", "3", "--data.root=s3://b/c-d", "--trainer.callbacks+=X"]


def test_an_unknown_command_is_one_line_with_the_nearest():
    commands = {"step": ("json", "a step"), "loader": ("json", "a loader")}
    with pytest.raises(InputError, match=r"^unknown command 'stepp'\. Did you mean step\?$"):
        command_line.run(commands, "bench", "Measure.", ["stepp"])
    with pytest.raises(InputError, match=r"^unknown command 'x'; choose from step, loader\.$"):
        command_line.run(commands, "bench", "Measure.", ["x"])


# ---- all commands of the package ------------------------------------------------------------------------------------


def commands(table=COMMANDS, before=""):
    """(words typed, name of the module) of every command, those within commands too; imports only tables."""
    for name, (module_name, _) in table.items():
        if module_name == TRAINER:
            continue
        source = Path(find_spec(module_name).origin).read_text(encoding="utf-8")
        if "\nCOMMANDS = {" in source:
            yield from commands(import_module(module_name).COMMANDS, f"{before}{name} ")
        else:
            yield pytest.param(f"{before}{name}", module_name, id=f"{before}{name}")


@pytest.mark.parametrize(("words", "module"), list(commands()))
def test_every_command_explains_all_its_options(words, module, capsys):
    parser = import_module(module).parser()
    assert parser.prog == f"python -m w2v_lightning {words}"
    undocumented = [action.dest for action in parser._actions if not action.help]
    assert not undocumented
    assert main([*words.split()]) == 2 if needs_arguments(parser) else True
    with pytest.raises(SystemExit) as ended:
        main([*words.split(), "--help"])
    assert ended.value.code == 0
    assert f"usage: python -m w2v_lightning {words}" in capsys.readouterr().out


def needs_arguments(parser):
    return any(action.required for action in parser._actions)


@pytest.mark.parametrize(("words", "module"), list(commands()))
def test_help_of_an_option_begins_with_a_noun_in_small_letters(words, module):
    starts = re.compile(
        r"^(of|as|for|with|by|such|what|all|where|those|one|none|how|whether|to|also|be|is)\b", re.IGNORECASE
    )
    for action in import_module(module).parser()._actions:
        if action.dest in ("help", "print_config"):
            continue
        assert not starts.match(action.help), f"{words}: --{action.dest}: {action.help}"


def test_dataclass_docs_match_their_fields():
    documented = {param.arg_name for param in docstring_parser.parse(Options.__doc__).params}
    assert documented == {each.name for each in fields(Options)}
    assert parser_of(Options, "measure", ["files"]).prog == "python -m w2v_lightning measure"


def test_completion_knows_commands_and_options(capsys):
    pytest.importorskip("shtab")
    with pytest.raises(SystemExit) as ended:
        main(["completion", "bash"])
    assert ended.value.code == 0
    script = capsys.readouterr().out
    assert {"transcribe", "--device_seconds", "--trainer.max_steps", "resubmit"} <= set(re.findall(r"[\w.-]+", script))
