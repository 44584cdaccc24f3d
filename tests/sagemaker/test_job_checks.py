"""Jobs that are refused before they cost money, and jobs that are not."""

import math
import re
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import boto3
import pytest
import sample_job
import torch
from moto import mock_aws
from s3 import use_credentials
from tiny import TINY_CONFIG

from w2v_lightning.errors import InputError
from w2v_lightning.sagemaker import checks, config_checks
from w2v_lightning.sagemaker.job import Job

REGION = "eu-west-1"
SPLITS = {"train_splits": ["train-clean-100"], "val_splits": ["dev-clean", "dev-other"]}
CONFIG = {
    "task": "ctc",
    "model": {"pretrained": "facebook/wav2vec2-base"},
    "data": {"root": "LibriSpeech", "batch_seconds": 1600.0, **SPLITS},
    "trainer": {"devices": "auto", "num_nodes": 1, "accelerator": "auto", "enable_checkpointing": None},
    "checkpoint": {"monitor": "val_wer/dev-other"},
    "checkpoint_every": "15m",
    "checkpoint_keep": 2,
}
JOB = replace(sample_job.JOB, config=CONFIG, region=REGION)
CUDA_13 = "763104351884.dkr.ecr.eu-west-1.amazonaws.com/pytorch:2.13-cu133-amzn2023-sagemaker"
SHARED_OUT = {"strategy": {"class_path": "w2v_lightning.FSDP2Strategy"}, "precision": "32-true"}
MANIFESTS = {"train-clean-100.jsonl": 8_000_000, "dev-clean.jsonl": 700_000, "dev-other.jsonl": 700_000}
DATA = {**MANIFESTS, "shards/train-clean-100-000000.tar": 512_000_000}


def with_options(job, **options):
    """`job` with other options of `fit`, such as trainer={"devices": 2}."""
    changed = {k: {**job.config[k], **v} if isinstance(v, dict) else v for k, v in options.items()}
    return replace(job, config={**job.config, **changed})


def no_network(service):
    raise AssertionError(f"{service} was asked for")


dry_check = partial(checks.check, clients=no_network, budget=None, is_dry_run=True)


@pytest.fixture
def aws(monkeypatch):
    """Yield a session of a cloud that has the job's two buckets, one of them with data."""
    use_credentials(monkeypatch)
    with mock_aws():
        session = boto3.Session(region_name=REGION)
        s3 = session.client("s3")
        for bucket in ("speech-data", "speech-output"):
            s3.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": REGION})
        for name in DATA:
            s3.put_object(Bucket="speech-data", Key=f"librispeech/{name}", Body=b"{}")
        yield session


@pytest.mark.parametrize("is_dry_run", [True, False])
def test_a_sound_job_passes_and_a_dry_run_names_what_it_leaves_out(aws, capsys, is_dry_run):
    checks.check(JOB, no_network if is_dry_run else aws.client, budget=None, is_dry_run=is_dry_run)
    said = capsys.readouterr()
    assert said.out == ""  # only for the request, which other programs may read
    assert ("Not checked" in said.err and checks.NEEDS_NETWORK in said.err) == is_dry_run


@pytest.mark.parametrize(
    ("job", "words"),
    [
        (replace(JOB, instance_type="ml.g4dn.12xlrge"), ["--instance_type", "ml.g4dn.12xlarge"]),
        (
            replace(JOB, instance_type="ml.p3.2xlarge", image=CUDA_13),
            ["--instance_type", "V100", "13.3", "--image", "12.6"],
        ),
        (replace(JOB, role=""), ["--role is missing", "docs/sagemaker.md"]),
        (replace(JOB, role="w2v-training"), ["--role is 'w2v-training', which is not the ARN"]),
        (replace(JOB, role="arn:aws:iam::123456789012:user/me"), ["--role", "user/me"]),
        (replace(JOB, count=0), ["--count is 0"]),
        (with_options(JOB, trainer={"devices": 2}), ["trainer.devices is 2", "has 4 GPU(s)"]),
        (with_options(JOB, trainer={"devices": "8"}), ["trainer.devices is '8'"]),
        (with_options(JOB, trainer={"devices": [0, 1]}), ["trainer.devices is [0, 1]", "with 2"]),
        (with_options(JOB, trainer={"devices": "0,1,2"}), ["trainer.devices is '0,1,2'", "with 3"]),
        (with_options(JOB, trainer={"num_nodes": 3}), ["trainer.num_nodes is 3", "--count is 2"]),
        (with_options(JOB, trainer={"accelerator": "cpu"}), ["trainer.accelerator is 'cpu'", "8 GPU(s)"]),
        (with_options(JOB, trainer={"devices": "foo"}), ["trainer.devices is 'foo'"]),
        (with_options(JOB, trainer={"precision": "bf16-true"}), ["trainer.precision is bf16-true", "bf16-mixed"]),
        (with_options(JOB, trainer={"strategy": "fsdp2"}), ["fsdp2", "T4s of ml.g4dn.12xlarge", "16-mixed"]),
        (with_options(JOB, trainer=SHARED_OUT), ["fsdp2", "checkpoint_every is 15m", "steps"]),
        (replace(JOB, data="/local/path"), ["--data is '/local/path', must be an S3 URI"]),
        (replace(JOB, max_hours=0), ["--max_hours is 0"]),
        (replace(JOB, max_hours=0.0001), ["--max_hours is 0.0001"]),
        (replace(JOB, max_hours=math.inf), ["--max_hours is inf"]),
        (replace(JOB, max_hours=673, max_wait_hours=1000), ["--max_hours is 673", "672 h (28 days)", "resubmit"]),
        (replace(JOB, max_wait_hours=math.nan), ["--max_wait_hours is nan"]),
        (replace(JOB, max_wait_hours=5), ["--max_wait_hours is 5", "--max_hours 6"]),
        (with_options(JOB, checkpoint_every="never"), ["--spot", "checkpoint_every is never"]),
        (with_options(JOB, trainer={"enable_checkpointing": False}), ["--spot", "trainer.enable_checkpointing"]),
        (with_options(JOB, checkpoint_every="often"), ["checkpoint_every is 'often'", "15m"]),
        (with_options(JOB, checkpoint_keep=0), ["checkpoint_keep is 0"]),
        (with_options(JOB, data={"val_splits": ["dev-clean"]}), ["checkpoint.monitor", "val_wer/dev-clean?"]),
        (with_options(JOB, model={"config": {"hiden_size": 512}}), ["hiden_size", "hidden_size"]),
        (with_options(JOB, model={"config": {"num_attention_heads": 7}}), ["The config does not build"]),
        (with_options(JOB, model={"warmup": 0.7, "hold": 0.7}), ["warmup"]),
        (with_options(JOB, model={"learning_rte": 1e-4}), ["The config does not build", "learning_rte"]),
        (with_options(JOB, data={"batch_seconds": -1}), ["data.batch_seconds"]),
        (with_options(JOB, model={"pretrained": "/models/mine"}), ["model.pretrained", "/opt/ml/input/data/data/mine"]),
    ],
    ids=lambda value: None if isinstance(value, Job) else value[0],
)
def test_what_is_refused_before_anything_is_asked(job, words):
    with pytest.raises(InputError) as raised:
        dry_check(job)
    assert all(word in str(raised.value) for word in words), str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "job",
    [
        with_options(JOB, trainer={"devices": -1, "num_nodes": 2, "accelerator": "cuda"}),
        with_options(JOB, trainer={"devices": 4}),
        with_options(JOB, trainer=SHARED_OUT, checkpoint_every="500 steps"),
        replace(JOB, max_hours=672, max_wait_hours=1000),
        replace(with_options(JOB, checkpoint_every="never"), is_spot=False, max_wait_hours=None),
        replace(JOB, role="arn:aws-cn:iam::123456789012:role/service-role/w2v"),
        with_options(JOB, model={"vocabulary": "build"}),
        with_options(JOB, data={"val_splits": ["dev-clean"]}, checkpoint={"monitor": "val_wer"}),
        with_options(JOB, data={"val_splits": []}),
        with_options(JOB, model={"pretrained": "/opt/ml/input/data/data/mine"}),
    ],
)
def test_what_is_not_refused(job):
    dry_check(job)


def test_what_lies_on_this_machine_is_refused_also_by_its_relative_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "noise").mkdir()
    dry_check(with_options(JOB, model={"pretrained": "noise/not-here"}))
    with pytest.raises(InputError, match=r"data\.augmentation\.noise_folder is noise, a path on this machine"):
        dry_check(with_options(JOB, data={"augmentation": {"noise_folder": "noise"}}))
    for option in ("resume", "ckpt_path"):
        dry_check(replace(JOB, config=JOB.config | {option: "s3://bucket/from.ckpt"}))
        with pytest.raises(InputError, match=f"{option} is /runs/from.ckpt, a path on this machine"):
            dry_check(replace(JOB, config=JOB.config | {option: "/runs/from.ckpt"}))


def test_the_most_that_a_job_can_cost_is_held_against_the_budget():
    job = replace(JOB, region="us-east-1")
    bound = 6 * 2 * checks.on_demand(job.instance_type, job.region).usd_per_hour
    dry_check(job, budget=bound)
    with pytest.raises(InputError) as raised:
        dry_check(job, budget=bound / 2)
    message = str(raised.value)
    assert f"${bound:.2f}" in message
    assert all(
        words in message for words in ("upper bound", "--max_hours 6 x 2 ml.g4dn.12xlarge", "as of", "3 or less")
    )


def test_of_an_estimated_price_the_upper_end_is_held_against_the_budget():
    job = replace(JOB, region="us-east-1", instance_type="ml.p5.4xlarge", count=1, is_spot=False, max_wait_hours=None)
    price = checks.on_demand(job.instance_type, job.region)
    with pytest.raises(InputError, match="ESTIMATED"):
        dry_check(job, budget=6 * price.usd_per_hour)
    dry_check(job, budget=6 * price.most_usd_per_hour + 0.01)


@pytest.mark.parametrize(("max_hours", "budget"), [(12.2, 58.5), (500.0, 100.0), (1.0, 0.5)])
def test_the_hours_that_a_budget_has_room_for_are_within_it(max_hours, budget):
    job = replace(JOB, region="us-east-1", is_spot=False, max_wait_hours=None, max_hours=max_hours)
    with pytest.raises(InputError) as raised:
        dry_check(job, budget=budget)
    hours = float(re.search(r"Give --max_hours (\S+) or less", str(raised.value))[1])
    dry_check(replace(job, max_hours=hours), budget=budget)


def test_a_budget_without_a_price_is_refused():
    with pytest.raises(InputError, match=r"prices\.csv"):
        dry_check(replace(JOB, instance_type="ml.p5e.48xlarge"), budget=1000.0)


# ---- the model -------------------------------------------------------------------------------------------------------


def test_the_model_is_built_without_weights_or_network(monkeypatch):
    monkeypatch.setattr("w2v_lightning.model.wav2vec2.from_pretrained", no_network)
    module, data = config_checks.build(with_options(JOB, model={"config": {"num_hidden_layers": 3}}).config)
    assert module.model.lm_head.weight.device == torch.device("meta")
    assert len(module.model.wav2vec2.encoder.layers) == 3
    assert data.train_splits == ("train-clean-100",)


def test_pretraining_is_built_too():
    config = {**CONFIG, "task": "pretraining", "model": {"config": TINY_CONFIG, "num_negatives": 5}}
    assert type(config_checks.build(config)[0]).__name__ == "Wav2Vec2Pretraining"
    with pytest.raises(InputError, match="vocabulary"):
        config_checks.build(with_options(replace(JOB, config=config), model={"vocabulary": None}).config)


# ---- buckets and data in S3 ------------------------------------------------------------------------------------------


def refused(aws, job):
    with pytest.raises(InputError) as raised:
        checks.check(job, aws.client, budget=None, is_dry_run=False)
    return str(raised.value)


def test_a_bucket_that_does_not_exist_is_refused(aws):
    assert "404" in refused(aws, replace(JOB, output="s3://nobodys-output/runs"))


@pytest.mark.parametrize("option", ["output", "data"])
def test_a_bucket_of_another_region_is_refused(aws, option):
    boto3.client("s3", region_name="us-east-1").create_bucket(Bucket="far-away")
    message = refused(aws, replace(JOB, **{option: "s3://far-away/x"}))
    assert f"--{option}: the bucket far-away is in us-east-1" in message
    assert "--region us-east-1" in message


@pytest.mark.parametrize("uri", ["", "speech-data/librispeech", "/data", "s3://", "https://speech-data/x"])
def test_what_is_no_uri_is_refused(aws, uri):
    assert f"--data is {uri!r}, must be an S3 URI" in refused(aws, replace(JOB, data=uri))


def test_a_uri_may_end_in_a_slash_or_name_the_bucket_alone():
    assert checks.split_uri("--data", "s3://speech-data/a/b/") == ("speech-data", "a/b")
    assert checks.split_uri("--data", "s3://speech-data") == checks.split_uri("--data", "s3://speech-data/")
    assert checks.split_uri("--data", "s3://speech-data") == ("speech-data", "")


def test_nothing_there_is_refused_also_beside_a_folder_whose_name_goes_on(aws):
    message = refused(aws, replace(JOB, data="s3://speech-data/libri"))
    assert "nothing below s3://speech-data/libri" in message
    assert "--to s3://speech-data/libri" in message


def test_a_split_without_manifest_is_named(aws):
    message = refused(aws, with_options(JOB, data={"val_splits": ["dev-other", "test-clean"]}))
    assert "no manifest of test-clean, which" in message
    assert "train-clean-100.jsonl" in message


def test_every_object_is_seen_where_they_come_in_pages(aws, monkeypatch):
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "1")  # S3 lists 1,000 at a time
    checks.check(JOB, aws.client, budget=None, is_dry_run=False)
    assert "no manifest of zz" in refused(aws, with_options(JOB, data={"val_splits": ["dev-other", "zz"]}))


def test_an_empty_manifest_counts_for_nothing():
    with pytest.raises(InputError, match="no manifest of dev-other"):
        checks.check_data(JOB, {**DATA, "dev-other.jsonl": 0})


def test_manifests_without_audio_are_refused():
    with pytest.raises(InputError, match="no audio"):
        checks.check_data(JOB, MANIFESTS)


def test_a_manifest_may_be_named_in_full_or_zipped_where_it_is_mounted():
    zipped = {"train.json": 9, "dev-clean.jsonl.gz": 9, "dev-other.jsonl": 9, "a.tar": 9}
    job = with_options(JOB, data={"train_splits": ["train.json"]})
    checks.check_data(job, zipped)
    with pytest.raises(InputError, match="no manifest of dev-clean, which"):  # from a URL, .jsonl alone is read
        checks.check_data(replace(job, input_mode="stream"), zipped)


@pytest.mark.parametrize(("volume_gb", "is_enough"), [(79, False), (80, True)])
def test_a_copy_of_the_data_has_to_fit_the_disk(volume_gb, is_enough):
    job = replace(JOB, input_mode="File", volume_gb=volume_gb)
    if is_enough:
        checks.check_volume(job, 60_000_000_000)
    else:
        with pytest.raises(InputError, match=r"--volume_gb is 79, .* 60\.0 GB.* give 80 or more"):
            checks.check_volume(job, 60_000_000_000)
    checks.check_volume(replace(job, input_mode="FastFile"), 10**15)


def test_the_disk_is_held_against_the_sizes_in_s3(aws, monkeypatch):
    monkeypatch.setattr(checks, "ROOM_GB", JOB.volume_gb)
    assert "--volume_gb is 100" in refused(aws, replace(JOB, input_mode="File"))


def answering(aws, operation, answer):
    status = SimpleNamespace(status_code=403 if "Error" in answer else 200, headers={}, content=b"")
    aws.events.register(f"before-call.*.{operation}", lambda **_: (status, answer))


def test_access_denied_is_explained(aws):
    answering(aws, "ListObjectsV2", {"Error": {"Code": "AccessDenied", "Message": "no"}, "ResponseMetadata": {}})
    assert "AccessDenied" in refused(aws, JOB)


# ---- other jobs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "is_of_the_run"),
    [("base-100h-0a1b2c-20261123101500", True), ("base-100h-b-0a1b2c-20261123101500", False), ("base-100h", False)],
)
def test_a_run_whose_job_has_not_ended_is_refused(aws, name, is_of_the_run):
    answering(aws, "ListTrainingJobs", {"TrainingJobSummaries": [{"TrainingJobName": name}]})
    if is_of_the_run:
        assert f"python -m w2v_lightning stop {name}" in refused(aws, JOB)
    else:
        checks.check(JOB, aws.client, budget=None, is_dry_run=False)


def test_only_jobs_of_the_run_that_have_not_ended_are_asked_for(aws):
    asked = []
    aws.events.register("provide-client-params.sagemaker.ListTrainingJobs", lambda params, **_: asked.append(params))
    checks.check(JOB, aws.client, budget=None, is_dry_run=False)
    assert [(params["NameContains"], params["StatusEquals"]) for params in asked] == [
        *(("base-100h", "InProgress"), ("base-100h", "Stopping"))
    ]
