"""Commands `submit`, with its dry run, and `resubmit`, under moto."""

import json
import os
import socket
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from s3 import use_credentials
from sample_job import CONFIG, JOB

from w2v_lightning.errors import InputError
from w2v_lightning.sagemaker import resubmit, submit
from w2v_lightning.sagemaker.command import main

boto3 = pytest.importorskip("boto3", reason="pip install 'w2v-lightning[aws]'")
moto = pytest.importorskip("moto", reason="pip install 'moto[s3]'")

DEMO = str(Path(__file__).parents[2] / "configs" / "demo.yaml")
ROLE = "arn:aws:iam::123456789012:role/w2v-training"
PLACES = ["--role", ROLE, "--data", "s3://speech-data/demo", "--output", "s3://speech-output/runs"]
NEEDED = ["--config", DEMO, "--instance_type", "ml.g4dn.12xlarge", *PLACES]


@pytest.fixture(autouse=True)
def no_settings_of_the_machine(monkeypatch):
    for name in [name for name in os.environ if name.startswith(("AWS_", "W2V_LIGHTNING_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_REGION", "us-east-1")


def new_job(*args):
    return submit.new_job(*submit.parse_options(args))


def changed_job(previous, *args):
    return resubmit.changed_job(previous, *resubmit.parse_options(args))


@pytest.fixture
def resolved(monkeypatch):
    """Resolve configs without LightningCLI, which takes seconds: a config as it is in the file, over defaults."""

    def resolve(files, overrides):
        return CONFIG | yaml.safe_load(Path(files[-1]).read_text()) | {"overrides": list(overrides)}

    for module in (submit, resubmit):
        monkeypatch.setattr(module, "resolve", resolve)


# ---- options --------------------------------------------------------------------------------------------------------


def test_defaults_come_from_the_file(resolved):
    job = new_job(*NEEDED, "--name", "base-100h")
    assert (job.count, job.max_hours, job.input_mode, job.volume_gb) == (1, 24, "FastFile", 100)
    assert (job.is_spot, job.max_wait_hours) == (False, None)
    assert job.image == JOB.image
    assert job.folder == "s3://speech-output/runs/base-100h"


def test_options_come_before_the_environment_and_that_before_nothing(resolved, monkeypatch):
    monkeypatch.setenv("W2V_LIGHTNING_DATA", "s3://of-the-environment/data/")
    monkeypatch.setenv("W2V_LIGHTNING_ROLE", "arn:aws:iam::123456789012:role/other")
    args = ["--config", DEMO, "--instance_type", "ml.g5.xlarge", "--output", "s3://speech-output", "--role", ROLE]
    job = new_job(*args)
    assert (job.data, job.role) == ("s3://of-the-environment/data", ROLE)
    monkeypatch.delenv("W2V_LIGHTNING_DATA")
    with pytest.raises(InputError, match=r"--data is missing.*W2V_LIGHTNING_DATA"):
        new_job(*args)


def test_the_region_is_said_by_somebody(resolved, monkeypatch):
    assert new_job(*NEEDED, "--region", "eu-west-1").region == "eu-west-1"
    assert new_job(*NEEDED).region == "us-east-1"
    monkeypatch.delenv("AWS_REGION")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-west-2")
    assert ".us-west-2." in new_job(*NEEDED).image
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    with pytest.raises(InputError, match="--region"):
        new_job(*NEEDED)


def test_a_spot_job_may_wait_and_saves_as_often_as_its_instances_make_worthwhile(resolved, tmp_path):
    spot = ("--spot", "--max_hours", "6")
    one, four = (new_job(*NEEDED, *spot, "--count", count) for count in "14")
    assert (one.max_wait_hours, four.config["checkpoint_every"]) == (30, "8m")
    assert new_job(*NEEDED, *spot, "--max_wait_hours", "7").max_wait_hours == 7
    own = tmp_path / "own.yaml"
    own.write_text("checkpoint_every: 500 steps")
    job = new_job(*NEEDED, *spot, "--count", "4", "--config", str(own))
    assert job.config["checkpoint_every"] == "500 steps"


def test_only_a_spot_job_waits(resolved):
    with pytest.raises(InputError, match=r"--max_wait_hours.*--spot"):
        new_job(*NEEDED, "--max_wait_hours", "7")


@pytest.mark.parametrize("name", ["under_score", "-hyphen", "hyphen-", "two--hyphens", "a" * 41, "spa ce", ""])
def test_a_name_that_sagemaker_would_refuse(resolved, name):
    with pytest.raises(InputError, match="--name"):
        new_job(*NEEDED, f"--name={name}")


def test_a_run_is_named_after_its_config_and_the_time(resolved, tmp_path):
    config = tmp_path / "My base_100h, with noise and all that we could think of.yaml"
    config.write_text("{}")
    run = new_job(*NEEDED, "--config", str(config)).run
    assert run.startswith("My-base-100h-with-noise")
    assert submit.RUN_NAME.fullmatch(run)
    assert len(run) <= submit.MAX_RUN_NAME


# ---- a resubmission -------------------------------------------------------------------------------------------------


def test_what_is_not_given_stays_as_it_was(resolved):
    previous = replace(JOB, config=CONFIG | {"checkpoint_every": "11m", "overrides": []})
    assert changed_job(previous, "base-100h") == previous
    longer = changed_job(previous, "base-100h", "--max_hours", "20")
    assert longer == replace(previous, max_hours=20, max_wait_hours=26)


def test_other_instances_have_another_interval_unless_the_user_has_set_it(resolved):
    args = ["base-100h", "--instance_type", "ml.g5.xlarge", "--count", "8", "--trainer.max_steps", "9"]
    chosen = changed_job(replace(JOB, config=CONFIG | {"checkpoint_every": "11m"}), *args)
    assert (chosen.instance_type, chosen.count, chosen.config["checkpoint_every"]) == ("ml.g5.xlarge", 8, "5m")
    assert chosen.config["overrides"] == ["--trainer.max_steps", "9"]
    assert chosen.checkpoints == JOB.checkpoints
    by_user = changed_job(replace(JOB, config=CONFIG | {"checkpoint_every": "12m"}), *args)
    assert by_user.config["checkpoint_every"] == "12m"


def test_a_spot_job_goes_on_on_demand(resolved):
    job = changed_job(replace(JOB, config=CONFIG | {"checkpoint_every": "11m"}), "base-100h", "--no_spot")
    assert (job.is_spot, job.max_wait_hours, job.config["checkpoint_every"]) == (False, None, "15m")


# ---- the commands ---------------------------------------------------------------------------------------------------


def test_a_dry_run_shows_request_and_plan_and_opens_no_socket(monkeypatch, capsys):
    tried = []
    monkeypatch.setattr(socket, "socket", lambda *args, **_: tried.append(args))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **_: tried.append(args))
    spot = ["--count", "2", "--spot", "--max_hours", "6"]
    assert main(["submit", *NEEDED, *spot, "--dry_run", "--data.root", "speech", "--trainer.max_epochs", "7"]) == 0
    out, err = capsys.readouterr()
    request = json.loads(out)
    assert request["ResourceConfig"]["InstanceType"] == "ml.g4dn.12xlarge"
    assert request["EnableManagedSpotTraining"] is True
    assert "8 x T4" in err
    assert "16-mixed" in err
    assert tried == []


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--trainer.max_stepz", "9"], "Did you mean"),
        (["--instance_type", "ml.g4dn.13xlarge"], "Did you mean ml.g4dn"),
        (["--config", "missing.yaml"], "missing.yaml"),
        (["--trainer.max_steps", "many"], "max_steps"),
    ],
)
def test_a_wrong_option_ends_here_in_one_line(args, words, capsys):
    assert main(["submit", *NEEDED, *args, "--dry_run"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert words in line


@pytest.mark.parametrize("module", ["boto3", "sagemaker.core.helper.session_helper"])
def test_without_the_sdk_it_is_said_how_to_install_it(monkeypatch, capsys, module):
    monkeypatch.setitem(sys.modules, module, None)
    assert main(["submit", *NEEDED, "--dry_run"]) == 2
    assert "pip install 'w2v-lightning[aws]'" in capsys.readouterr().err


def test_options_of_fit_are_for_those_who_start_one(capsys):
    assert main(["status", "a-job", "--trainer.max_steps", "9"]) == 2
    assert "unrecognized arguments: --trainer.max_steps" in capsys.readouterr().err


@pytest.fixture
def aws(monkeypatch):
    """Yield a client of an account with prepared data, in this process."""
    use_credentials(monkeypatch)
    with moto.mock_aws():
        s3 = boto3.client("s3", region_name="us-east-1")
        for bucket in ("speech-data", "speech-output"):
            s3.create_bucket(Bucket=bucket)
        for name in ("train-demo.jsonl", "dev-demo.jsonl", "shards/train-demo-000000.tar"):
            s3.put_object(Bucket="speech-data", Key=f"demo/{name}", Body=b"{}")
        yield boto3.client("sagemaker", region_name="us-east-1")


@pytest.mark.slow
def test_submitted_and_resubmitted_on_another_type(aws, capsys):
    assert main(["submit", *NEEDED, "--count", "2", "--spot", "--name", "first-try", "--data.root", "speech"]) == 0
    name = capsys.readouterr().out.strip()
    assert main(["resubmit", "first-try"]) == 2
    assert "first-try has trained to its end" in capsys.readouterr().err.splitlines()[-1]
    changes = ["--instance_type", "ml.g5.xlarge", "--count", "1", "--data.batch_seconds", "9"]
    assert main(["resubmit", "first-try", *changes, "--trainer.max_steps", "900000"]) == 0
    names = name, capsys.readouterr().out.strip()
    first, second = (aws.describe_training_job(TrainingJobName=name) for name in names)
    assert first["ResourceConfig"]["InstanceType"] == "ml.g4dn.12xlarge"
    assert second["ResourceConfig"] == {"InstanceType": "ml.g5.xlarge", "InstanceCount": 1, "VolumeSizeInGB": 100}
    assert second["CheckpointConfig"] == first["CheckpointConfig"]
    configs = [config_of(job) for job in (first, second)]
    assert [config["checkpoint_every"] for config in configs] == ["11m", "15m"]
    assert [config["data"]["batch_seconds"] for config in configs] == [8, 9]
    assert configs[1]["model"] == configs[0]["model"]


def test_a_name_that_a_run_has_is_not_taken_for_another(aws, capsys):
    boto3.client("s3").put_object(Bucket="speech-output", Key="runs/taken/checkpoints/best.ckpt", Body=b"")
    assert main(["submit", *NEEDED, "--name", "taken"]) == 2
    assert "w2v_lightning resubmit taken" in capsys.readouterr().err
    assert aws.list_training_jobs()["TrainingJobSummaries"] == []


def config_of(job):
    code = next(channel for channel in job["InputDataConfig"] if channel["ChannelName"] == "code")
    bucket, _, key = code["DataSource"]["S3DataSource"]["S3Uri"].removeprefix("s3://").partition("/")
    body = boto3.client("s3", region_name="us-east-1").get_object(Bucket=bucket, Key=f"{key}/config.yaml")["Body"]
    return yaml.safe_load(body.read())


def job_of_another(aws, name, **more):
    """Create a job that this package did not submit."""
    aws.create_training_job(
        TrainingJobName=name,
        AlgorithmSpecification={"TrainingImage": JOB.image, "TrainingInputMode": "File"},
        RoleArn=ROLE,
        OutputDataConfig={"S3OutputPath": "s3://speech-output"},
        ResourceConfig={"InstanceType": "ml.g5.xlarge", "InstanceCount": 1, "VolumeSizeInGB": 30},
        StoppingCondition={"MaxRuntimeInSeconds": 60},
        **more,
    )


def test_what_cannot_be_gone_on_with_is_said(aws, capsys):
    source = {"S3DataType": "S3Prefix", "S3Uri": "s3://speech-output/code", "S3DataDistributionType": "FullyReplicated"}
    job_of_another(aws, "without-code")
    job_of_another(aws, "with-code", InputDataConfig=[{"ChannelName": "code", "DataSource": {"S3DataSource": source}}])

    def refusal(name):
        assert main(["resubmit", name]) == 2
        return capsys.readouterr().err

    assert "no run of this name" in refusal("never-was")
    assert "not submitted by `python -m w2v_lightning`" in refusal("without-code")
    assert "has no job.json" in refusal("with-code")
    boto3.client("s3").put_object(Bucket="speech-output", Key="code/job.json", Body=b'{"run": "a", "nodes": 1}')
    assert "another version" in refusal("with-code")


def test_two_jobs_do_not_write_the_same_checkpoints(aws, capsys, monkeypatch):
    job_of_another(aws, "still-there")
    monkeypatch.setattr("w2v_lightning.sagemaker.training_job.TrainingJob.has_ended", False)
    assert main(["resubmit", "still-there"]) == 2
    assert "w2v_lightning stop still-there" in capsys.readouterr().err
