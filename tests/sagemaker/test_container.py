"""Request and code of a job, run as in a container: it trains, is stopped, resumes, and hands over its model."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import container
import pytest
import sample_job
import soundfile
import torch
from tiny import TINY_CONFIG
from transformers import AutoModelForCTC, AutoProcessor

from w2v_lightning.data.librispeech import load_split
from w2v_lightning.sagemaker import bundle
from w2v_lightning.sagemaker.aws_session import offline_boto_session, offline_sdk_session
from w2v_lightning.sagemaker.job import CHANNEL, METRICS
from w2v_lightning.sagemaker.request import create_training_job, metric_definitions

pytestmark = pytest.mark.slow

STEPS = 120
SPLITS = {"train": ("train-clean-100", 24), "dev": ("dev-clean", 4)}


@pytest.fixture(scope="module", autouse=True)
def _namespaces():
    if why := container.obstacle():
        pytest.skip(why)


@pytest.fixture(scope="module")
def speech(librispeech, tmp_path_factory):
    """Write the shortest utterances of real speech and a manifest for each split, as `prepare` does."""
    root = tmp_path_factory.mktemp("speech")
    for name, (split, number) in SPLITS.items():
        manifest = load_split(librispeech, split)
        rows = []
        for i in manifest.durations_s_N.argsort()[:number]:
            audio = shutil.copy(manifest.audio_paths[i], root)
            row = {"id": manifest.ids[i], "audio_filepath": Path(audio).name, "text": manifest.texts[i]}
            rows.append(json.dumps(row | {"duration": float(manifest.durations_s_N[i]), "speaker": "1"}))
        (root / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
    return root


def config(**data):
    return {
        "model": {"pretrained": None, "config": TINY_CONFIG, "freeze_feature_encoder": False, "learning_rate": 1e-3},
        "data": {
            **{"train_splits": ["train"], "val_splits": ["dev"], "test_splits": ["dev"]},
            **{"batch_seconds": 12, "device_seconds": 6, "num_workers": 1, **data},
        },
        "checkpoint_every": "30 steps",
        "trainer": {"max_steps": STEPS, "max_epochs": -1, "log_every_n_steps": 1, "accelerator": "cpu"},
    }


class Submitted:
    """Job with the request of `submit`, and the hosts that it runs on."""

    def __init__(self, folder, speech, count, config):
        self.folder, self.starts, self.hosts = folder, 0, []
        self.names = [f"algo-{number}" for number in range(1, count + 1)]
        job = replace(sample_job.JOB, config=config, count=count)
        (folder / "bundle").mkdir(parents=True)
        bundle.write(job, folder / "bundle")
        bucket = urlsplit(job.output).netloc
        sdk = offline_sdk_session(offline_boto_session(job.region), bucket, copies=folder / "s3")
        self.request = create_training_job(job, folder / "bundle", sdk)
        self.channels = folder / "channels"
        for channel in self.request["InputDataConfig"]:
            name, uri = channel["ChannelName"], channel["DataSource"]["S3DataSource"]["S3Uri"]
            source = speech if name == CHANNEL else folder / "s3" / uri.removeprefix("s3://")
            shutil.copytree(source, self.channels / name)

    def start(self, network_pid):
        """Start all hosts again, with the checkpoints that any host has written; of one name, the newest."""
        uploaded = [path for host in self.hosts for path in (host.folder / "checkpoints").iterdir()]
        uploaded.sort(key=lambda path: path.stat().st_mtime)
        self.starts += 1
        self.hosts = []
        for index, name in enumerate(self.names):
            folder = self.folder / f"start-{self.starts}" / name
            self.hosts.append(container.Host(folder, self.request, self.channels, self.names, index))
            for path in uploaded:
                shutil.copy2(path, folder / "checkpoints")
        for host in self.hosts:
            host.start(network_pid)

    @property
    def first(self):
        return self.hosts[0].folder

    @property
    def log(self):
        return self.hosts[0].log.read_text()

    def statuses(self):
        return [host.status() for host in self.hosts]

    def history(self):
        return json.loads((self.first / "checkpoints" / "run_history.json").read_text())

    def kill(self):
        for host in self.hosts:
            host.kill()


@pytest.fixture
def submit(tmp_path, speech, monkeypatch):
    """Yield a function that makes a Submitted job; its processes are killed at the end."""
    for name in ("AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    jobs = []
    with container.network() as network_pid:

        def submitted(count, **data):
            jobs.append(Submitted(tmp_path / f"job-{len(jobs)}", speech, count, config(**data)))
            jobs[-1].network_pid = network_pid
            return jobs[-1]

        yield submitted
        for job in jobs:
            job.kill()


def test_a_job_that_is_stopped_goes_on_and_hands_over_a_model(submit, speech):
    job = submit(count=2)

    job.start(job.network_pid)
    job.hosts[0].wait_for("val_wer=")
    for host in job.hosts:
        host.stop()
    assert 0 not in job.statuses(), job.log
    (step,) = re.findall(r"Preempted at step (\d+)\. Saved", job.log)
    assert 0 < int(step) < STEPS
    assert (job.first / "output" / "failure").read_text().startswith("algo-1, rank 0: SIGTERM: ")
    assert list((job.first / "model").iterdir()) == []

    job.start(job.network_pid)
    assert job.statuses() == [0, 0], job.log
    assert f"Resuming from /opt/ml/checkpoints/step-{int(step):08}.ckpt" in job.log
    assert [(segment["end"], segment["world_size"]) for segment in job.history()] == [("Preempted", 2), ("finished", 2)]
    assert not (job.first / "output" / "failure").exists()
    check_model(job.first / "model", speech)
    check_metrics(job.log)
    assert list((job.first / "output" / "tensorboard").rglob("events.out.tfevents*"))
    assert not list((job.first / "output").rglob("*.safetensors"))
    assert list((job.hosts[1].folder / "model").iterdir()) == []
    assert "cannot be read" not in job.hosts[1].log.read_text()

    job.start(job.network_pid)  # the container was lost after the end of training, before the model was uploaded
    assert job.statuses() == [0, 0], job.log
    check_model(job.first / "model", speech)
    assert [segment["end"] for segment in job.history()] == ["Preempted", "finished", "finished"]
    assert job.history()[-1]["first_step"] == job.history()[-1]["last_step"] == STEPS


def check_model(folder, speech):
    model, processor = AutoModelForCTC.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    samples, rate = soundfile.read(sorted(speech.glob("*.flac"))[0], dtype="float32")
    inputs = processor(samples, sampling_rate=rate, return_tensors="pt")
    with torch.no_grad():
        logits_BFV = model(**inputs).logits
    assert torch.isfinite(logits_BFV).all()
    assert isinstance(processor.batch_decode(logits_BFV.argmax(-1))[0], str)
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def check_metrics(log):
    """Check that SageMaker would find the metrics: it searches each line of the log for the group."""
    found = {
        metric["name"]: [float(match[1]) for line in log.splitlines() if (match := re.search(metric["regex"], line))]
        for metric in metric_definitions()
    }
    assert {name for name, values in found.items() if values} == set(METRICS) - {"val_accuracy"}  # pre-training only
    assert all(value > 0 for values in found.values() for value in values)
    assert len(found["val_wer"]) >= 2


def test_a_job_that_fails_says_why(submit):
    job = submit(count=1, train_splits=["nowhere"])
    job.start(job.network_pid)
    assert job.statuses() != [0], job.log
    failure = (job.first / "output" / "failure").read_text()
    assert failure.startswith("algo-1, rank 0: data.root: /opt/ml/input/data/data has no split 'nowhere'")
    assert list((job.first / "model").iterdir()) == []
