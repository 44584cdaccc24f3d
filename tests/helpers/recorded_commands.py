"""Commands against a simulated cloud within this process, with a record of their requests.

Fixture: `pytest_plugins = ["recorded_commands"]`.
"""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import boto3
import pytest
from moto import mock_aws
from s3 import use_credentials

from w2v_lightning.sagemaker.command import main

ACCOUNT, REGION, BUCKET = "123456789012", "us-east-1", "our-bucket"
ROLE = f"arn:aws:iam::{ACCOUNT}:role/w2v-training"
CONFIG = Path(__file__).parents[2] / "configs" / "librispeech_100h.yaml"
SUBMIT = [
    *("submit", "--config", str(CONFIG), "--name", "base", "--instance_type", "ml.g4dn.12xlarge", "--count", "2"),
    *("--spot", "--max_hours", "6", "--budget", "1000", "--role", ROLE, "--input_mode", "File", "--region", REGION),
    *("--data", f"s3://{BUCKET}/librispeech", "--output", f"s3://{BUCKET}/runs"),
]


class Recorder:
    """Record of every call from now on, just before it is sent, with answers for the operations that moto lacks."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[str, str, dict]] = []  # service, operation, parameters
        self.answers: dict[str, dict] = {}  # by operation
        self.unrecorded = boto3.Session(region_name=REGION)
        plain = boto3.Session.__init__

        def recorded(session: boto3.Session, *args, **kwargs) -> None:
            plain(session, *args, **kwargs)
            session.events.register("before-parameter-build.*.*", self._remember)
            session.events.register("before-call.*.*", self._record)

        monkeypatch.setattr(boto3.Session, "__init__", recorded)

    def _remember(self, params: dict, context: dict, **_) -> None:
        context["params"] = dict(params)

    def _record(self, model, context: dict, **_):
        self.calls.append((model.service_model.service_name, model.name, context["params"]))
        if model.name in self.answers:
            answer = self.answers[model.name]
            return SimpleNamespace(status_code=403 if "Error" in answer else 200, headers={}, content=b""), answer
        return None


@pytest.fixture
def recorder(monkeypatch, tmp_path) -> Iterator[Recorder]:
    """Yield a Recorder of a cloud that has data, without the user's own settings."""
    use_credentials(monkeypatch)
    for option in ("ROLE", "DATA", "OUTPUT"):
        monkeypatch.delenv(f"W2V_LIGHTNING_{option}", raising=False)
    monkeypatch.chdir(tmp_path)
    with mock_aws():
        recorder = Recorder(monkeypatch)
        s3 = recorder.unrecorded.client("s3")
        s3.create_bucket(Bucket=BUCKET)
        for name in ("train-clean-100.jsonl", "dev-clean.jsonl", "dev-other.jsonl", "shards/a.tar"):
            s3.put_object(Bucket=BUCKET, Key=f"librispeech/{name}", Body=b"{}")
        yield recorder


def run_all_commands(recorder: Recorder, capsys: pytest.CaptureFixture) -> str:
    """Run all commands; return their output."""
    succeed(*SUBMIT)
    submitted = capsys.readouterr()
    name = submitted.out.split()[-1]
    _leave_results(recorder.unrecorded, name)
    for command in (["status", name], ["logs", name], ["list"], ["cost", "--tag", "run=base"], ["cost", name]):
        succeed(*command, "--region", REGION)
    succeed("download", name, "--checkpoints", "--to", "fetched", "--region", REGION)
    succeed("status", "base", "--region", REGION)  # the name of a run, whose jobs are listed
    longer = "--trainer.max_steps", "900000"
    succeed("resubmit", "base", "--instance_type", "ml.g5.xlarge", "--count", "1", "--region", REGION, *longer)
    recorder.answers = {"DescribeTrainingJob": _running_job(name), "StopTrainingJob": {}}
    succeed("stop", name, "--region", REGION)
    printed = capsys.readouterr()
    return submitted.out + submitted.err + printed.out + printed.err


def succeed(*command: str) -> None:
    assert main(list(command)) == 0, command


def _leave_results(cloud: boto3.Session, name: str) -> None:
    """Put what a job would leave into the cloud: a checkpoint, and a log."""
    cloud.client("s3").put_object(Bucket=BUCKET, Key="runs/base/checkpoints/step-00000001.ckpt", Body=b"weights")
    logs, group, stream = cloud.client("logs"), "/aws/sagemaker/TrainingJobs", f"{name}/algo-1-1"
    logs.create_log_group(logGroupName=group)
    logs.create_log_stream(logGroupName=group, logStreamName=stream)
    event = {"timestamp": int(datetime.now(UTC).timestamp() * 1000), "message": "val_wer=0.5"}
    logs.put_log_events(logGroupName=group, logStreamName=stream, logEvents=[event])


def _running_job(name: str) -> dict:
    return {
        "TrainingJobName": name,
        "TrainingJobArn": f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:training-job/{name}",
        "TrainingJobStatus": "InProgress",
        "SecondaryStatus": "Training",
    }
