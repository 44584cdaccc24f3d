"""How a job stands or ended, and what to do about it, in one or two sentences."""

from w2v_lightning.sagemaker.training_job import TrainingJob

# What a FailureReason says, in small letters, and its remedy; the first that fits.
FAILURES = {
    ("insufficientinstancecapacity", "capacityerror"): "AWS has no such instances free: try later, another"
    " --instance-type or --region.",
    ("resourcelimitexceeded",): "Ask for a higher quota in Service Quotas (Amazon SageMaker, training job usage).",
    ("internalservererror",): "AWS has failed, the job has not.",
    ("out of memory", "outofmemory"): "Lower data.device_seconds: the model will be the same, of more accumulation.",
    ("no space left",): "Raise --volume-gb, or mount the data instead of copying it (--input-mode FastFile).",
    ("accessdenied", "not authorized"): "Give the execution role the missing right (docs/sagemaker.md).",
    ("no s3 objects found",): "Correct --data: nothing lies there.",
    ("unable to pull",): "Correct --image: its repository, tag and region must match.",
}


def advice(job: TrainingJob) -> str:
    """For the user; empty where there is nothing to be done."""
    resubmit = f"`python -m w2v_lightning resubmit {job.run}`"
    goes_on = f"{resubmit} goes on from its checkpoints" if job.checkpoints else "submit it again"
    if job.status == "Failed":
        return _after_failure(job, goes_on)
    match job.secondary_status:
        case "MaxWaitTimeExceeded" if not job.has_trained:
            return (
                f"No spot capacity came in all of its waiting time, and nothing is billed. {resubmit} takes more"
                " --max-wait-hours, another --instance-type, or --no-spot."
            )
        case "MaxWaitTimeExceeded":
            return f"Waiting for spot capacity took too long. With more --max-wait-hours {goes_on}."
        case "MaxRuntimeExceeded":
            return f"It trained as long as it may. With more --max-hours {goes_on}."
        case "Interrupted":
            return "Its spot instances were taken back: it waits for others, and goes on from its newest checkpoint."
        case "Stopped":
            return f"It was stopped; {goes_on}."
        case "Completed":
            return f"`python -m w2v_lightning download {job.name}` fetches the model."
    return ""


def verdict(job: TrainingJob) -> str:
    """Of a job that has ended: how, why if it has failed, and what to do."""
    reason = f": {job.failure_reason.rstrip('.')}" if job.failure_reason else ""
    return f"{job.name}: {job.secondary_status}{reason}. {advice(job)}"


def _after_failure(job: TrainingJob, goes_on: str) -> str:
    reason = job.failure_reason.lower()
    for words, remedy in FAILURES.items():
        if any(word in reason for word in words):
            return f"{remedy} Then {goes_on}."
    return f"`python -m w2v_lightning logs {job.name}` shows what it printed. When that is mended, {goes_on}."
