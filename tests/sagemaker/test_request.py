"""CreateTrainingJob request of a job, made without network."""

import json
import os
import re
import socket
from collections import namedtuple
from dataclasses import replace

import pytest
from sample_job import CONFIG, JOB

from w2v_lightning.errors import InputError
from w2v_lightning.sagemaker import aws_session, bundle
from w2v_lightning.sagemaker.container_callbacks import MetricLines
from w2v_lightning.sagemaker.job import METRICS, Job
from w2v_lightning.sagemaker.request import create_training_job, metric_definitions

pytest.importorskip("sagemaker.train", reason="pip install 'w2v-lightning[aws]'")

Made = namedtuple("Made", "request uploads")
ON_DEMAND = replace(JOB, run="a" * 40, is_spot=False, max_wait_hours=None, input_mode="File")
SMDDP = replace(
    JOB,
    instance_type="ml.p4d.24xlarge",
    config=CONFIG | {"trainer": CONFIG["trainer"] | {"strategy": "smddp"}},
    input_mode="stream",
)


@pytest.fixture(scope="module")
def calls():
    """Yield the attempts to use the network, which fail; after some failures the SDK continues silently."""
    tried = []

    def refuse(*args, **_):
        tried.append(args)
        raise OSError("a test without network")

    with pytest.MonkeyPatch.context() as patch:
        for name in ("connect", "connect_ex"):
            patch.setattr(socket.socket, name, refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        patch.setenv("AWS_CONFIG_FILE", os.devnull)
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
        yield tried


@pytest.fixture(scope="module")
def make(calls, tmp_path_factory):
    """Return a function that makes the request of a job, and copies of its uploads."""
    boto = aws_session.offline_boto_session("us-east-1")

    def make(job):
        folder, uploads = tmp_path_factory.mktemp("bundle"), tmp_path_factory.mktemp("s3")
        bundle.write(job, folder)
        sdk = aws_session.offline_sdk_session(boto, "speech-output", uploads)
        return Made(create_training_job(job, folder, sdk), uploads)

    return make


@pytest.fixture(scope="module")
def spot(make):
    return make(JOB)


@pytest.fixture(scope="module")
def on_demand(make):
    return make(ON_DEMAND)


@pytest.fixture(scope="module")
def smddp(make):
    return make(SMDDP)


def channels(made):
    return {channel["ChannelName"]: channel for channel in made.request["InputDataConfig"]}


def script(made):
    """Return the script that the container runs."""
    (path,) = made.uploads.rglob("sm_train.sh")
    return path.read_text()


def test_nothing_is_asked_of_the_network(spot, on_demand, smddp, calls):
    assert calls == []


def test_a_spot_job(spot):
    request = spot.request
    assert request["ResourceConfig"] == {"InstanceType": "ml.g4dn.12xlarge", "InstanceCount": 2, "VolumeSizeInGB": 100}
    assert request["EnableManagedSpotTraining"] is True
    assert request["StoppingCondition"] == {"MaxRuntimeInSeconds": 6 * 3600, "MaxWaitTimeInSeconds": 12 * 3600}
    assert request["RoleArn"] == JOB.role
    assert request["AlgorithmSpecification"]["TrainingImage"] == JOB.image
    assert {"Key": "run", "Value": "base-100h"} in request["Tags"]
    assert request["Environment"]["FI_PROVIDER"] == "efa"


def test_an_on_demand_job_waits_for_nothing(on_demand):
    assert not on_demand.request.get("EnableManagedSpotTraining")
    assert on_demand.request["StoppingCondition"] == {"MaxRuntimeInSeconds": 6 * 3600}


def test_all_that_belongs_to_a_run_lies_in_its_folder(spot):
    run, job = "s3://speech-output/runs/base-100h", spot.request["TrainingJobName"]
    assert spot.request["CheckpointConfig"] == {"S3Uri": f"{run}/checkpoints", "LocalPath": "/opt/ml/checkpoints"}
    assert spot.request["OutputDataConfig"]["S3OutputPath"] == f"{run}/jobs"
    assert spot.request["TensorBoardOutputConfig"]["S3OutputPath"] == f"{run}/tensorboard"
    uris = {name: channel["DataSource"]["S3DataSource"]["S3Uri"] for name, channel in channels(spot).items()}
    assert uris.pop("data") == "s3://speech-data/librispeech/"
    assert uris == {name: f"{run}/jobs/{job}/input/{name}" for name in ("code", "sm_drivers")}


def test_a_second_job_of_the_run_has_its_checkpoints_and_another_name_within_the_same_second(spot, make):
    second = make(JOB).request
    assert second["CheckpointConfig"] == spot.request["CheckpointConfig"]
    assert (
        len({name[: -len("YYYYmmddHHMMSS")] for name in (second["TrainingJobName"], spot.request["TrainingJobName"])})
        == 2
    )


def test_the_longest_name_of_a_run_leaves_room_for_what_tells_its_jobs_apart(on_demand):
    assert re.fullmatch(r"a{40}-[0-9a-f]{6}-\d{14}", on_demand.request["TrainingJobName"])


def test_the_data_comes_as_asked_for(spot, on_demand, smddp):
    assert [channels(made).get("data", {}).get("InputMode") for made in (spot, on_demand, smddp)] == [
        *("FastFile", "File", None)
    ]
    assert channels(spot)["code"]["InputMode"] == "File"


def test_what_the_user_writes_is_in_the_code_and_not_in_the_request(spot):
    """An apostrophe in a hyperparameter would end the job before it begins."""
    assert spot.request["HyperParameters"] == {}
    assert "it's" not in json.dumps(spot.request)
    (record,) = spot.uploads.rglob("job.json")
    assert record.parent.name == "code"
    assert Job(**json.loads(record.read_text())) == JOB


def test_what_trains_is_started_in_the_place_of_the_shell_that_would_keep_sigterm_to_itself(spot):
    assert re.search(r"^(\w+=\d+ )?exec torchrun .* -m w2v_lightning.sagemaker.container$", script(spot), re.MULTILINE)


def test_smddp_is_started_by_mpirun_where_it_works(smddp):
    assert re.search(r"^exec .*-m w2v_lightning\.sagemaker\.mpirun$", script(smddp), re.MULTILINE)
    strategies = [
        *("smddp", {"class_path": "w2v_lightning.SMDDPStrategy"}),
        *("auto", "ddp", {"class_path": "w2v_lightning.SMDDPStrategy", "init_args": {"backend": "nccl"}}),
    ]
    jobs = [replace(SMDDP, config=CONFIG | {"trainer": {"strategy": strategy}}) for strategy in strategies]
    assert [job.uses_mpirun for job in jobs] == [True, True, False, False, False]
    assert not replace(SMDDP, instance_type="ml.p5.48xlarge").uses_mpirun


def test_a_request_that_sagemaker_would_refuse_is_not_sent(make):
    with pytest.raises(InputError, match=r"refuse.*InstanceCount"):
        make(replace(JOB, count=-1))


def test_no_telemetry_and_none_of_the_users_own_settings_of_the_sdk(calls, monkeypatch, tmp_path):
    from sagemaker.core.common_utils import resolve_value_from_config
    from sagemaker.core.telemetry.telemetry_logging import TELEMETRY_OPT_OUT_PATH

    before, own = len(calls), tmp_path / "config.yaml"
    own.write_text("{SchemaVersion: '1.0', SageMaker: {PythonSDK: {Modules: {TelemetryOptOut: false}}}}")
    monkeypatch.setenv("SAGEMAKER_USER_CONFIG_OVERRIDE", str(own))
    sdk = aws_session.sdk_session(aws_session.offline_boto_session("us-east-1"), "speech-output")
    assert resolve_value_from_config(config_path=TELEMETRY_OPT_OUT_PATH, sagemaker_session=sdk) is True
    assert len(calls) == before


def test_metrics_are_found_in_the_lines_that_training_prints(capsys):
    values = dict(zip(METRICS, (0.0612, 1.98e-05, 12.0, 0.5, -3.25, 812), strict=True))
    trainer = type("Trainer", (), {"is_global_zero": True, "sanity_checking": False, "callback_metrics": values})()
    MetricLines().on_validation_end(trainer, None)
    MetricLines().on_train_batch_end(trainer)
    log = "step 3/9  WER 99.0 %\nbest_val_wer=0.5\nval_wer=nan\n" + capsys.readouterr().out
    for metric in metric_definitions():
        assert [float(value) for value in re.findall(metric["regex"], log)] == [values[metric["name"]]]
