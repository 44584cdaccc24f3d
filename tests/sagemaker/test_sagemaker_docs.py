"""docs/sagemaker.md: its commands, options and messages are those of the code, and its links have targets."""

import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest
from botocore import xform_name
from botocore.session import get_session

from w2v_lightning.commands import COMMANDS as COMMANDS_OF_THE_PACKAGE
from w2v_lightning.config import resolve
from w2v_lightning.sagemaker import submit
from w2v_lightning.sagemaker.command import COMMANDS

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "sagemaker.md"
TEXT = DOCUMENT.read_text()
BASH = "\n".join(re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)).replace("\\\n", " ")
LINES = [line.strip() for line in BASH.splitlines() if line.strip()]
OF_THE_CLI = {"--query", "--output", "--region"}
# Messages in the table that come from AWS, not from this package.
OF_AWS = (
    *("ExpiredToken", "InvalidClientTokenId", "UnrecognizedClient", "AccessDenied", "Could not assume role"),
    *("ResourceLimitExceeded", "Throttling", "TooManyRequests", "InsufficientInstanceCapacity", "CapacityError"),
    *("MaxWaitTimeExceeded", "MaxRuntimeExceeded", "CUDA out of memory", "No space left on device"),
    *("No S3 objects found", "Data download failed", "InternalServerError"),
    *("iam:PassRole", "sagemaker:CreateTrainingJob"),
)


def commands(start: str) -> list[str]:
    return [line for line in LINES if line.startswith(start)]


def is_of_sagemaker(line: str) -> bool:
    return line.split()[3] in COMMANDS


@pytest.mark.parametrize("line", [line for line in commands("python -m w2v_lightning") if is_of_sagemaker(line)])
def test_sagemakers_commands_are_taken(line, monkeypatch):
    name, *args = shlex.split(line)[3:]
    module = import_module(COMMANDS[name][0])
    if name != "submit":
        module.parser().parse_args(args)
        return
    options, overrides = submit.parse_options(args)
    if overrides:
        monkeypatch.chdir(ROOT)
        assert resolve(options.config, overrides)


@pytest.mark.parametrize("line", [line for line in commands("python -m w2v_lightning") if not is_of_sagemaker(line)])
def test_the_package_takes_the_command(line):
    name, *args = shlex.split(line)[3:]
    import_module(COMMANDS_OF_THE_PACKAGE[name][0]).parser().parse_args(args)


@pytest.mark.parametrize("line", [line for line in commands("aws") if not line.startswith("aws s3 ")])
def test_aws_has_the_operation_and_its_options(line):
    _, service, operation, *args = shlex.split(line)
    model = get_session().get_service_model(service)
    operations = {xform_name(name, "-"): model.operation_model(name) for name in model.operation_names}
    options = {f"--{xform_name(name, '-')}" for name in operations[operation].input_shape.members} | OF_THE_CLI
    required = {f"--{xform_name(name, '-')}" for name in operations[operation].input_shape.required_members}
    given = {word for word in args if word.startswith("--")}
    assert required <= given <= options


def test_commands_were_found_at_all():
    assert len(commands("python -m w2v_lightning")) >= 12
    assert {line.split()[3] for line in commands("python -m w2v_lightning") if is_of_sagemaker(line)} == {
        *("submit", "resubmit", "status", "logs", "list", "stop", "download", "cost")
    }
    assert len(commands("aws iam")) >= 6


@pytest.mark.parametrize("option", sorted(set(re.findall(r"`(--[a-z_-]+)", TEXT))))
def test_an_option_in_the_text_is_one(option):
    modules = [import_module(COMMANDS[name][0]) for name in ("submit", "resubmit", "download", "cost", "logs")]
    known = {string for module in modules for action in module.parser()._actions for string in action.option_strings}
    assert option in known


def messages() -> list[str]:
    """Return the parts in backticks of the first column of the last table."""
    table = TEXT.partition("| message | what to do |")[2].partition("\n\n")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| ")]
    return [part.strip() for row in rows for quoted in re.findall(r"`([^`]+)`", row) for part in quoted.split("...")]


@pytest.mark.parametrize("message", [m for m in messages() if m not in OF_AWS])
def test_a_message_in_the_table_is_one_of_the_code(message):
    sources = (ROOT / "w2v_lightning").rglob("*.py")
    words = [re.sub(r'"?\s*\n\s*f?"', "", source.read_text()) for source in sources]  # literals over several lines
    assert any(message in text for text in words)


def test_messages_were_found_at_all():
    assert len(messages()) > 20
    assert set(OF_AWS) <= set(messages())


@pytest.mark.parametrize("target", re.findall(r"\]\(([^)]+)\)", TEXT))
def test_a_link_leads_somewhere(target):
    if target.startswith("#"):
        anchors = [re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^#+ (.*)$", TEXT, re.M)]
        assert target[1:] in anchors
    elif not target.startswith("https://"):
        assert (DOCUMENT.parent / target.partition("#")[0]).exists()


def test_the_placeholders_of_the_policies_are_filled_in():
    (sed,) = commands("sed")
    assert set(re.findall(r"s/([A-Z]+)/", sed)) == {"ACCOUNT", "REGION", "BUCKET"}
    for name in re.search(r"for name in ([\w ]+); do", TEXT)[1].split():
        assert (ROOT / "launch" / f"{name}.json").exists()
