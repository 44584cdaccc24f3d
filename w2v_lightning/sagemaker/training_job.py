"""A training job as the service describes it."""

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from w2v_lightning.errors import InputError

ENDED = ("Completed", "Failed", "Stopped")


@dataclass(frozen=True)
class TrainingJob:
    """What DescribeTrainingJob answers, or Search; times are aware, seconds None until the service knows them."""

    description: Mapping[str, Any]

    @property
    def name(self) -> str:
        return self.description["TrainingJobName"]

    @property
    def run(self) -> str:
        """The run whose checkpoints these are, which is what a resubmission goes on with; else the job's own name."""
        folder, _, last = self.checkpoints.rpartition("/")
        return folder.rpartition("/")[2] if last == "checkpoints" else self.name

    @property
    def status(self) -> str:
        return self.description["TrainingJobStatus"]

    @property
    def secondary_status(self) -> str:
        return self.description.get("SecondaryStatus", self.status)

    @property
    def has_ended(self) -> bool:
        return self.status in ENDED

    @property
    def region(self) -> str:
        return self.description["TrainingJobArn"].split(":")[3]

    @property
    def instance_type(self) -> str:
        return self._resources.get("InstanceType", "several types")

    @property
    def count(self) -> int:
        return self._resources.get("InstanceCount", 0)

    @property
    def volume_gb(self) -> int:
        return self._resources.get("VolumeSizeInGB", 0)

    @property
    def is_spot(self) -> bool:
        return self.description.get("EnableManagedSpotTraining", False)

    @property
    def training_s(self) -> int | None:
        return self.description.get("TrainingTimeInSeconds")

    @property
    def billable_s(self) -> int | None:
        return self.description.get("BillableTimeInSeconds")

    @property
    def created(self) -> datetime:
        return self.description["CreationTime"]

    @property
    def ended_s_ago(self) -> float:
        """Seconds since it has ended; 0 where it has not."""
        ended = self.description.get("TrainingEndTime")
        return (datetime.now(UTC) - ended).total_seconds() if ended else 0.0

    @property
    def transitions(self) -> list[dict[str, Any]]:
        """Each with Status, StartTime, StatusMessage, and EndTime if it has ended; the oldest first."""
        return self.description.get("SecondaryStatusTransitions", [])

    @property
    def interruptions(self) -> int:
        """How often the service took the instances back."""
        return sum(transition["Status"] == "Interrupted" for transition in self.transitions)

    @property
    def has_trained(self) -> bool:
        return any(transition["Status"] == "Training" for transition in self.transitions)

    @property
    def failure_reason(self) -> str:
        return self.description.get("FailureReason", "")

    @property
    def metrics(self) -> dict[str, float]:
        """The last value of each that the job has printed."""
        return {metric["MetricName"]: metric["Value"] for metric in self.description.get("FinalMetricDataList", [])}

    @property
    def checkpoints(self) -> str:
        """S3 URI, or empty."""
        return self.description.get("CheckpointConfig", {}).get("S3Uri", "").rstrip("/")

    @property
    def tensorboard(self) -> str:
        """S3 URI, or empty."""
        return self.description.get("TensorBoardOutputConfig", {}).get("S3OutputPath", "").rstrip("/")

    @property
    def output(self) -> str:
        """S3 URI of the folder in which the service leaves model.tar.gz and output.tar.gz."""
        return f"{self.description['OutputDataConfig']['S3OutputPath'].rstrip('/')}/{self.name}/output"

    @property
    def _resources(self) -> Mapping[str, Any]:
        return self.description.get("ResourceConfig", {})


def describe(sagemaker: Any, name: str) -> TrainingJob:
    """The job of that name, or else the newest job of the run of that name.

    Raises:
        InputError: there is neither.
    """
    try:
        return TrainingJob(sagemaker.describe_training_job(TrainingJobName=name))
    except sagemaker.exceptions.ClientError as error:
        if not _is_not_found(error):
            raise
    pages = sagemaker.get_paginator("list_training_jobs").paginate(
        NameContains=name, SortBy="CreationTime", SortOrder="Descending"
    )
    for row in (row for page in pages for row in page["TrainingJobSummaries"]):
        job = TrainingJob(sagemaker.describe_training_job(TrainingJobName=row["TrainingJobName"]))
        if job.run == name:
            return job
    raise InputError(
        f"{name}: there is no training job and no run of this name in {sagemaker.meta.region_name};"
        " `python -m w2v_lightning list` shows what there is, --region looks elsewhere."
    )


def search(sagemaker: Any, tags: Mapping[str, str]) -> Iterator[TrainingJob]:
    """The jobs with all of these tags, the newest first. A new job is found some seconds after its submission."""
    filters = [{"Name": f"Tags.{key}", "Operator": "Equals", "Value": value} for key, value in tags.items()]
    pages = sagemaker.get_paginator("search").paginate(
        Resource="TrainingJob",
        SearchExpression={"Filters": filters},
        SortBy="CreationTime",
        SortOrder="Descending",
    )
    return (TrainingJob(result["TrainingJob"]) for page in pages for result in page["Results"])


def add_options(parser: argparse.ArgumentParser) -> None:
    """Which job is meant."""
    parser.add_argument("name", metavar="NAME", help="of a job, or of a run: then its newest job")
    add_region_option(parser)


def add_region_option(parser: argparse.ArgumentParser) -> None:
    """Where to look."""
    parser.add_argument("--region", help="default: that of the environment")


def key_and_value(option: str) -> tuple[str, str]:
    """A tag, for argparse."""
    key, _, value = option.partition("=")
    if not (key and value):
        raise argparse.ArgumentTypeError(f"KEY=VALUE was expected, such as run=base-100h, not {option!r}")
    return key, value


def _is_not_found(error: Any) -> bool:
    """DescribeTrainingJob answers ValidationException, as it does to a name that no job can have."""
    said = error.response["Error"].get("Message", "").lower()
    return "not found" in said or "could not find" in said
