"""Sample Job, and minimal configs."""

from w2v_lightning.sagemaker.job import Job

CONFIG = {
    "task": "ctc",
    "model": {"pretrained": "facebook/wav2vec2-base"},
    "data": {"root": "LibriSpeech", "train_splits": ["train-clean-100"]},
    "trainer": {"strategy": "auto", "precision": None, "default_root_dir": "runs/it's"},
    "checkpoint_every": "15m",
}
JOB = Job(
    run="base-100h",
    config=CONFIG,
    instance_type="ml.g4dn.12xlarge",
    count=2,
    is_spot=True,
    max_hours=6,
    max_wait_hours=12,
    region="us-east-1",
    role="arn:aws:iam::123456789012:role/w2v-training",
    data="s3://speech-data/librispeech",
    output="s3://speech-output/runs",
    input_mode="FastFile",
    image="763104351884.dkr.ecr.us-east-1.amazonaws.com/pytorch:2.11-cu130-amzn2023-sagemaker",
    volume_gb=100,
)

DATA = {"root": "x", "batch_seconds": 1600.0, "device_seconds": 200.0, "max_seconds": None, "num_workers": None}
# Config with all options that a plan reads.
FULL_CONFIG = CONFIG | {
    "data": DATA | {"duration_spread": 1.05},
    "trainer": {"precision": None, "max_steps": 1000, "max_epochs": -1},
}
