"""What a run's files, and the service's description of its job, say in run.json."""

from datetime import UTC, datetime

import pytest
from finished_run import THROUGHPUT, segment, write_history, write_logs

from w2v_lightning.catalog.prices import on_demand
from w2v_lightning.errors import InputError
from w2v_lightning.perf_model import runs
from w2v_lightning.sagemaker.study_runner import job_run
from w2v_lightning.sagemaker.training_job import TrainingJob
from w2v_lightning.study import collect
from w2v_lightning.study.spec import load

BEGAN = datetime(1970, 1, 1, 0, 16, 40, tzinfo=UTC)  # 1,000 s


def moment(seconds):
    return datetime.fromtimestamp(seconds, UTC)


def cell(tmp_path, text):
    (tmp_path / "cfg.yaml").write_text("{}")
    (tmp_path / "study.yaml").write_text(f"{{config: cfg.yaml, cells: [{text}]}}")
    return load(tmp_path / "study.yaml").cells[0]


@pytest.fixture
def local(tmp_path):
    return cell(tmp_path, "{devices: 2}")


@pytest.fixture
def remote(tmp_path):
    return cell(tmp_path, "{instance_type: ml.g4dn.2xlarge, count: 4, pricing: spot}")


def job(seconds=None, region="us-east-1", statuses=("Starting", "Training", "Completed"), **answer):
    times = {} if seconds is None else {"TrainingTimeInSeconds": seconds[0], "BillableTimeInSeconds": seconds[1]}
    return TrainingJob(
        {
            "TrainingJobName": "x4-r1-0a1b2c-0a1b2c-20261123000000",
            "TrainingJobArn": f"arn:aws:sagemaker:{region}:123456789012:training-job/x",
            "TrainingJobStatus": "Completed",
            "CreationTime": moment(900),
            "TrainingStartTime": moment(1000),
            "SecondaryStatusTransitions": [{"Status": status} for status in statuses],
            **times,
            **answer,
        }
    )


def test_an_uninterrupted_run_here(local, tmp_path):
    write_logs(tmp_path, 0, {5: 0.9, 10: 0.8}, THROUGHPUT)
    write_history(tmp_path, segment(1004, 1012, "finished"))
    run = collect.local_run(local, tmp_path, BEGAN, 14.0, {"cores": 2}, "finished")
    assert (run.name, run.where, run.date, run.interruptions) == (
        "local-x2-r1",
        "local",
        "1970-01-01T00:16:40+00:00",
        0,
    )
    assert run.wer == [
        {"step": 5, "elapsed_s": 5.0, "wer": pytest.approx(0.9)},
        {"step": 10, "elapsed_s": 10.0, "wer": pytest.approx(0.8)},
    ]
    assert run.environment == {"cores": 2, "versions": {"torch": "2.11.0"}}
    assert (run.training_s, run.billable_s, run.price) == (14.0, None, None)
    runs.write(run, tmp_path)
    assert runs.read(tmp_path) == run


def test_of_a_run_that_went_on_steps_done_twice_count_once_and_earlier_segments_count(local, tmp_path):
    write_logs(tmp_path, 0, {5: 0.9, 10: 0.8})
    write_logs(tmp_path, 2, {10: 0.7, 15: 0.6}, THROUGHPUT)
    write_logs(tmp_path, 10, {}, {"steps": 40})  # the tenth comes after the second
    write_history(
        tmp_path, segment(1000, 1020, "running"), segment(1100, 1130, "Preempted"), segment(1205, 1210, "finished")
    )
    run = collect.local_run(local, tmp_path, moment(1200), 14.0, {}, "finished")
    assert [(row["step"], round(row["wer"], 3)) for row in run.wer] == [(5, 0.9), (10, 0.7), (15, 0.6)]
    assert run.interruptions == 2
    assert run.training_s == 14 + 20 + 30
    assert run.date == "1970-01-01T00:16:40+00:00"
    assert run.throughput == {"steps": 40}
    assert not any("log_dir" in one for one in run.segments)  # a path of the machine


def test_a_start_after_the_end_is_no_interruption(local, tmp_path):
    write_history(tmp_path, segment(1000, 1020, "finished"), segment(1100, 1101, "finished"))
    assert collect.local_run(local, tmp_path, moment(1090), 14.0, {}, "finished").interruptions == 0


def test_a_run_that_never_trained_has_nothing_to_tell_but_why(local, tmp_path):
    run = collect.local_run(local, tmp_path, BEGAN, 3.0, {}, "exit status 2: no such folder")
    assert (run.throughput, run.wer, run.segments, run.training_s) == ({}, [], [], 3.0)
    assert not run.is_measured


def test_a_damaged_file_is_named(local, tmp_path):
    logs = write_logs(tmp_path, 0, {}, THROUGHPUT)
    (logs / "throughput.json").write_text('{"steps": ')
    with pytest.raises(InputError, match=r"version_0/throughput\.json cannot be read"):
        collect.local_run(local, tmp_path, BEGAN, 3.0, {}, "finished")
    (logs / "throughput.json").write_text('{"steps": "4"}')
    with pytest.raises(
        InputError, match=r"throughput\.json has an invalid value: steps must be a whole number.*found '4'"
    ):
        collect.local_run(local, tmp_path, BEGAN, 3.0, {}, "finished")
    history = tmp_path / collect.HISTORY / "run_history.json"
    history.parent.mkdir()
    history.write_text('[{"started": "yesterday", "ended": "", "end": "finished"}]')
    with pytest.raises(InputError, match=r"run_history\.json has an invalid value: \[0\]\.started must be a time"):
        collect.finished_at(tmp_path)


def test_when_a_run_has_reached_its_end(tmp_path):
    assert collect.finished_at(tmp_path) is None
    write_history(tmp_path / "a", segment(1000, 1020, "finished"), segment(1100, 1130, "running"))
    assert collect.finished_at(tmp_path / "a") is None
    write_history(tmp_path / "b", segment(1000, 1020, "running"), segment(1100, 1130, "finished"))
    assert collect.finished_at(tmp_path / "b") == moment(1130)


def test_a_job_has_the_services_seconds_and_interruptions(remote, tmp_path):
    write_logs(tmp_path, 0, {5: 0.9}, THROUGHPUT)
    write_history(tmp_path, segment(1050, 1080, "running"), segment(1200, 1290, "finished"))
    spot = ("Starting", "Training", "Interrupted", "Starting", "Training", "Interrupted", "Training", "Completed")
    run = job_run(remote, tmp_path, job((300, 90), statuses=spot), "finished")
    assert (run.training_s, run.billable_s, run.interruptions) == (300, 90, 2)
    assert run.date == "1970-01-01T00:16:40+00:00"
    assert run.environment["instance_type"] == "ml.g4dn.2xlarge"
    assert run.environment["cores"] == 8
    price = on_demand("ml.g4dn.2xlarge", "us-east-1")
    assert run.price == {
        **{"usd_per_hour": price.usd_per_hour, "date": price.date, "source": price.source},
        "region": "us-east-1",
    }
    assert run.wer[0]["elapsed_s"] == 5.0


def test_what_the_service_or_the_table_does_not_know_is_not_invented(remote, tmp_path):
    run = job_run(remote, tmp_path, job(region="mars-north-1"), "Failed: no reason")
    assert (run.price, run.billable_s, run.training_s, run.throughput) == (None, None, 0.0, {})
