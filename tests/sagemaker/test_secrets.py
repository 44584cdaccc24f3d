"""Keys in files and in the environment are not printed, logged, sent with a job, or bundled."""

import io
import json
import logging
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import boto3
import pytest
from recorded_commands import BUCKET, SUBMIT, run_all_commands, succeed
from sample_job import JOB

from w2v_lightning.errors import InputError
from w2v_lightning.sagemaker import bundle
from w2v_lightning.sagemaker.command import main

pytest_plugins = ["recorded_commands"]

REPOSITORY = Path(__file__).parents[2]
# Made up, in the form of real ones.
KEY_ID, SECRET_KEY = "AKIA" + "QWERTYUIOPASDFGH", "hunter2/" + "Abcd+EFGH" * 3 + "ijklm"
TOKENS = {
    "AWS_SESSION_TOKEN": "FwoGZXIvYXdzEPlanted0123456789",
    "HF_TOKEN": "hf_" + "PlantedToken" * 2 + "0123456789",
    "WANDB_API_KEY": "0123456789abcdef" * 2 + "planted1",
    "GITHUB_TOKEN": "ghp_PlantedPlantedPlanted0123456789",
}
PEM = "-----BEGIN RSA PRIVATE KEY-----\nMIIEplantedplantedplanted\n-----END RSA PRIVATE KEY-----\n"
CREDENTIALS = f"[default]\naws_access_key_id = {KEY_ID}\naws_secret_access_key = {SECRET_KEY}\n"
PLANTED = (KEY_ID, SECRET_KEY, "MIIEplanted", *TOKENS.values())


def assert_free_of_secrets(text: str | bytes, where: str) -> None:
    text = text.decode("utf-8", errors="replace") if isinstance(text, bytes) else text
    assert not [secret for secret in PLANTED if secret in text], where


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """Replace the package by a copy in which a developer has left keys; return its folder."""
    root = tmp_path / "w2v_lightning"
    shutil.copytree(bundle.PACKAGE, root, ignore=shutil.ignore_patterns("__pycache__"))
    for folder in (root, root / "data", root / "catalog"):
        (folder / ".env").write_text(f"AWS_SECRET_ACCESS_KEY={SECRET_KEY}\nHF_TOKEN={TOKENS['HF_TOKEN']}\n")
        (folder / "id_rsa.pem").write_text(PEM)
        (folder / "credentials").write_text(CREDENTIALS)
        (folder / ".aws").mkdir()
        (folder / ".aws" / "config.yaml").write_text(CREDENTIALS)
        (folder / "keys.json").write_text(json.dumps(TOKENS))
    monkeypatch.setattr(bundle, "PACKAGE", root)
    return root


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """Set a home folder with credentials, and an environment with other tokens; return the folder."""
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "credentials").write_text(CREDENTIALS)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("AWS_CONFIG_FILE", raising=False)
    for name, token in TOKENS.items():
        if not name.startswith("AWS_"):
            monkeypatch.setenv(name, token)
    return tmp_path


@pytest.fixture
def everything_logged() -> Iterator[io.StringIO]:
    """Yield a stream of everything that any library logs."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    logging.getLogger().addHandler(handler)
    yield stream
    logging.getLogger().removeHandler(handler)


@pytest.mark.slow
@pytest.mark.parametrize("source", ["environment", "home"])
def test_no_command_shows_or_sends_them(source, recorder, package, home, everything_logged, monkeypatch, capsys):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    if source == "environment":
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY_ID)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
        monkeypatch.setenv("AWS_SESSION_TOKEN", TOKENS["AWS_SESSION_TOKEN"])
    assert boto3.Session().get_credentials().secret_key == SECRET_KEY
    assert_free_of_secrets(run_all_commands(recorder, capsys), "what was printed")
    assert_free_of_secrets(everything_logged.getvalue(), "what was logged")
    requests = [params for _, operation, params in recorder.calls if operation == "CreateTrainingJob"]
    assert len(requests) == 2
    assert_free_of_secrets(json.dumps(requests, default=str), "the requests")
    for name, body in uploaded(recorder).items():
        assert_free_of_secrets(body, name)


def uploaded(recorder) -> dict[str, bytes]:
    s3 = recorder.unrecorded.client("s3")
    found = [
        item["Key"] for page in s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET) for item in page["Contents"]
    ]
    assert any(name.endswith("w2v_lightning/module.py") for name in found), "the code is not there at all"
    assert not [name for name in found if name.endswith((".pem", ".env", "credentials", "keys.json"))]
    return {name: s3.get_object(Bucket=BUCKET, Key=name)["Body"].read() for name in found}


@pytest.mark.slow
def test_a_refusal_does_not_show_them(recorder, package, home, monkeypatch, capsys):
    """Neither AWS's message nor a traceback brings up what a request was signed with."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    refusal = {"Error": {"Code": "InvalidClientTokenId", "Message": "The token is invalid."}, "ResponseMetadata": {}}
    recorder.answers = {"HeadBucket": refusal}
    assert main(SUBMIT) == 2
    printed = capsys.readouterr()
    assert "InvalidClientTokenId" in printed.err
    assert_free_of_secrets(printed.out + printed.err, "what was printed")


@pytest.mark.slow
def test_a_dry_run_does_not_show_them_either(recorder, package, home, capsys):
    succeed(*SUBMIT, "--dry-run")
    printed = capsys.readouterr()
    assert json.loads(printed.out)["TrainingJobName"].startswith("base-")
    assert_free_of_secrets(printed.out + printed.err, "what was printed")
    assert recorder.calls == []


def test_the_bundle_has_none_of_them(package, tmp_path):
    folder = tmp_path / "bundle"
    folder.mkdir()
    bundle.write(JOB, folder)
    names = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    assert "w2v_lightning/module.py" in names
    for name in names:
        assert_free_of_secrets((folder / name).read_bytes(), name)


@pytest.mark.parametrize(
    "name", ["w2v_lightning/mine.yaml", "w2v_lightning/data/reader.py", "w2v_lightning/catalog/defaults.yaml"]
)
@pytest.mark.parametrize("text", [CREDENTIALS, PEM, f"token: {TOKENS['HF_TOKEN']}\n"], ids=["aws", "pem", "hf"])
def test_a_key_in_what_is_bundled_is_refused_and_not_repeated(name, text, package, tmp_path):
    with (package.parent / name).open("a") as file:
        file.write(text)
    folder = tmp_path / "bundle"
    folder.mkdir()
    with pytest.raises(InputError) as raised:
        bundle.write(JOB, folder)
    assert name in str(raised.value)
    assert_free_of_secrets(str(raised.value), "the message")


def test_an_option_that_holds_a_key_is_refused(tmp_path):
    """The resolved config is bundled, too."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    job = replace(JOB, config={**JOB.config, "note": f"aws_secret_access_key: {SECRET_KEY}"})
    with pytest.raises(InputError, match=r"config\.yaml") as raised:
        bundle.write(job, folder)
    assert_free_of_secrets(str(raised.value), "the message")
