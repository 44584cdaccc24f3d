"""Cells as training jobs, on moto and a service with a story for each job."""

import json
import os
import socket
from functools import cache
from pathlib import Path

import pytest
import yaml
from finished_run import THROUGHPUT, segment, write_history, write_logs
from sagemaker_server import ROLE, story

from w2v_lightning.config import resolve
from w2v_lightning.perf_model import runs
from w2v_lightning.sagemaker import aws_session, bundle, study_runner, submit
from w2v_lightning.sagemaker.command import main
from w2v_lightning.sagemaker.study_runner import SageMaker
from w2v_lightning.study import queue
from w2v_lightning.study.queue import LostError, NoCapacityError
from w2v_lightning.study.spec import load

pytest_plugins = ["s3", "sagemaker_server"]

CONFIGS = Path(__file__).parents[2] / "configs"
TRAINED = {"TrainingTimeInSeconds": 600, "BillableTimeInSeconds": 240}
SPOT = ("Starting", "Training", "Interrupted", "Starting", "Training", "Completed")

_resolved = cache(lambda files, overrides: resolve(files, overrides))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Options are resolved once for all tests, code is not uploaded file by file, and nobody waits."""
    monkeypatch.setattr(bundle, "SUFFIXES", ())
    monkeypatch.setattr(submit, "resolve", lambda files, overrides: _resolved(tuple(files), tuple(overrides)))
    monkeypatch.setattr(SageMaker, "poll_s", 0.0)
    monkeypatch.setattr(queue, "FIRST_WAIT_S", 0.0)
    monkeypatch.setattr(aws_session, "RETRIES", {"mode": "standard", "total_max_attempts": 1})
    for kept in (
        study_runner._boto_session,
        study_runner._client,
        study_runner._session,
        study_runner._offline_session,
    ):
        kept.cache_clear()  # the endpoint is another one for each test


@pytest.fixture
def study(account, tmp_path, monkeypatch):
    """Return a study.yaml of spot jobs, whose data are in the account's bucket."""
    for name in ("ROLE", "DATA", "OUTPUT"):
        monkeypatch.delenv(f"W2V_LIGHTNING_{name}", raising=False)
    for name in ("train-demo.jsonl", "dev-demo.jsonl", "shards/a.tar"):
        account.put(f"demo/{name}", b"{}")
    return write_study(tmp_path, account.bucket)


def write_study(folder, bucket, **keys):
    cell = {"instance_type": "ml.g4dn.2xlarge", "count": [1, 2], "pricing": "spot"}
    found = {"config": str(CONFIGS / "demo.yaml"), "steps": 12, "quota": 2, "max_hours": 2, "cells": [cell]}
    places = {"role": ROLE, "data": f"s3://{bucket}/demo", "output": f"s3://{bucket}/runs"}
    (folder / "study.yaml").write_text(yaml.safe_dump(found | places | keys))
    return folder / "study.yaml"


@pytest.fixture
def runner(study):
    return SageMaker(load(study))


def leave_logs(account, tmp_path):
    """Every job that completes has left its logs and its history."""
    write_logs(tmp_path / "left", 0, {5: 0.5}, THROUGHPUT)
    write_history(tmp_path / "left", segment(1004, 1012, "finished"))

    def on_status(job, status):
        run = job.rsplit("-", 2)[0]
        for path in (tmp_path / "left").rglob("*") if status == "Completed" else ():
            place = "" if path.name == "run_history.json" else "tensorboard/"
            if path.is_file():
                account.put(f"runs/{run}/{place}{path.relative_to(tmp_path / 'left')}", path.read_bytes())
        account.put(f"runs/{run}/checkpoints/step-00000012.ckpt", b"weights")

    account.service.on_status = on_status


def requests_of(account):
    return [account.job(name) for name in job_names(account)]


def job_names(account):
    pages = account._sagemaker.get_paginator("list_training_jobs").paginate(NameContains="g4dn-2xlarge")
    rows = [row for page in pages for row in page["TrainingJobSummaries"]]
    ours = [row["TrainingJobName"] for row in rows]
    return [name for name in ours if account.bucket in json.dumps(account.job(name), default=str)]


# ---- from the file to run.json --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_each_cell_becomes_a_job_and_each_job_a_run(account, study, tmp_path, capsys):
    account.service.story = story(*SPOT, **TRAINED)
    leave_logs(account, tmp_path)
    assert main(["study", "run", str(study), "--to", str(tmp_path / "out")]) == 0
    found = {run.cell["count"]: run for run in runs.read_all(tmp_path / "out")}
    assert sorted(found) == [1, 2]
    for run in found.values():
        assert (run.where, run.outcome, run.interruptions) == ("sagemaker", "finished", 1)
        assert (run.training_s, run.billable_s) == (600, 240)
        assert run.throughput == THROUGHPUT
        assert [row["step"] for row in run.wer] == [5]
        assert run.segments[0]["end"] == "finished"
        assert run.price["region"] == "us-east-1"
        assert run.price["usd_per_hour"] > 0
    requests = requests_of(account)
    assert sorted(request["ResourceConfig"]["InstanceCount"] for request in requests) == [1, 2]
    assert all(request["EnableManagedSpotTraining"] for request in requests)
    assert {request["StoppingCondition"]["MaxRuntimeInSeconds"] for request in requests} == {7200}
    assert len({request["CheckpointConfig"]["S3Uri"] for request in requests}) == 2
    fetched = [path.name for path in (tmp_path / "out").rglob("*.ckpt")]
    assert fetched == [], "checkpoints stay in S3"
    assert "Running 2 of 2 runs" in capsys.readouterr().out
    calls = account.service.calls.count("CreateTrainingJob")
    assert main(["study", "run", str(study), "--to", str(tmp_path / "out")]) == 0
    assert account.service.calls.count("CreateTrainingJob") == calls


def test_what_is_trained_is_what_the_cell_says(account, study, runner, tmp_path):
    cell = load(study).cells[1]
    runner.start(cell, tmp_path, runner.plan(cell))
    (request,) = requests_of(account)
    code = next(channel for channel in request["InputDataConfig"] if channel["ChannelName"] == "code")
    key = code["DataSource"]["S3DataSource"]["S3Uri"].removeprefix(f"s3://{account.bucket}/").rstrip("/")
    config = yaml.safe_load(account.s3.get_object(Bucket=account.bucket, Key=f"{key}/config.yaml")["Body"].read())
    assert (config["trainer"]["max_steps"], config["trainer"]["max_epochs"]) == (12, -1)
    assert config["checkpoint_every"] != "15m", "spot jobs save as often as interruptions make worthwhile"


@pytest.mark.slow
def test_a_job_that_fails_leaves_its_reason_and_the_others_go_on(account, study, tmp_path):
    reason = "AlgorithmError: algo-1, rank 0: CUDA out of memory"
    account.service.story = story("Starting", "Training", "Failed", FailureReason=reason, **TRAINED)
    assert main(["study", "run", str(study), "--to", str(tmp_path / "out")]) == 1
    assert {run.outcome for run in runs.read_all(tmp_path / "out")} == {f"Failed: {reason}"}
    assert {run.billable_s for run in runs.read_all(tmp_path / "out")} == {240}


# ---- no capacity, no quota, no network ------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_quota_that_is_used_up_is_waited_for(account, study, tmp_path):
    account.service.story = story("Starting", "Completed", **TRAINED)
    account.service.refuse("CreateTrainingJob", "ResourceLimitExceeded", "you have 0 ml.g4dn.2xlarge", times=3)
    assert main(["study", "run", str(study), "--to", str(tmp_path / "out")]) == 0
    assert account.service.calls.count("CreateTrainingJob") == 5


@pytest.mark.slow
def test_a_job_for_which_there_was_no_capacity_is_submitted_anew(account, study, tmp_path):
    reason = "CapacityError: Unable to provision requested ML compute capacity."
    account.service.story = story("Starting", "Failed", FailureReason=reason)
    seen = []

    def on_status(job, status):
        seen.append(job)
        if len(seen) > 4:
            account.service.story = story("Starting", "Completed", **TRAINED)

    account.service.on_status = on_status
    assert main(["study", "run", str(study), "--to", str(tmp_path / "out")]) == 0
    assert len(job_names(account)) > 2
    places = [request["CheckpointConfig"]["S3Uri"] for request in requests_of(account)]
    assert len(set(places)) == len(places), "a new start begins at step 0"


def test_capacity_that_is_lost_after_training_has_begun_ends_the_run(account, runner, study, tmp_path):
    cell = load(study).cells[0]
    handle = runner.start(cell, tmp_path, runner.plan(cell))
    early = story("Starting", "Failed", FailureReason="InternalServerError: try again")
    account.service.story = early[-1:]
    with pytest.raises(NoCapacityError, match="InternalServerError"):
        runner.poll(cell, tmp_path, handle)
    account.service.story = story("Starting", "Training", "Failed", FailureReason="InternalServerError", **TRAINED)[-1:]
    assert runner.poll(cell, tmp_path, handle).outcome == "Failed: InternalServerError"


def test_a_start_that_was_cut_short_is_found_by_its_run(account, runner, study, tmp_path):
    account.service.story = story("Starting", "Training")
    cell = load(study).cells[0]
    planned = runner.plan(cell)
    with pytest.raises(LostError):
        runner.poll(cell, tmp_path, planned)
    runner.start(cell, tmp_path, planned)
    assert runner.poll(cell, tmp_path, planned) is None  # it continues


@pytest.mark.parametrize(("code", "status"), [("ThrottlingException", 400), ("InternalFailure", 500)])
def test_a_service_that_is_busy_is_asked_again(account, runner, study, tmp_path, code, status):
    cell = load(study).cells[0]
    handle = runner.start(cell, tmp_path, runner.plan(cell))
    account.service.refuse("DescribeTrainingJob", code, "not now", status=status)
    assert runner.poll(cell, tmp_path, handle) is None


@pytest.mark.slow
def test_what_is_refused_for_good_ends_the_command_with_one_line(account, study, tmp_path, capsys):
    account.service.refuse("CreateTrainingJob", "AccessDeniedException", "not allowed")
    assert main(["study", "run", str(study), "--to", str(tmp_path / "out")]) == 2
    assert "AWS refused CreateTrainingJob: AccessDenied" in capsys.readouterr().err


# ---- a dry run ------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_network(monkeypatch):
    """Return a list that gets all attempts to use the network."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "W2V_LIGHTNING_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    tried = []
    monkeypatch.setattr(socket, "socket", lambda *args, **_: tried.append(args))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **_: tried.append(args))
    return tried


def test_a_dry_run_checks_every_request_and_asks_nobody(tmp_path, no_network, capsys):
    study = write_study(tmp_path, "speech", repetitions=2)
    assert main(["study", "run", str(study), "--to", str(tmp_path / "out"), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "requests of all 4 jobs are valid" in out
    assert [line.split(":")[0].split()[-1] for line in out.splitlines()[1:5]] == [
        "ml.g4dn.2xlarge-x2-spot-r1",
        "ml.g4dn.2xlarge-x1-spot-r1",
        "ml.g4dn.2xlarge-x1-spot-r2",  # there is room for it
        "ml.g4dn.2xlarge-x2-spot-r2",
    ]
    assert "$11.28 at most" in out  # (2 + 1 + 2 + 1) instances x 2 h x $0.94
    assert "days old" in out
    assert no_network == []
    assert not (tmp_path / "out").exists()


def test_a_dry_run_needs_no_account(tmp_path, no_network, capsys, monkeypatch):
    for name in (
        "W2V_LIGHTNING_ROLE",
        "W2V_LIGHTNING_DATA",
        "W2V_LIGHTNING_OUTPUT",
        "AWS_REGION",
        "AWS_DEFAULT_REGION",
    ):
        monkeypatch.delenv(name, raising=False)
    study = write_study(tmp_path, "speech", role=None, data=None, output=None)
    assert main(["study", "run", str(study), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "Examples are used for what is not given yet: region us-east-1, role arn:aws:iam" in out
    assert "requests of all 2 jobs are valid" in out
    assert no_network == []
    assert main(["study", "run", str(study), "--to", str(tmp_path / "out")]) == 2
    assert "--region is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"role": "me"}, "--role"),
        ({"data": "/here"}, "--data"),
        ({"options": {"trainer.devices": 3}}, "trainer.devices is '3'"),
        ({"options": {"data.batch_secods": 3}}, "data.batch_seconds"),
        ({"options": {"checkpoint_every": "never"}}, "checkpoint_every is never"),
    ],
)
def test_a_dry_run_names_what_would_fail(tmp_path, no_network, capsys, keys, message):
    study = write_study(tmp_path, "speech", **keys)
    assert main(["study", "run", str(study), "--dry-run"]) == 2
    assert message in capsys.readouterr().err


def test_names_of_runs_are_what_sagemaker_takes(tmp_path):
    cells = load(write_study(tmp_path, "speech", cells=[{"instance_type": "ml.g4dn.12xlarge"}])).cells
    names = {study_runner._run_name(cell) for cell in cells for _ in range(20)}
    assert len(names) == 20
    assert all(submit.RUN_NAME.fullmatch(name) and len(name) <= submit.MAX_RUN_NAME for name in names)
