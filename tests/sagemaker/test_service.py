"""The commands against the service, from submission to model, and all errors that AWS may answer instead."""

import io
import re
import socket
import tarfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from s3 import use_credentials
from sagemaker_server import ROLE, story

from w2v_lightning.errors import InputError
from w2v_lightning.sagemaker import aws_session, logs
from w2v_lightning.sagemaker.advice import advice
from w2v_lightning.sagemaker.aws_errors import explain_aws_errors
from w2v_lightning.sagemaker.command import main
from w2v_lightning.sagemaker.training_job import TrainingJob

pytest_plugins = ["s3", "sagemaker_server"]

TWICE_INTERRUPTED = (
    *("Starting", "Downloading", "Training", "Interrupted"),
    *("Starting", "Downloading", "Training", "Interrupted"),
    *("Starting", "Downloading", "Training", "Uploading", "Completed"),
)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """Return the seconds that botocore would have waited."""
    monkeypatch.setattr(logs, "POLL_S", 0.0)
    monkeypatch.setattr(logs, "SETTLE_S", 0.0)
    monkeypatch.setenv("COLUMNS", "200")
    waits = []
    monkeypatch.setattr("botocore.endpoint.time", SimpleNamespace(sleep=waits.append))
    return waits


def model_archive() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        tar.addfile(tarfile.TarInfo("config.json"))
    return buffer.getvalue()


class Container:
    """Instances of a job: what they print and upload as the service goes through its statuses."""

    def __init__(self, account):
        self.account = account
        self.starts = 0

    def on_status(self, job: str, status: str) -> None:
        if status == "Training":
            self.starts += 1
            for host in (1, 2):
                at_ms = 60_000 * self.starts + host
                self.account.print(job, f"algo-{host}", (at_ms, f"start {self.starts} val_wer=0.{9 - self.starts}"))
        if status == "Uploading":
            self.account.put(f"runs/e2e/jobs/{job}/output/model.tar.gz", model_archive())


def submit(account, *more: str) -> int:
    """Submit a run named e2e."""
    for name in ("train-clean-100.jsonl", "dev-clean.jsonl", "dev-other.jsonl", "shards/a.tar"):
        account.put(f"librispeech/{name}", b"{}")
    config = str(Path(__file__).parents[2] / "configs" / "librispeech_100h.yaml")
    places = ["--data", f"s3://{account.bucket}/librispeech", "--output", f"s3://{account.bucket}/runs"]
    machines = ["--instance_type", "ml.g4dn.12xlarge", "--count", "2", "--region", "us-east-1"]
    return main(["submit", "--config", config, "--name", "e2e", "--role", ROLE, *places, *machines, *more])


@pytest.mark.slow
def test_a_spot_job_from_its_submission_over_two_interruptions_to_its_model(account, capsys, tmp_path):
    seconds = {"TrainingTimeInSeconds": 10_000, "BillableTimeInSeconds": 3_000}
    account.service.story = story(*TWICE_INTERRUPTED, **seconds)
    account.service.on_status = Container(account).on_status
    assert submit(account, "--spot", "--max_hours", "6", "--wait") == 0
    printed = capsys.readouterr()
    name, *lines = printed.out.splitlines()
    assert lines == [f"algo-{host}  start {start} val_wer=0.{9 - start}" for start in (1, 2, 3) for host in (1, 2)]
    assert re.findall(r": (\w+)\]", printed.err) == list(TWICE_INTERRUPTED)
    uploaded_is_what_the_job_reads(account, name)

    assert main(["status", "e2e"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"interruptions +2 *\n", shown)
    assert "saving 70%" in shown
    assert main(["download", "e2e", "--to", str(tmp_path)]) == 0
    assert (tmp_path / "model" / "config.json").exists()
    capsys.readouterr()
    assert main(["cost", "e2e"]) == 0
    assert re.search(r" 70% +2 +8\.15\n", capsys.readouterr().out)  # 3,000 s x 2 x $4.89 an hour

    on_another_type = "--instance_type", "ml.g5.xlarge", "--count", "1"
    assert main(["resubmit", "e2e", *on_another_type, "--trainer.max_steps", "900000"]) == 0
    again = account.job(capsys.readouterr().out.split()[0])
    assert again["CheckpointConfig"] == account.job(name)["CheckpointConfig"]
    assert again["ResourceConfig"]["InstanceType"] == "ml.g5.xlarge"


def uploaded_is_what_the_job_reads(account, name: str) -> None:
    job = account.job(name)
    assert job["EnableManagedSpotTraining"]
    assert job["CheckpointConfig"]["S3Uri"] == f"s3://{account.bucket}/runs/e2e/checkpoints"
    channels = {
        channel["ChannelName"]: channel["DataSource"]["S3DataSource"]["S3Uri"] for channel in job["InputDataConfig"]
    }
    keys = account.keys()
    for uri in channels.values():
        assert any(f"s3://{account.bucket}/{key}".startswith(uri) for key in keys), uri
    code = channels["code"].removeprefix(f"s3://{account.bucket}/").rstrip("/")
    for file in ("config.yaml", "requirements.txt", "w2v_lightning/sagemaker/container.py", "w2v_lightning/module.py"):
        assert f"{code}/{file}" in keys


def test_capacity_never_comes(account, capsys):
    nothing = {"TrainingTimeInSeconds": 0, "BillableTimeInSeconds": 0}
    account.service.story = story("Starting", "Starting", "MaxWaitTimeExceeded", **nothing)
    name = account.submit("waits")
    assert main(["logs", name, "--follow"]) == 1
    said = capsys.readouterr().err
    assert "No spot capacity was available" in said
    assert "--max_wait_hours" in said
    assert "w2v_lightning resubmit waits" in said
    assert main(["cost", name]) == 0
    assert re.search(r" 0 min 00 s +0 min 00 s +0% +0 +0\.00\n", capsys.readouterr().out)


def test_a_job_that_fails_shows_its_reason_and_what_to_do(account, capsys):
    reason = "algo-2, rank 5: data.train_splits: s3://bucket/x.jsonl has no manifest"
    account.service.story = story("Starting", "Training", "Failed", FailureReason=reason)[-1:]
    name = account.submit("fails")
    assert main(["status", name]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert reason in shown
    assert f"`python -m w2v_lightning logs {name}`" in shown
    assert "`python -m w2v_lightning resubmit fails` resumes from its checkpoints" in shown


# ---- refusals -------------------------------------------------------------------------------------------------------


def test_throttling_is_waited_out(account, no_waiting, capsys):
    name = account.submit()
    account.service.refuse("DescribeTrainingJob", "ThrottlingException", "Rate exceeded", times=3)
    assert main(["status", name]) == 0
    assert len(no_waiting) == 3
    account.service.refuse("DescribeTrainingJob", "ThrottlingException", "Rate exceeded", times=100)
    assert main(["status", name]) == 2
    assert capsys.readouterr().err == (
        "error: AWS refused DescribeTrainingJob after 8 attempts: Throttling: Rate exceeded. The service is"
        " busy, and waiting between attempts did not help: try again in a minute.\n"
    )


@pytest.mark.parametrize(
    ("command", "operation"),
    [
        (["status"], "DescribeTrainingJob"),
        (["stop"], "StopTrainingJob"),
        (["logs"], "DescribeLogStreams"),
        (["list", "--tag"], "Search"),
        (["cost"], "DescribeTrainingJob"),
        (["download"], "DescribeTrainingJob"),
    ],
)
def test_access_denied_names_the_action_and_the_policy(account, capsys, command, operation):
    account.service.story = story("Training")
    name = account.submit("denied")
    message = f"User: arn:aws:iam::123456789012:user/me is not authorized to perform: service:{operation}"
    account.service.refuse(operation, "AccessDeniedException", message)
    argument = "run=denied" if command[-1] == "--tag" else name
    assert main([*command, argument]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert "launch/policy.json" in line


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (400, "ExpiredTokenException", "have expired: `aws sso login`"),
        (400, "UnrecognizedClientException", "not valid: `aws sso login`"),
        (400, "InvalidSignatureException", "clock is wrong"),
        (400, "ResourceInUse", "another --name"),
        (400, "ResourceLimitExceeded", "Service Quotas"),
        (503, "ServiceUnavailable", "health.aws.amazon.com"),
        (400, "ValidationException", "docs/sagemaker.md"),
    ],
)
def test_every_refusal_ends_in_a_line_with_a_remedy(service, status, code, words):
    client = aws_session.boto_session("us-east-1").client("sagemaker")
    service.refuse("DescribeTrainingJob", code, "So it\nis.", status=status, times=100)
    with pytest.raises(InputError) as raised, explain_aws_errors():
        client.describe_training_job(TrainingJobName="name")
    assert f"{code.removesuffix('Exception')}: So it is. " in str(raised.value)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def test_s3_refuses_in_its_own_way(account):
    client = aws_session.boto_session("us-east-1").client("s3")
    with pytest.raises(InputError, match=r"NoSuchBucket: .*create it, or correct the S3 URI"), explain_aws_errors():
        client.list_objects_v2(Bucket="a-bucket-that-is-not")
    with pytest.raises(InputError, match=r"HeadObject: 404: Not Found. There is no such object"), explain_aws_errors():
        client.head_object(Bucket=account.bucket, Key="nothing")


def test_without_credentials_the_ways_to_get_some_are_named(service, monkeypatch, capsys, tmp_path):
    use_credentials(monkeypatch)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    assert main(["status", "name"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "There are no AWS credentials: `aws sso login`" in line


def test_a_network_that_is_down_is_said_to_be(monkeypatch, capsys):
    use_credentials(monkeypatch)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{unused.getsockname()[1]}")
        assert main(["status", "name"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "Could not connect" in line
    assert "Is the network up" in line


def test_what_is_no_answer_of_aws_is_not_explained_away():
    with pytest.raises(ZeroDivisionError), explain_aws_errors():
        raise ZeroDivisionError


# ---- what to do about a job -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("last", "reason", "words"),
    [
        ("MaxRuntimeExceeded", "", "--max_hours"),
        ("MaxWaitTimeExceeded", "", "--max_wait_hours"),
        ("Interrupted", "", "waits for new ones"),
        ("Stopped", "", "resubmit base"),
        ("Completed", "", "download base-1"),
        ("Failed", "CapacityError: Unable to provision requested ML compute capacity", "another --instance_type"),
        ("Failed", "InternalServerError: We encountered an internal error", "on the side of AWS"),
        ("Failed", "AlgorithmError: OutOfMemoryError: CUDA out of memory.", "data.device_seconds"),
        ("Failed", "OSError: [Errno 28] No space left on device", "--volume_gb"),
        ("Failed", "ClientError: AccessDenied when calling PutObject", "execution role"),
        ("Failed", "something else", "logs base-1"),
    ],
)
def test_every_end_has_advice(last, reason, words):
    answer = story("Starting", "Training", last, FailureReason=reason)[-1]
    job = TrainingJob({"TrainingJobName": "base-1", "CheckpointConfig": {"S3Uri": "s3://b/base/checkpoints"}, **answer})
    assert words in advice(job)
    assert job.run == "base"
