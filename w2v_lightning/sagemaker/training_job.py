"""Training job as SageMaker describes it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from w2v_lightning.errors import InputError

ENDED = ("Completed", "Failed", "Stopped")


@dataclass(frozen=True)
class TrainingJob:
    """Answer of DescribeTrainingJob or Search. Times are aware; seconds are None until the service reports them."""

    description: Mapping[str, Any]

    @property
    def name(self) -> str:
        return self.description["TrainingJobName"]

    @property
    def run(self) -> str:
        """Name of the run whose checkpoints the job uses, for resubmissions; without checkpoints, the job's name."""
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
        """Seconds since the job ended; 0 if it has not."""
        ended = self.description.get("TrainingEndTime")
        return (datetime.now(UTC) - ended).total_seconds() if ended else 0.0

    @property
    def transitions(self) -> list[dict[str, Any]]:
        """Secondary statuses, the oldest first: Status, StartTime, StatusMessage, and EndTime if it has ended."""
        return self.description.get("SecondaryStatusTransitions", [])

    @property
    def interruptions(self) -> int:
        """Number of times that the service reclaimed the instances."""
        return sum(transition["Status"] == "Interrupted" for transition in self.transitions)

    @property
    def has_trained(self) -> bool:
        return any(transition["Status"] == "Training" for transition in self.transitions)

    @property
    def failure_reason(self) -> str:
        return self.description.get("FailureReason", "")

    @property
    def metrics(self) -> dict[str, float]:
        """Last value of each metric that the job has printed."""
        return {metric["MetricName"]: metric["Value"] for metric in self.description.get("FinalMetricDataList", [])}

    @property
    def checkpoints(self) -> str:
        """S3 URI of the checkpoints, or "" if there is none."""
        return self.description.get("CheckpointConfig", {}).get("S3Uri", "").rstrip("/")

    @property
    def tensorboard(self) -> str:
        """S3 URI of the TensorBoard logs, or "" if there is none."""
        return self.description.get("TensorBoardOutputConfig", {}).get("S3OutputPath", "").rstrip("/")

    @property
    def output(self) -> str:
        """S3 URI of the folder to which the service writes model.tar.gz and output.tar.gz."""
        return f"{self.description['OutputDataConfig']['S3OutputPath'].rstrip('/')}/{self.name}/output"

    @property
    def _resources(self) -> Mapping[str, Any]:
        return self.description.get("ResourceConfig", {})


def describe(sagemaker: Any, name: str) -> TrainingJob:
    """Return the job of this name, or the newest job of the run of this name.

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
        " `python -m w2v_lightning list` lists the jobs, --region selects another region."
    )


def search(sagemaker: Any, tags: Mapping[str, str]) -> Iterator[TrainingJob]:
    """Return the jobs with all of these tags, the newest first; a new job appears some seconds after submission."""
    filters = [{"Name": f"Tags.{key}", "Operator": "Equals", "Value": value} for key, value in tags.items()]
    pages = sagemaker.get_paginator("search").paginate(
        Resource="TrainingJob",
        SearchExpression={"Filters": filters},
        SortBy="CreationTime",
        SortOrder="Descending",
    )
    return (TrainingJob(result["TrainingJob"]) for page in pages for result in page["Results"])


def parse_tags(options: Sequence[str]) -> dict[str, str]:
    """Return the tags that the values of --tag give.

    Raises:
        InputError: a value is not KEY=VALUE.
    """
    tags = {}
    for option in options:
        key, _, value = option.partition("=")
        if not (key and value):
            raise InputError(f"--tag is {option!r}: give KEY=VALUE, such as run=base-100h.")
        tags[key] = value
    return tags


def _is_not_found(error: Any) -> bool:
    # The code is ValidationException, as it is for names that no job can have, so that only the message tells.
    message = error.response["Error"].get("Message", "").lower()
    return "not found" in message or "could not find" in message
