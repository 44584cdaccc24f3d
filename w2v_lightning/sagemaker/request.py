"""CreateTrainingJob request of a Job, made by the ModelTrainer of the SageMaker SDK.

A dry run prints the same request that a submission sends. The SDK's own `train()` cannot show a request, and reports
its use to the makers of the SDK.
"""

import json
import secrets
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from w2v_lightning.catalog.instances import instance, nccl_environment
from w2v_lightning.errors import InputError
from w2v_lightning.sagemaker import container
from w2v_lightning.sagemaker.bundle import REQUIREMENTS
from w2v_lightning.sagemaker.checks import split_uri
from w2v_lightning.sagemaker.job import CHANNEL, METRICS, Job

if TYPE_CHECKING:
    from sagemaker.core.helper.session_helper import Session
    from sagemaker.train import ModelTrainer

NUMBER = r"([-+]?[0-9][-+0-9.eE]*)"
JOBS = "jobs"  # subfolder of the run's folder, with JOB/input/code and JOB/output of each job
RECORD = "job.json"  # file in the bundle with the Job itself, for resubmissions


def create_training_job(job: Job, bundle: Path, session: "Session") -> dict[str, Any]:
    """Upload the bundle through `session`, and return the CreateTrainingJob request.

    The job's name is RUN-XXXXXX-YYYYmmddHHMMSS; the random digits tell jobs of one second apart.

    Args:
        job: job to run.
        bundle: folder that becomes the job's code; RECORD is added.
        session: session of the SageMaker SDK (aws_session.py).

    Raises:
        InputError: the request is invalid by botocore's model of the service.
    """
    (bundle / RECORD).write_text(json.dumps(asdict(job), indent=1), encoding="utf-8")
    request = _trainer(job, bundle, session)._create_training_job_args(_channels(job), boto3=True)
    _check(request)
    return request


def metric_definitions() -> list[dict[str, str]]:
    """Return the regular expressions by which SageMaker finds METRICS in the log."""
    return [{"name": name, "regex": rf"\b{name}={NUMBER}"} for name in METRICS]


def _trainer(job: Job, bundle: Path, session: "Session") -> "ModelTrainer":
    from sagemaker.core.training import configs
    from sagemaker.train import ModelTrainer

    bucket, prefix = split_uri("--output", job.folder)

    class Trainer(ModelTrainer):
        def _resolve_staging_bucket(self) -> tuple[str, str]:
            """Return the run's folder; the SDK's own method asks IAM about one bucket for everything."""
            return bucket, prefix

    trainer = Trainer(sagemaker_session=session, **_settings(job, bundle))
    logs = configs.TensorBoardOutputConfig(s3_output_path=job.tensorboard, local_path=container.TENSORBOARD)
    metrics = [configs.MetricDefinition(**metric) for metric in metric_definitions()]
    return trainer.with_tensorboard_output_config(logs).with_metric_definitions(metrics)


def _settings(job: Job, bundle: Path) -> dict[str, Any]:
    from sagemaker.core.training import configs

    return {
        "role": job.role,
        "base_job_name": f"{job.run}-{secrets.token_hex(3)}",
        "input_s3_key_prefix": JOBS,
        "training_image": job.image,
        "source_code": configs.SourceCode(
            source_dir=str(bundle), requirements=REQUIREMENTS, command=container.command(job)
        ),
        "compute": configs.Compute(
            instance_type=job.instance_type,
            instance_count=job.count,
            volume_size_in_gb=job.volume_gb,
            enable_managed_spot_training=job.is_spot,
        ),
        "stopping_condition": configs.StoppingCondition(**_limits(job)),
        "output_data_config": configs.OutputDataConfig(s3_output_path=f"{job.folder}/{JOBS}"),
        "checkpoint_config": configs.CheckpointConfig(s3_uri=job.checkpoints, local_path=container.CHECKPOINTS),
        "environment": _environment(job),
        "tags": [configs.Tag(key=key, value=value) for key, value in job.tags.items()],
    }


def _limits(job: Job) -> dict[str, int]:
    limits = {"max_runtime_in_seconds": round(job.max_hours * 3600)}
    if job.is_spot:
        assert job.max_wait_hours is not None  # every spot job has it
        limits["max_wait_time_in_seconds"] = round(job.max_wait_hours * 3600)
    return limits


def _environment(job: Job) -> dict[str, str]:
    return {"PYTHONUNBUFFERED": "1"} | nccl_environment(instance(job.instance_type), job.count)


def _channels(job: Job) -> list[Any]:
    """Return the input channels. Each host gets all data, because the batch plan decides what it reads.

    The URI ends in a slash, because .../data would also match .../data-old.
    """
    if job.input_mode == "stream":
        return []
    from sagemaker.core.training.configs import Channel, DataSource, S3DataSource

    uri = f"{job.data.rstrip('/')}/"
    source = S3DataSource(s3_data_type="S3Prefix", s3_uri=uri, s3_data_distribution_type="FullyReplicated")
    return [Channel(channel_name=CHANNEL, input_mode=job.input_mode, data_source=DataSource(s3_data_source=source))]


def _check(request: dict[str, Any]) -> None:
    from botocore.session import get_session
    from botocore.validate import ParamValidator

    shape = get_session().get_service_model("sagemaker").operation_model("CreateTrainingJob").input_shape
    report = ParamValidator().validate(request, shape)
    if report.has_errors():
        raise InputError(f"SageMaker would refuse the job: {' '.join(report.generate_report().split())}")
